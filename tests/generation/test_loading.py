"""Pipelines from several places, in several number formats, on several devices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dekag.errors import InvalidInputError, MismatchError, NotFoundError
from dekag.generation import autoencoder, loading, placement
from dekag.generation.facts import GeneratorFacts
from dekag.generation.loading import load_component, load_pipeline, pipeline_hash
from dekag.generation.models import Generator, LatentDecoder, LatentEncoder
from dekag.generation.placement import CPU, place
from dekag.generation.profile import ComponentProfile, GeneratorProfile
from dekag.generation.restorer import Restorer
from dekag.makd.batched_lora import BatchedLora
from dekag.makd.config import DistillConfig
from dekag.makd.topics import TopicPrompts
from dekag.profile import Profile, load_profile
from dekag.training.distill import draw_images, train
from dekag.training.targets import ImageTargets

PROMPT = "a red boat on the beach"
LONG = "a red boat on the beach, and " * 12 + "a cat"


@pytest.fixture(scope="module")
def profile(dummy_profile: Path) -> Profile:
    """The tiny profile."""
    return load_profile(dummy_profile)


def _with(model: GeneratorProfile, **changed: Any) -> GeneratorProfile:
    return model.model_copy(update=changed)


def test_a_component_from_elsewhere_replaces_the_pipelines(profile: Profile, tmp_path: Path) -> None:
    edge = profile.edge
    shutil.copytree(edge.path, tmp_path / "base", ignore=shutil.ignore_patterns("unet"))
    (tmp_path / "base" / "unet").mkdir()  # such repositories have none
    there = ComponentProfile(path=edge.path, subfolder="unet")
    mixed = _with(edge, path=str(tmp_path / "base"), components={"unet": there})
    shown = {"unet", "text_encoder", "vae"}
    ours, theirs = load_pipeline(mixed), load_pipeline(edge)
    for name in shown:
        got, wanted = (dict(getattr(each, name).named_parameters()) for each in (ours, theirs))
        assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert pipeline_hash(mixed) != pipeline_hash(edge)
    assert LatentDecoder.load(mixed).model_hash == LatentDecoder.load(edge).model_hash


def test_a_component_that_is_not_there_is_named(profile: Profile) -> None:
    with pytest.raises(MismatchError, match="no component 'transformer': its components are"):
        load_component(profile.edge, "transformer")
    away = ComponentProfile(path="somebody/else")
    with pytest.raises(NotFoundError, match="no model 'somebody/else'"):
        load_pipeline(_with(profile.edge, components={"vae": away}))


def _edited(edge: GeneratorProfile, folder: Path, file: str, **entries: Any) -> GeneratorProfile:
    """A copy of a pipeline in which a JSON file has other entries."""
    shutil.copytree(edge.path, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return _with(edge, path=str(folder))


def test_a_safety_checker_is_neither_needed_nor_loaded(profile: Profile, tmp_path: Path) -> None:
    """Stable Diffusion 1 has one, which many copies lack."""
    named = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    edge = _edited(profile.edge, tmp_path / "edge", "model_index.json", requires_safety_checker=True, **named)
    assert load_pipeline(edge).safety_checker is None


@pytest.mark.parametrize("role", ["cloud", "edge"])
@pytest.mark.parametrize("vae_dtype", ["", "bfloat16"])
@pytest.mark.parametrize("kind", ["dummy_profile", "foreign_profile"])
def test_a_generator_is_known_without_being_loaded(
    kind: str, vae_dtype: Any, role: Any, request: pytest.FixtureRequest
) -> None:
    profile = load_profile(request.getfixturevalue(kind))
    placed = place(vae_dtype=vae_dtype)
    for each in (profile, profile.model_copy(update={"size": 96})):
        facts = Generator.from_profile(each, role, placed).facts
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "load_pipeline", None)
            patch.setattr(loading, "load_component", None)
            assert GeneratorFacts.of_profile(each, role, placed) == facts
    away = GeneratorProfile(path="somebody/else", steps=1, guidance_scale=1)
    with pytest.raises(NotFoundError, match="no model 'somebody/else'"):
        GeneratorFacts.of_profile(profile.model_copy(update={role: away}), role)


def test_images_of_other_devices_have_other_keys(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices round differently, wherever the text encoder or the denoiser is."""
    monkeypatch.setattr(placement, "_device", lambda _, name: torch.device(name))
    places = [place("cpu"), place("cuda"), place("cuda", text_device="cpu"), place("mps")]
    known = [GeneratorFacts.of_profile(profile, "edge", each).identity for each in places]
    assert len(set(known)) == len(known)
    assert known[0] == Generator.from_profile(profile, "edge").identity
    same = [place("cuda:1"), place("cuda", offload=True), place("cuda:1", keep_text_encoder=False)]
    for each in same:
        assert GeneratorFacts.of_profile(profile, "edge", each).identity == known[1]


