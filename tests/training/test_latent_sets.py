"""Latent sets of a profile that is not like the embedded one, and what is trained on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from dekag import LinkConditions, SemanticLink
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.errors import FileError, InvalidInputError, MismatchError
from dekag.generation.autoencoder import encode
from dekag.generation.models import Generator, LatentDecoder
from dekag.generation.placement import ON_CPU
from dekag.generation.side_information import SideInformation
from dekag.inventory import parts, problems
from dekag.profile import Profile, load_profile
from dekag.training import cala, latent_sets
from dekag.training.data import picked, to_tensor
from dekag.training.examples import Examples
from dekag.training.latent_sets import (
    MIN_COUNT,
    LatentSet,
    latents_of_pictures,
    latents_of_prompts,
    read_picture,
)
from dekag.training.tiny_models import FOREIGN, save_dummy_models
from dekag.training.worlds import STICKERS
from services.cli.main import app
from services.cli.train.link import _rendered

SIZE = 64  # small, where the size does not matter
COLOURS = "a {red|blue|green} boat, {pastel|noir} style"
PROMPTS = [COLOURS, "a fox in the snow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of 192 pixels, 16 latent channels and scaled latents in bfloat16."""
    return save_dummy_models(tmp_path_factory.mktemp("foreign"), like=FOREIGN)