def test_a_component_in_one_file_is_refused(profile: Profile) -> None:
    file = Path(profile.edge.path, "vae", "diffusion_pytorch_model.safetensors")
    mixed = _with(profile.edge, components={"vae": ComponentProfile(path=str(file))})
    with pytest.raises(MismatchError, match="is a file: the component 'vae' is a folder, or a name on a hub"):
        load_pipeline(mixed)


@pytest.mark.parametrize("said", [None, [16, 16]])
def test_a_denoiser_may_say_nothing_of_its_size_or_both_sides(
    profile: Profile, tmp_path: Path, said: Any
) -> None:
    edge = _edited(profile.edge, tmp_path / "edge", "unet/config.json", sample_size=said)
    mine = Generator.from_profile(profile.model_copy(update={"edge": edge}), "edge")
    assert mine.size == profile.size
    usual = Generator.from_profile(profile, "edge")
    assert torch.equal(mine.latents(PROMPT, 1), usual.latents(PROMPT, 1))
    if said is None:
        assert mine.departures == (f"{profile.size} pixels",)
        assert GeneratorFacts.of_profile(profile.model_copy(update={"edge": edge}), "edge") == mine.facts
        with pytest.raises(MismatchError, match="a size is required"):
            Generator.load(edge.path, steps=1, guidance_scale=1.0)
    else:
        assert mine.departures == usual.departures


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"revision": "v2"}, "`revision` 'v2' is for models on a hub"), ({"config": "."}, "`config` is for")],
)
def test_what_would_have_no_effect_is_refused(profile: Profile, changed: dict[str, str], said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        load_pipeline(_with(profile.edge, **changed))


@pytest.mark.parametrize("role", ["cloud", "edge"])
def test_bfloat16_gives_nearly_the_same_image(profile: Profile, role: str) -> None:
    model: GeneratorProfile = getattr(profile, role)
    coarse = profile.model_copy(update={role: _with(model, dtype="bfloat16", vae_dtype="bfloat16")})
    fine, half = (Generator.from_profile(each, role) for each in (profile, coarse))  # type: ignore[arg-type]
    assert half.pipeline.vae.dtype == torch.bfloat16
    assert half.model_hash == fine.model_hash
    for prompt in (PROMPT, LONG):
        wanted, got = fine.latents(prompt, 3), half.latents(prompt, 3)
        assert got.dtype == torch.float32
        assert (got - wanted).std() < 0.03 * wanted.std()
        seen, expected = half.decoder.decode(got), fine.decoder.decode(wanted)
        assert abs(seen.astype(float) - expected).mean() < 4


def test_the_noise_of_a_seed_does_not_depend_on_the_number_format(profile: Profile) -> None:
    generator = Generator.from_profile(profile, "edge")
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    own = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert torch.equal(generator._noise(own, 64, 64)[:1], expected)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the components that are loaded alone from now on."""
    names: list[str] = []
    whole = loading.load_component

    def counted(model: GeneratorProfile, name: str) -> Any:
        names.append(name)
        return whole(model, name)

    monkeypatch.setattr(loading, "load_component", counted)
    return names


@pytest.mark.parametrize("role", ["cloud", "edge"])
def test_a_text_encoder_on_demand_reads_alike_and_leaves(
    profile: Profile, role: Any, loaded: list[str]
) -> None:
    kept = Generator.from_profile(profile, role)
    away = Generator.from_profile(profile, role, place(keep_text_encoder=False))
    assert away.pipeline.text_encoder is None
    away.reader.prepare([PROMPT, LONG])
    for prompt in (PROMPT, LONG, PROMPT):
        torch.testing.assert_close(away.latents(prompt, 1), kept.latents(prompt, 1), rtol=1e-4, atol=1e-4)
    assert loaded == ["text_encoder"]
    assert away.pipeline.text_encoder is None
    away.latents("another prompt", 1)
    assert loaded == ["text_encoder"] * 2


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_as_many_prompts_are_read_in_advance_as_are_kept(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, loaded: list[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("dekag.generation.prompts._KNOWN_MOST", 4)
    away = Generator.from_profile(profile, "cloud", place(keep_text_encoder=False))
    prompts = [f"{count} boats" for count in range(8)]
    assert away.reader.prepare(prompts) == 3  # besides the empty prompt
    loaded.clear()
    pixels = draw_images(away, prompts, range(8), tmp_path)
    assert len(loaded) == 2  # the first three are known
    kept = Generator.from_profile(profile, "cloud")
    assert kept.reader.prepare(prompts) == 8
    assert (pixels == draw_images(kept, prompts, range(8), tmp_path / "kept")).all()
    away.reader.prepare([])
    with pytest.raises(MismatchError, match="has no twin"):
        away.twin()


def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_device", lambda _, name: torch.device(name))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    place("cpu")
    assert torch.backends.cudnn.allow_tf32
    place("cuda")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "cuda:-1", ""])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="device must be auto, cpu, cuda, cuda:N or mps"):
        place(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    for name in ("cuda", "cuda:3", "mps"):
        with pytest.raises(InvalidInputError, match=r"device must be a device of this machine \(cpu\)"):
            place(name)
        with pytest.raises(InvalidInputError, match="text_device"):
            place("cpu", text_device=name)
    with pytest.raises(InvalidInputError, match="offload"):
        place("cpu", offload=True)
    assert place("auto").device == CPU


def test_all_parts_are_on_one_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_device", lambda _, name: torch.device(name))
    assert place("cuda:0", text_device="cpu").text_device == CPU
    assert place("cuda", text_device="cuda:0", offload=True).offload
    assert place("cuda:1", offload=True).text_device == torch.device("cuda:1")
    for device, other in (("cuda:0", "cuda:1"), ("cpu", "cuda"), ("mps", "cuda")):
        with pytest.raises(InvalidInputError, match=f"text_device must be cpu or {device}, the device of"):
            place(device, text_device=other)
    with pytest.raises(InvalidInputError, match="text_device must be cuda:1 or empty with offload"):
        place("cuda:1", text_device="cpu", offload=True)


@pytest.fixture
def elsewhere(profile: Profile) -> Generator:
    """The edge on a device without data, in bfloat16: as on a GPU, no tensor may meet one of the CPU."""
    generator = Generator.from_profile(profile, "edge")
    for module in (generator.pipeline.unet, generator.pipeline.vae):
        module.to("meta", torch.bfloat16)
    return generator


def test_denoiser_and_autoencoder_meet_no_tensor_of_the_cpu(elsewhere: Generator) -> None:
    unet, vae = elsewhere.pipeline.unet, elsewhere.pipeline.vae
    assert elsewhere.device.type == "meta"
    assert (
        not elsewhere.reader.pipeline_can_read
    )  # the text encoder is on the CPU, so its states are passed on
    states = elsewhere.reader.states([elsewhere.reader.windows(PROMPT)])
    there = elsewhere.for_denoiser(states["prompt_embeds"])
    noise = elsewhere.for_denoiser(torch.randn(1, 4, 8, 8))
    said = unet(noise, torch.tensor([3], device="meta"), encoder_hidden_states=there).sample
    assert (said.device.type, said.dtype) == ("meta", torch.bfloat16)
    for call, given in ((autoencoder.decode, (1, 4, 8, 8)), (autoencoder.encode, (1, 3, 64, 64))):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):  # on the way back alone
            call(vae, torch.randn(given))


ON_THE_WAY_BACK = pytest.raises(NotImplementedError, match="Cannot copy out of meta")


def test_restorer_and_encoder_meet_no_tensor_of_the_cpu(elsewhere: Generator) -> None:
    with ON_THE_WAY_BACK:
        Restorer(elsewhere).restore(torch.randn(1, 4, 8, 8), LONG, timestep=300)
    with ON_THE_WAY_BACK:
        LatentEncoder(elsewhere.decoder).encode(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize("method", ["makd", "full"])
def test_training_steps_meet_no_tensor_of_the_cpu(
    elsewhere: Generator, method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out prompt has several windows."""
    monkeypatch.setattr("dekag.training.distill.multiplying", lambda *_: nullcontext())  # not for "meta"
    pipeline = elsewhere.pipeline
    pipeline.unet.to(torch.float32)
    topic = TopicPrompts("glow", (f"{LONG} that glows", "a boat"), (LONG,), ("glow",))
    config = DistillConfig(images=4, held_out=2, steps=2, batch=2, rank=1, tokens=1, method=method)
    learnt = ImageTargets(torch.randn(3, 4, 8, 8))
    calls: list[torch.device] = []
    pipeline.unet.register_forward_hook(lambda _, given, said: calls.append(said.sample.device))
    with ON_THE_WAY_BACK:
        train(pipeline, learnt.rows(slice(2)), learnt.rows(slice(2, None)), topic, config, tmp_path)
    assert [each.type for each in calls] == ["meta"]


def test_the_autoencoder_can_have_another_format_than_its_profile_says(profile: Profile) -> None:
    placed = place(vae_dtype="bfloat16")
    plain, coarse = Generator.from_profile(profile, "edge"), Generator.from_profile(profile, "edge", placed)
    latents = plain.latents("a boat", 1)
    assert torch.equal(coarse.latents("a boat", 1), latents), "drawing is as before"
    assert coarse.model_hash == plain.model_hash
    assert coarse.identity != plain.identity, "the keys of caches differ"
    for decoder in (coarse.decoder, LatentDecoder.load(profile.edge, placed)):
        assert {each.dtype for each in decoder.vae.parameters()} == {torch.bfloat16}
        difference = decoder.decode(latents).astype(int) - plain.decoder.decode(latents)
        assert 0 < np.abs(difference).mean() < 2  # levels; an untrained autoencoder magnifies rounding
    back = Generator.from_profile(
        profile.model_copy(update={"edge": placed.formatted(profile.edge)}),
        "edge",
        place(vae_dtype="float32"),
    )
    assert back.identity == plain.identity


def test_adapters_follow_their_layer_to_its_device(elsewhere: Generator) -> None:
    unet = elsewhere.pipeline.unet
    layers = {name: each for name, each in unet.named_modules() if name.endswith(("to_q", "conv1"))}
    adapters = BatchedLora(unet)
    factors = {}
    for name, layer in layers.items():
        out, into, *kernel = layer.weight.shape
        factors[f"{name}.lora_A.weight"] = torch.randn(2, into, *kernel)
        factors[f"{name}.lora_B.weight"] = torch.randn(out, 2, *(1 for _ in kernel))
    adapters.add("a", factors)
    noise = elsewhere.for_denoiser(torch.randn(2, 4, 8, 8))
    states = elsewhere.for_denoiser(torch.randn(2, 40, 16))
    with adapters.active([["a"], []]):
        said = unet(noise, torch.tensor([3], device="meta"), encoder_hidden_states=states).sample
    assert (said.device.type, said.dtype) == ("meta", torch.bfloat16)