@pytest.fixture(scope="module")
def profile(folder: Path) -> Profile:
    return load_profile(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than are needed, one of which has a caption, in two folders and three formats."""
    home = tmp_path_factory.mktemp("pictures")
    (home / "more").mkdir()
    rng = np.random.default_rng(1)
    for number in range(MIN_COUNT + 2):
        pixels = rng.integers(0, 256, (70 + number, 90, 3), dtype=np.uint8)
        name = f"{number:02}.{('png', 'jpg', 'WEBP')[number % 3]}"
        Image.fromarray(pixels).save(home / ("more" if number % 2 else "") / name)
    (home / "notes.txt").write_text("not a picture")
    (home / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "noise"}\n\n')
    (home / "more" / "metadata.jsonl").write_text('{"file_name": "03.png", "width": 90}\n')
    return home


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent set of the profile's size."""
    out = tmp_path_factory.mktemp("latents") / "set"
    latents_of_prompts(out, load_profile(folder), PROMPTS, count=MIN_COUNT, seed=1, batch=8, show=False)
    return out


def dekag(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_drawn_latents_are_those_that_are_sent(profile: Profile, tmp_path: Path) -> None:
    latents_of_prompts(tmp_path, profile, PROMPTS, count=50, size=SIZE, seed=3, show=False)
    made = LatentSet.load(tmp_path)
    assert made.latents.shape == (50, 16, SIZE // 8, SIZE // 8)
    assert made.latents.dtype == torch.float16
    edge = Generator.from_profile(profile, "edge")
    assert made.info.drawn_by is not None
    assert (made.info.drawn_by.edge_hash, made.info.drawn_by.steps) == (edge.model_hash, 2)
    for row in (0, 17, 49):
        said, seed = made.info.rows[row].prompt, made.info.rows[row].seed
        assert seed is not None
        sent = edge.latents(said, seed, width=SIZE, height=SIZE)
        assert torch.equal(made.latents[row], sent[0].half())


def test_latents_know_their_prompts(whole: Path, profile: Profile) -> None:
    known = SideInformation.load(profile.edge)
    made = LatentSet.load(whole)
    training, held_out = made.examples(known)
    for examples, row in ((training, 3), (held_out, -1)):
        said = known.states(str(made.info.rows[row].prompt)).half()
        assert examples.text is not None
        assert torch.equal(examples.text[row, : len(said)], said)
        assert not examples.text[row, len(said) :].any()


def test_a_worlds_own_captions_are_drawn_and_trained_on_beside_its_renderings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--profile", "stickers", "--count", MIN_COUNT, "--batch", 8, "--size", 64]
    done = dekag("train", "latents", *options, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    drawn = LatentSet.load(tmp_path)
    assert {row.prompt for row in drawn.info.rows} <= set(STICKERS.edge_captions(MIN_COUNT, seed=1))
    # rendering takes the artwork; what matters here is that a shared autoencoder is recognised
    rendered = Examples(torch.zeros(1100, 4, 8, 8))
    monkeypatch.setattr("dekag.training.examples.rendered_examples", lambda *_, **__: rendered)
    _, training, held_out = _rendered(
        "stickers", 1100, tmp_path, None, 1, tmp_path, prompts=False, placed=ON_CPU
    )
    assert [len(each) for each in training] == [100, MIN_COUNT - 16]
    assert torch.equal(held_out.latents, drawn.latents[-16:])


def test_no_held_out_prompt_is_trained_on(whole: Path, profile: Profile, tmp_path: Path) -> None:
    made = LatentSet.load(whole)
    training, held_out = made.examples()
    assert (len(training), len(held_out)) == (MIN_COUNT - 16, 16)
    assert torch.equal(torch.cat([training.latents, held_out.latents]), made.latents)
    drawn = [str(row.prompt) for row in made.info.rows]
    learnt, kept = set(drawn[:-16]), set(drawn[-16:])
    assert not learnt & kept
    assert len(learnt | kept) == 7
    assert not any("{" in prompt for prompt in drawn)
    assert len({(row.prompt, row.seed) for row in made.info.rows}) == MIN_COUNT
    # as many prompts as latents: each is used once
    lines = [f"boat number {number}" for number in range(MIN_COUNT)]
    latents_of_prompts(tmp_path, profile, lines, count=MIN_COUNT, size=SIZE, seed=1, show=False)
    assert sorted(str(row.prompt) for row in LatentSet.load(tmp_path).info.rows) == sorted(lines)


def test_encoded_latents_are_scaled_and_keep_captions(
    profile: Profile, pictures: Path, tmp_path: Path
) -> None:
    latents_of_pictures(tmp_path, profile, pictures, size=SIZE, seed=2, show=False)
    made = LatentSet.load(tmp_path)
    vae = LatentDecoder.load(profile.edge).vae
    with torch.inference_mode():
        for row in (0, 33):
            pixels = read_picture(pictures / str(made.info.rows[row].file), SIZE)
            alone = encode(vae, to_tensor(pixels[None]))[0]
            assert torch.equal(made.latents[row], alone.half())
            raw = vae.encode(to_tensor(pixels[None]).bfloat16()).latent_dist.mean[0].float()
            torch.testing.assert_close(alone, raw * FOREIGN.edge.scaling_factor)
    texts = {row.file: row.text for row in made.info.rows}
    assert len(texts) == MIN_COUNT + 2
    assert {name: text for name, text in texts.items() if text} == {"00.png": "noise"}
    assert "more/05.WEBP" in texts
    assert list(texts) != sorted(map(str, texts)), "held out are the last of a drawn order, not by name"


def test_pictures_are_cropped_to_their_centre(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_picture(tmp_path / "wide.png", 64) == (255, 0, 0)).all()


def test_an_interrupted_set_is_completed(
    profile: Profile, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: dict[str, Callable[[Path], None]] = {
        "prompts": lambda out: latents_of_prompts(
            out, profile, PROMPTS, count=40, size=SIZE, seed=3, batch=4, show=False
        ),
        "pictures": lambda out: latents_of_pictures(out, profile, pictures, size=SIZE, seed=3, show=False),
    }
    saved = latent_sets.save_file
    for name, make in makers.items():
        make(tmp_path / name)

        def stopped(tensors: Any, path: Path) -> None:
            saved(tensors, path)
            if "000016" in path.name:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(latent_sets, "save_file", stopped)
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path / f"{name}-halves")
        with pytest.raises(FileError, match=r"latents-000016.*run `dekag train latents` again"):
            LatentSet.load(tmp_path / f"{name}-halves")
        make(tmp_path / f"{name}-halves")
        one, other = (LatentSet.load(tmp_path / each) for each in (name, f"{name}-halves"))
        assert torch.equal(one.latents, other.latents)
        assert one.info == other.info


def test_another_set_is_not_mixed_in(whole: Path, profile: Profile) -> None:
    with pytest.raises(FileError, match="holds another latent set"):
        latents_of_prompts(whole, profile, PROMPTS, count=MIN_COUNT, seed=2, show=False)


def test_latents_of_pictures_that_changed_are_not_taken_for_theirs(
    profile: Profile, pictures: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "pictures", tmp_path / "set"
    shutil.copytree(pictures, mine)
    common: dict[str, Any] = {"size": SIZE, "seed": 3, "show": False}
    latents_of_pictures(out, profile, mine, **common)
    latents_of_pictures(out, profile, mine, **common)
    Image.new("RGB", (90, 70)).save(mine / "00.png")
    with pytest.raises(FileError, match="holds another latent set"):
        latents_of_pictures(out, profile, mine, **common)


def test_a_damaged_set_is_refused(whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "set"
    shutil.copytree(whole, mine)
    part = mine / "latents-000000.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(FileError, match="is damaged"):
        LatentSet.load(mine)
    described = json.loads((mine / "latents.json").read_text())
    for changed in ({"held_out": MIN_COUNT}, {"rows": []}, {"format": 2}):
        (mine / "latents.json").write_text(json.dumps({**described, **changed}))
        with pytest.raises(FileError, match="describes no latent set"):
            LatentSet.load(mine)


def test_latents_of_another_autoencoder_are_refused(
    whole: Path, profile: Profile, dummy_profile: Path
) -> None:
    made = LatentSet.load(whole)
    made.check_autoencoder(profile.edge)
    other = LatentDecoder.load(load_profile(dummy_profile).edge).model_hash
    with pytest.raises(MismatchError, match=f"{made.info.vae_hash[:12]}.*{other[:12]}"):
        made.check_autoencoder(load_profile(dummy_profile).edge)


def test_crops_are_parts_of_their_latents() -> None:
    latents = torch.arange(3 * 2 * 8 * 8).reshape(3, 2, 8, 8).half()
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor([2, 0, 2, 1])
    places = set()
    for row, crop in zip(rows.tolist(), picked(latents, rows, 4, generator), strict=True):
        assert crop.shape == (2, 4, 4)
        windows = latents[row].unfold(1, 4, 1).unfold(2, 4, 1).permute(1, 2, 0, 3, 4).float()
        where = (windows == crop).all(-1).all(-1).all(-1).nonzero()
        assert len(where) == 1
        places.add(tuple(where[0].tolist()))
    assert len(places) > 1
    state = generator.get_state()
    for crop in (None, 8, 16):  # whole latents draw nothing: earlier trainings stay as they are
        assert torch.equal(picked(latents, rows, crop, generator), latents[rows].float())
    assert torch.equal(generator.get_state(), state)


def test_a_codec_and_its_adapters_are_trained_for_a_profile(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, runs = tmp_path / "mine", tmp_path / "runs"
    shutil.copytree(folder, mine)
    shutil.rmtree(mine / "codec")
    grid = {"cbrs": (1 / 768, 1 / 96), "snrs_db": (0.0, 20.0), "taus_s": (1e-7,)}
    for name, values in grid.items():
        monkeypatch.setitem(cala.calibrate_quality.__kwdefaults__ or {}, name, values)
    monkeypatch.setattr(cala, "METRIC_LATENTS", 1)
    sides: dict[str, set[int]] = {"trained": set(), "measured": set()}
    send, deliver = cala.send, cala.deliver

    def noted(kind: str, real: Any) -> Any:
        def call(adapted: Any, latents: torch.Tensor, *more: Any, **named: Any) -> Any:
            sides[kind].add(latents.shape[-1])
            return real(adapted, latents, *more, **named)

        return call

    monkeypatch.setattr(cala, "send", noted("trained", send))
    monkeypatch.setattr(cala, "deliver", noted("measured", deliver))
    common = ["--profile", mine, "--latents", whole, "--runs", runs, "--steps", 2]
    done = dekag("train", "codec", *common, "--width", 8, "--blocks", 1)
    assert done.exit_code == 0, done.output
    codec = JsccCodec.load(mine / "codec")
    assert (codec.config.latent_channels, codec.config.width, codec.config.blocks) == (16, 8, 1)
    assert codec.text_width, "adapters adapt a codec that reads the prompt"
    done = dekag("train", "codec", *common, "--one-rate", "--width", 8, "--blocks", 1)
    assert done.exit_code == 0, done.output
    assert 'add "unaligned_codec": "codec-one-rate" to its profile.json' in done.output
    assert JsccCodec.load(mine / "codec-one-rate").text_width == 0
    further = tmp_path / "further"
    done = dekag("train", "codec", *common, "--start", mine / "codec-one-rate", "--out", further)
    assert done.exit_code == 0, done.output
    assert (JsccCodec.load(further).config.width, JsccCodec.load(further).text_width) == (8, codec.text_width)
    first, then = (
        json.loads((each / "training.json").read_text()) for each in (mine / "codec-one-rate", further)
    )
    assert then["continues"] == first
    described = json.loads((mine / "profile.json").read_text())
    (mine / "profile.json").write_text(json.dumps({**described, "unaligned_codec": "codec-one-rate"}))
    done = dekag("train", "cala", *common, "--share", 1, "--calibrate-on", 2)
    assert done.exit_code == 0, done.output
    assert 'add "adapters": "adapters" to its profile.json' in done.output
    assert sides == {"trained": {16}, "measured": {FOREIGN.size // 8}}
    described = json.loads((mine / "profile.json").read_text())
    (mine / "profile.json").write_text(json.dumps({**described, "adapters": "adapters"}))
    loaded = load_profile(mine)
    assert not problems(loaded, parts(loaded))
    image = SemanticLink.load(mine).image("a fox", LinkConditions(snr_db=10), seed=1)
    assert image.pixels.shape == (FOREIGN.size, FOREIGN.size, 3)
    knowledge = TransmissionKnowledge.load(mine / "adapters")
    of_codec = json.loads((mine / "codec" / "training.json").read_text())
    assert knowledge.info["config"]["examples_hash"] == of_codec["examples_hash"] != first["examples_hash"], (
        "the codec of unaligned deliveries was trained without prompts"
    )
    quality = knowledge.quality
    assert quality is not None
    assert quality.cbrs == grid["cbrs"]

    # with another autoencoder, the profile says that both were made for this one
    vae = LatentDecoder.load(loaded.edge)
    vae.vae.register_to_config(scaling_factor=0.5)
    vae.vae.save_pretrained(mine / "edge" / "vae")
    told = problems(loaded, parts(loaded))
    hashes = (vae.model_hash[:12], LatentDecoder.load(loaded.edge).model_hash[:12])
    assert told == [
        f"{role}: trained on latents of autoencoder {hashes[0]}; the edge's is {hashes[1]}"
        for role in ("codec", "unaligned_codec", "adapters")
    ]
    refused = dekag("train", "codec", *common)
    assert refused.exit_code == 2
    assert all(each in refused.output for each in ("--latents", *hashes)), refused.output


def test_checkpoints_of_other_settings_are_not_continued(folder: Path, whole: Path, tmp_path: Path) -> None:
    for width in (4, 8):
        done = dekag(
            "train", "codec", "--profile", folder, "--latents", whole, "--runs", tmp_path / "runs",
            "--out", tmp_path / str(width), "--steps", 2, "--blocks", 0, "--width", width,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert JsccCodec.load(tmp_path / str(width)).config.width == width


def test_latents_from_the_command_line(folder: Path, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"# colours\n\n{COLOURS}\na fox in the snow\n")
    common = ["train", "latents", "--profile", folder, "--size", SIZE]
    done = dekag(*common, "--prompts", file, "--count", 33, "--batch", 16, "--out", tmp_path / "drawn")
    assert done.exit_code == 0, done.output
    drawn = LatentSet.load(tmp_path / "drawn")
    assert (drawn.info.count, drawn.info.held_out, drawn.info.seed) == (33, 16, 1)
    assert not any("colours" in str(row.prompt) for row in drawn.info.rows)
    done = dekag(*common, "--pictures", pictures, "--out", tmp_path / "encoded", "--count", 32)
    assert done.exit_code == 0, done.output
    assert LatentSet.load(tmp_path / "encoded").info.drawn_by is None


def test_wrong_input_is_one_line_that_names_the_option(
    folder: Path, whole: Path, pictures: Path, dummy_profile: Path, tmp_path: Path
) -> None:
    few, broken = tmp_path / "few", tmp_path / "broken"
    few.mkdir()
    (few / "a.png").write_bytes(b"")
    shutil.copytree(pictures, broken)
    (broken / "02.WEBP").write_text("no picture")
    captions = tmp_path / "captions"
    shutil.copytree(pictures, captions)
    (captions / "metadata.jsonl").write_text('{"file_name": "00.png"}\n{"file_name": "99.png"}\n')
    one, good, blank = (tmp_path / f"{name}.txt" for name in ("one", "good", "blank"))
    one.write_text("a boat\n")
    good.write_text("a boat\na fox\n")
    blank.write_text("# nothing\n")
    small = tmp_path / "small"
    latents_of_prompts(small, load_profile(folder), PROMPTS, count=32, size=SIZE, seed=1, show=False)
    out = ["--out", tmp_path / "out"]
    latents: list[object] = ["latents", "--profile", folder, *out]
    codec: list[object] = ["codec", "--profile", folder, *out, "--runs", tmp_path / "runs"]
    adapters: list[object] = ["cala", *codec[1:], "--latents", whole]
    cases: list[tuple[Sequence[object], str, str]] = [
        (latents, "--prompts", "either --prompts or --pictures"),
        ([*latents, "--prompts", good, "--pictures", pictures], "--prompts", "either"),
        ([*latents, "--prompts", tmp_path / "none.txt"], "--prompts", "none.txt cannot be read"),
        ([*latents, "--prompts", one], "--prompts", "at least 2 different ones"),
        ([*latents, "--prompts", blank], "--prompts", "at least 2 different ones"),
        ([*latents, "--prompts", good, "--count", 31], "--count", "32"),
        ([*latents, "--prompts", good, "--size", 100], "--size", "multiple of 32"),
        ([*latents[:1], "--profile", "nothing", *out, "--prompts", good], "--profile", "no profile"),
        ([*latents, "--pictures", few], "--pictures", "at least 32 are needed"),
        ([*latents, "--pictures", tmp_path / "nowhere"], "--pictures", "cannot be read"),
        ([*latents, "--pictures", broken], "--pictures", "02.WEBP is no readable"),
        ([*latents, "--pictures", captions], "--pictures", "metadata.jsonl, line 2 names '99.png'"),
        ([*latents, "--pictures", pictures, "--count", 99], "--count", "at most 34"),
        ([*codec, "--latents", tmp_path / "nowhere"], "--latents", "latents.json cannot be read"),
        ([*codec, "--latents", whole, "--crop", 9], "--crop", "multiple of 4"),
        ([*codec, "--latents", whole, "--vae", folder], "--vae", "cannot be used with --latents"),
        ([*codec, "--latents", whole, "--pictures", 9], "--pictures", "cannot be used with --latents"),
        ([*codec, "--width", 9], "--width", "must be even"),
        ([*codec, "--crop", 16], "--crop", "requires --latents"),
        ([*codec[:3], "--latents", whole, "--start", tmp_path / "nowhere"], "--start", "holds no codec"),
        ([*codec, "--start", folder / "codec", "--width", 8], "--width", "cannot be used with --start"),
        ([*codec, "--latents", whole, "--start", dummy_profile / "codec"], "--start", "these have 16"),
        ([*adapters[:1], "--crop", 16, *out], "--crop", "requires --latents"),
        ([*adapters, "--calibrate-on", 17], "--calibrate-on", "at most 16"),
        ([*adapters, "--codec", tmp_path], "--codec", "holds no codec"),
        ([*adapters, "--codec", dummy_profile / "codec"], "--codec", "4 channels; these have 16"),
        ([*adapters[:-1], small], "--latents", "64-pixel images"),
        (["codec", "--profile", dummy_profile, *out, "--latents", whole], "--latents", "autoencoder"),
    ]
    for arguments, option, said in cases:
        done = dekag("train", *arguments)
        assert done.exit_code == 2, (arguments, done.output)
        last = done.output.strip().splitlines()[-1]
        assert option in last, (option, done.output)
        assert said in last, (said, done.output)


def test_a_codec_outside_of_the_profile_is_not_overwritten(folder: Path, whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    shutil.move(mine / "codec", tmp_path / "codec")
    described = json.loads((mine / "profile.json").read_text())
    (mine / "profile.json").write_text(json.dumps({**described, "codec": "../codec"}))
    done = dekag("train", "codec", "--profile", mine, "--latents", whole, "--runs", tmp_path / "runs")
    assert done.exit_code == 2
    assert "--out: is required" in done.output


def test_prompts_that_are_blank_are_refused(profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="prompt must be"):
        latents_of_prompts(tmp_path, profile, ["a boat", "{ | }"], count=32, seed=1, show=False)


def test_knowledge_without_a_latent_set_says_nothing_of_it() -> None:
    shipped = load_profile("stickers").adapters
    assert "vae_hash" not in TransmissionKnowledge.load(str(shipped)).info
