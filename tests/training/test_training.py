"""Two steps of every training on a handful of scenes; resuming continues as if never interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dekag.training.data import (
    Pixels,
    image_number,
    reduced_scenes,
    rendered_masks,
    rendered_scenes,
    subject_shares,
    to_tensor,
)
from dekag.training.loop import TrainingRun, learning_rate_factor
from dekag.training.worlds import STICKERS, World

PICTURES = 60


@pytest.fixture
def pixels(cache: Path, world: World) -> Pixels:
    return rendered_scenes(cache, "train", PICTURES, world=world)


@pytest.fixture
def held_out(cache: Path, world: World) -> Pixels:
    return rendered_scenes(cache, "validation", 8, world=world)


@pytest.fixture
def small_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators of the real layers, but few and narrow, whose text encoders hardly learn to read."""
    from dekag.training import diffusion, text

    monkeypatch.setattr(text, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(text, "PRETRAINING_CAPTIONS", 50)
    monkeypatch.setattr(text, "TOKENIZER_CAPTIONS", 300)
    monkeypatch.setattr(diffusion, "CHANNELS", (8, 8, 16, 16))
    monkeypatch.setattr(diffusion, "TEXT", {"width": 32, "layers": 1})
    for module, name in ((diffusion, "PixArtTransformer2DModel"), (text, "T5Config")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda whole=whole, **config: whole(**config | {"num_layers": 1}))


def _weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _toy_run(folder: Path) -> TrainingRun[nn.Linear]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return TrainingRun(folder, model, [torch.optim.AdamW(model.parameters(), lr=0.01)], seed=3)


def _toy_step(run: TrainingRun[nn.Linear]):  # type: ignore[no-untyped-def]
    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 4, generator=generator)
        return {"loss": (run.model(x) - x.sum(1, keepdim=True)).square().mean()}

    return step


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _toy_run(tmp_path / "whole")
    whole.run(_toy_step(whole), 40)

    first = _toy_run(tmp_path / "halves")
    step = _toy_step(first)

    def until_20(at: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if at == 20:
            first.save()
            raise InterruptedError
        return step(at, generator)  # type: ignore[no-any-return]

    with pytest.raises(InterruptedError):
        first.run(until_20, 40)
    second = _toy_run(tmp_path / "halves")
    assert second.step == 20
    second.run(_toy_step(second), 40)
    torch.testing.assert_close(second.model.weight, whole.model.weight, rtol=0, atol=0)
    torch.testing.assert_close(second.average.weight, whole.average.weight, rtol=0, atol=0)


def test_learning_happens(tmp_path: Path) -> None:
    run = _toy_run(tmp_path)
    step = _toy_step(run)
    generator = torch.Generator().manual_seed(9)
    before = step(0, generator)["loss"].item()
    run.run(step, 400)
    assert step(0, generator)["loss"].item() < 0.2 * before


def test_learning_rate_rises_stays_and_falls() -> None:
    assert learning_rate_factor(0, 1000) < 0.01
    assert learning_rate_factor(500, 1000) == 1
    assert learning_rate_factor(999, 1000) < 0.01
    assert learning_rate_factor(999, 1000, cooldown_fraction=0.0) == 1
    assert learning_rate_factor(500, 1000, cooldown_fraction=1.0) == pytest.approx(0.5)


def test_renders_are_kept_by_what_made_them(cache: Path, world: World) -> None:
    first = rendered_scenes(cache, "train", 4, world=world)
    larger = rendered_scenes(cache, "train", 4, world=replace(world, size=128))
    assert first.shape == (4, 64, 64, 3)
    assert larger.shape == (4, 128, 128, 3)
    assert np.array_equal(first[3], world.render(*image_number("train", 3, world)))
    held_out = rendered_scenes(cache, "validation", 4, world=world)
    assert not np.array_equal(first, held_out)


def test_a_vae_trained_in_two_parts_is_the_one_trained_at_once(
    tmp_path: Path, pixels: Pixels, held_out: Pixels
) -> None:
    from dekag.training.vae import train_vae

    channels = (4, 8, 8, 16)
    whole = train_vae(tmp_path / "a", pixels, held_out, steps=4, seed=1, channels=channels)
    again = train_vae(tmp_path / "b", pixels, held_out, steps=4, seed=1, channels=channels)
    torch.testing.assert_close(_weights(whole), _weights(again), rtol=0, atol=0)
    other = train_vae(tmp_path / "c", pixels, held_out, steps=4, seed=2, channels=channels)
    assert not torch.equal(_weights(whole), _weights(other))


def test_an_interrupted_vae_training_continues_bit_for_bit(
    tmp_path: Path, pixels: Pixels, held_out: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dekag.training import vae

    train: dict[str, Any] = {"seed": 1, "channels": (4, 8, 8, 16)}
    # one warm-up for both lengths, so that both have the same learning rates
    monkeypatch.setattr("dekag.training.loop.learning_rate_factor", lambda *_: 1.0)
    whole = vae.train_vae(tmp_path / "whole", pixels, held_out, steps=4, **train)
    vae.train_vae(tmp_path / "parts", pixels, held_out, steps=2, **train)
    resumed = vae.train_vae(tmp_path / "parts", pixels, held_out, steps=4, **train)
    torch.testing.assert_close(_weights(resumed), _weights(whole), rtol=0, atol=0)


def test_vae_is_refined_normalised_and_measured(
    tmp_path: Path, pixels: Pixels, held_out: Pixels, world: World
) -> None:
    from dekag.training.vae import normalise_latents, refine_vae, train_vae
    from dekag.training.vae_quality import measure, save_strip

    vae = train_vae(tmp_path / "crops", pixels, held_out, steps=2, seed=1, channels=(4, 8, 8, 16))
    vae = refine_vae(tmp_path / "whole", pixels, held_out, vae, steps=2, seed=1)
    normalise_latents(vae, pixels)
    with torch.inference_mode():
        latents = vae.encode(to_tensor(pixels)).latent_dist.mean
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)
    quality, back, order = measure(vae, held_out, world)
    assert quality["worst_psnr_db"] <= quality["psnr_db"] <= quality["best_psnr_db"]
    assert quality["ssim"] < 1
    assert sorted(order) == list(range(8))
    save_strip(tmp_path / "strip.webp", held_out, back, order)
    assert (tmp_path / "strip.webp").stat().st_size > 0


def test_folding_the_normalisation_leaves_reconstructions_alone(pixels: Pixels) -> None:
    from dekag.training.vae import new_vae, normalise_latents

    torch.manual_seed(0)
    vae = new_vae(64, (4, 8, 8, 16)).eval()
    images = to_tensor(pixels[:4])
    with torch.inference_mode():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        normalise_latents(vae, pixels)
        after = vae.decode(vae.encode(images).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_a_widened_vae_starts_as_the_narrow_one(pixels: Pixels) -> None:
    from dekag.training.vae import new_vae, widened

    torch.manual_seed(0)
    vae = new_vae(64, (4, 8, 16, 24)).eval()
    images = to_tensor(pixels[:2])
    wide = widened(vae, (8, 16, 32, 48), seed=1).eval()
    assert wide.config.block_out_channels == (8, 16, 32, 48)
    with torch.inference_mode():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        after = wide.decode(wide.encode(images).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_detailed_crops_have_more_detail() -> None:
    from dekag.training.vae import random_crops

    pixels = np.full((4, 128, 128, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (4, 128, 64, 3), dtype=np.uint8)
    pixels[:, :, :64] = noise
    generator = torch.Generator().manual_seed(1)
    picked, drawn = (random_crops(pixels, generator, 32, 200, share).std(dim=(1, 2, 3)) for share in (1, 0))
    assert picked.mean() > 1.3 * drawn.mean()


@pytest.mark.parametrize("kind", ["edge", "cloud", "cloud-unet"])
@pytest.mark.usefixtures("small_generators")
def test_generators_take_two_steps(kind: str, tmp_path: Path, cache: Path, world: World) -> None:
    from dekag.generation.models import Generator
    from dekag.training.diffusion import train_generator
    from dekag.training.vae import new_vae

    torch.manual_seed(0)
    new_vae(64, (4, 8, 8, 16)).save_pretrained(tmp_path / "vae")

    def train(name: str, **more: Any) -> Any:
        return train_generator(
            kind,
            tmp_path / name,
            cache,
            tmp_path / "vae",
            world,
            steps=2,
            seed=1,
            batch=2,
            pictures=PICTURES,
            **more,
        )

    pipeline = train("first")
    denoiser = pipeline.transformer if kind == "cloud" else pipeline.unet
    other = train("second")
    same = other.transformer if kind == "cloud" else other.unet
    torch.testing.assert_close(_weights(denoiser), _weights(same), rtol=0, atol=0)

    pipeline.save_pretrained(tmp_path / "saved")
    generator = Generator.load(tmp_path / "saved", steps=2, guidance_scale=2.0)
    place = {"width": 64, "height": 64}
    first = generator.latents("a red cat on the beach", 7, **place)  # type: ignore[arg-type]
    assert first.shape == (1, 4, 8, 8)
    assert torch.equal(first, generator.latents("a red cat on the beach", 7, **place))  # type: ignore[arg-type]
    assert not torch.equal(first, generator.latents("a red cat on the beach", 8, **place))  # type: ignore[arg-type]
    assert not torch.equal(first, generator.latents("a blue house in the city", 7, **place))  # type: ignore[arg-type]

    guided = train("guided", start=tmp_path / "saved", guidance_scale=3.0)
    student = guided.transformer if kind == "cloud" else guided.unet
    assert not torch.equal(_weights(student), _weights(denoiser))


@pytest.mark.usefixtures("small_generators")
def test_a_cloud_grows_from_an_edge(tmp_path: Path, cache: Path, world: World) -> None:
    from dekag.training.diffusion import train_generator
    from dekag.training.vae import new_vae

    new_vae(64, (4, 8, 8, 16)).save_pretrained(tmp_path / "vae")
    places = (cache, tmp_path / "vae", world)
    settings: dict[str, Any] = {"seed": 1, "batch": 2, "pictures": PICTURES}
    edge = train_generator("edge", tmp_path / "edge", *places, steps=1, **settings)
    edge.save_pretrained(tmp_path / "saved")

    def grown(name: str, start: Path, steps: int) -> Any:
        return train_generator("cloud-unet", tmp_path / name, *places, steps=steps, start=start, **settings)

    cloud = grown("cloud", tmp_path / "saved", 1)
    assert cloud.unet.config.layers_per_block == 2
    assert len(cloud.tokenizer) > len(edge.tokenizer)
    cloud.save_pretrained(tmp_path / "cloud-saved")
    further = grown("further", tmp_path / "cloud-saved", 1)
    assert further.unet.config.layers_per_block == 2


def test_a_worlds_version_follows_its_code_and_not_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def version(name: str, source: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
        return World("stickers", name, 64).version

    first = version("world_a", '"""A world."""\nclass A:\n    """Of"""\n    x = 1  # one\n')
    assert version("world_b", '"""The world."""\n\nclass A:\n    # a comment\n    x = 1\n') == first
    assert version("world_c", '"""A world."""\nclass A:\n    """Of"""\n    x = 2  # one\n') != first


def test_the_share_of_the_subject_is_its_mask_over_each_latent(tmp_path: Path, shapes: Path) -> None:
    world = replace(STICKERS, size=64)
    masks = rendered_masks(tmp_path, "train", 3, world=world, workers=1)
    shares = subject_shares(tmp_path, "train", 3, world=world, workers=1)
    assert shares.shape == (3, 8, 8)
    assert 0 < shares.mean() < 200
    for n, row, column in ((0, 4, 3), (1, 5, 5), (2, 6, 2)):
        cell = masks[n, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        assert abs(float(cell.mean()) - int(shares[n, row, column])) <= 0.5


def test_an_error_on_the_subject_counts_more_than_one_behind_it() -> None:
    from diffusers import DDPMScheduler

    from dekag.training.diffusion import NOISE_SCHEDULE, SUBJECT_EMPHASIS, PromptedLatents
    from dekag.training.diffusion_loss import DiffusionLoss
    from dekag.training.text import new_edge_tokenizer

    world = replace(STICKERS, size=64)
    shares = np.zeros((40, 8, 8), np.uint8)
    shares[:, 4:, :4] = 255
    data = PromptedLatents(
        torch.zeros(40, 4, 8, 8, dtype=torch.float16),
        shares,
        new_edge_tokenizer(50, world),
        world,
        cloud=True,
        device=torch.device("cpu"),
    )
    emphasis = data.draw(2, torch.Generator().manual_seed(0)).emphasis
    torch.testing.assert_close(emphasis.mean(dim=(1, 2, 3)), torch.ones(2))
    loss, clean, timesteps = (
        DiffusionLoss(DDPMScheduler(**NOISE_SCHEDULE)),
        torch.zeros(2, 4, 8, 8),
        [500, 501],
    )

    def wrong(rows: slice) -> float:
        off = torch.zeros(2, 4, 8, 8)
        off[:, :, rows, :4] = 1
        return float(loss(clean, clean, torch.tensor(timesteps), lambda noisy: off, emphasis))

    assert wrong(slice(4, 8)) == pytest.approx((1 + SUBJECT_EMPHASIS) * wrong(slice(0, 4)), rel=1e-5)


def test_a_unet_that_learns_on_smaller_latents_has_the_same_layers() -> None:
    from dekag.training.diffusion import new_unet

    full, small = new_unet(32, (8, 8, 16, 16), 32), new_unet(16, (8, 8, 16, 16), 32, full_side=32)
    full.load_state_dict(small.state_dict())
    assert small.config["sample_size"] == 16
    states = torch.zeros(1, 77, 32)
    for side in (16, 32):
        said = small(torch.zeros(1, 4, side, side), 1, encoder_hidden_states=states).sample
        assert said.shape == (1, 4, side, side)


def test_a_plain_pipeline_draws_with_the_edge(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from dekag.training.diffusion import new_unet, sampler
    from dekag.training.text import new_clip_text_encoder, new_edge_tokenizer
    from dekag.training.vae import new_vae

    torch.manual_seed(0)
    tokenizer = new_edge_tokenizer(captions=200)
    StableDiffusionPipeline(
        vae=new_vae(128, (4, 8, 8, 16)),
        text_encoder=new_clip_text_encoder(tokenizer, width=32, layers=1),
        tokenizer=tokenizer,
        unet=new_unet(16, (8, 16, 16), 32),
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, guidance_scale=2.0, output_type="np").images
    assert image.shape == (1, 128, 128, 3)


def test_the_edge_never_sees_a_held_out_topic(shapes: Path) -> None:
    from dekag.training.diffusion import known_images

    numbers = known_images(500, STICKERS, cloud=False)
    scenes = [image_number("train", n, STICKERS)[0] for n in numbers]
    assert 50 < len(scenes) < 500
    assert {s.style for s in scenes} == set(STICKERS.module.EDGE_STYLES)
    assert {s.subject for s in scenes} <= set(STICKERS.module.EDGE_SUBJECTS)
    assert all(getattr(s, name) is None for s in scenes for name in STICKERS.optional)
    assert len(known_images(500, STICKERS, cloud=True)) == 500


def test_captions_to_draw_latents_from_say_only_what_the_edge_knows() -> None:
    from dekag.makd.topics import matching

    captions = STICKERS.edge_captions(300, seed=1)
    assert captions == STICKERS.edge_captions(300, seed=1) != STICKERS.edge_captions(300, seed=2)
    assert len(set(captions)) > 250
    triggers = {topic.name: topic.triggers for topic in STICKERS.module.TOPICS.values()}
    assert not [caption for caption in captions if matching(caption, triggers)]


def test_captions_to_draw_latents_from_leave_out_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(World, "caption", lambda _, scene, rng, *, cloud: said.append(scene) or "a scene")
    STICKERS.edge_captions(300, seed=1)
    assert len(said) == 300
    assert not any(scene.held_out for scene in said)


def test_the_cloud_sees_every_combination() -> None:
    scenes = [image_number("train", n, STICKERS)[0] for n in range(400)]
    assert any(s.companion for s in scenes)
    assert {s.accessory for s in scenes} > {"crown", "top-hat"}


def test_codec_takes_two_steps(tmp_path: Path) -> None:
    from dekag.training.codec import clean_latent_snr_db, train_codec
    from dekag.training.examples import Examples

    examples = Examples(torch.randn(70, 4, 16, 16))
    codec = train_codec(tmp_path / "codec", [examples], steps=2, seed=1)
    assert -20 < clean_latent_snr_db(codec, examples) < 20
    prompted = Examples.of(examples.latents, [torch.randn(3, 6)] * 70)
    config = {"width": 16, "blocks": 2, "fold": 4, "text_width": 6, "interleaved": True}
    reading = train_codec(tmp_path / "reading", [prompted], steps=2, seed=1, every_rate=True, **config)
    assert (reading.text_width, reading.config.fold, reading.interleaved) == (6, 4, True)
    assert -20 < clean_latent_snr_db(reading, prompted) < 20


def test_judges_take_two_steps(
    tmp_path: Path, pixels: Pixels, held_out: Pixels, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dekag.metrics.probe import AttributeProbe
    from dekag.training import encoders, text
    from dekag.training.probe import rendered_accuracy, train_probe

    monkeypatch.setattr(text, "TOKENIZER_CAPTIONS", 300)
    probe = train_probe(tmp_path / "probe", pixels, world, steps=2, seed=1)
    probe.save_pretrained(tmp_path / "saved")
    loaded = AttributeProbe.from_pretrained(tmp_path / "saved")
    assert loaded.words["subject"] == list(world.attributes["subject"])
    assert rendered_accuracy(loaded, held_out, world) == rendered_accuracy(probe, held_out, world)
    clip, tokenizer = encoders.train_clip(tmp_path / "clip", pixels, world, steps=2, seed=1)
    quality = encoders.clip_quality(clip, tokenizer, held_out, world)
    assert set(quality) == {"validation_retrieval_of_8", "damage_seen"}
    dino = encoders.train_dino(tmp_path / "dino", pixels, world, steps=2, seed=1)
    assert set(encoders.dino_quality(dino, held_out, world)) == {
        "subject", "setting", "style", "damaged", "shifted",
    }  # fmt: skip


def test_reduced_images_are_the_means_of_the_whole_ones(cache: Path, world: World) -> None:
    whole = rendered_scenes(cache, "train", 4, world=world).astype(float)
    reduced = reduced_scenes(cache, "train", 4, side=32, world=world)
    assert reduced.shape == (4, 32, 32, 3)
    assert abs(whole.reshape(4, 32, 2, 32, 2, 3).mean(axis=(2, 4)) - reduced).max() <= 0.5


def test_the_probe_sees_every_image_in_many_ways() -> None:
    from dekag.training.probe import weathered

    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)  # dark on the left
    seen = weathered(ramp, torch.Generator().manual_seed(1))
    assert seen.shape == ramp.shape
    mirrored = (seen[..., :32].mean(dim=(1, 2, 3)) > seen[..., 32:].mean(dim=(1, 2, 3))).float().mean()
    assert 0.4 < mirrored < 0.6
    again = weathered(ramp, torch.Generator().manual_seed(1))
    assert torch.equal(seen, again)


@pytest.mark.usefixtures("shapes")
def test_outline_judge_learns_where_the_subject_is(tmp_path: Path, cache: Path) -> None:
    from dekag.training.probe import outline_quality, train_outline_judge

    world = replace(STICKERS, size=128)
    pictures = [render(cache, "train", 16, world=world) for render in (rendered_scenes, rendered_masks)]
    judge = train_outline_judge(tmp_path, *pictures, steps=2, seed=1)
    quality = outline_quality(judge, *pictures)
    assert 0 < quality["agreement"] < 1


def test_outlines_agree_wherever_they_stand() -> None:
    from dekag.metrics.outline import best_overlap

    square, far = torch.zeros(2, 1, 64, 64)
    square[:, 10:30, 10:30] = 1
    far[:, 15:35, 4:24] = 1
    half = square.clone()
    half[:, 20:] = 0
    assert best_overlap(square, far).item() == pytest.approx(1, abs=1e-4)
    assert best_overlap(square, half).item() == pytest.approx(0.5, abs=1e-4)
    assert best_overlap(square, torch.zeros(1, 64, 64)).item() == pytest.approx(0, abs=1e-4)


def test_unknown_words_fall_apart_into_letters_and_are_never_lost() -> None:
    from dekag.training.text import new_cloud_tokenizer, new_edge_tokenizer

    edge, cloud = new_edge_tokenizer(world=STICKERS), new_cloud_tokenizer(world=STICKERS)
    assert len(edge.tokenize("meadow")) == 1
    assert len(edge.tokenize("amethyst")) > 2
    for tokenizer in (edge, cloud):
        inner = tokenizer("zebra quokka 99!").input_ids[1:-1]
        assert tokenizer.unk_token_id not in inner
        assert len(inner) > 5


def test_captions_fit_the_context() -> None:
    from dekag.training.text import MAX_TOKENS, new_clip_tokenizer, new_cloud_tokenizer, training_captions

    texts = [text for _, text in training_captions(500, STICKERS, cloud=True)]
    for tokenizer in (new_clip_tokenizer(world=STICKERS), new_cloud_tokenizer(world=STICKERS)):
        assert max(len(ids) for ids in tokenizer(texts).input_ids) <= MAX_TOKENS


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from services.cli.train import train

    for arguments, said in (
        (["vae", "--profile", "nowhere"], "stickers"),
        (["vae", "--device", "tpu"], "auto, cpu, cuda, cuda:N or mps"),
        (["vae", "--size", "100"], "multiple of 32"),
        (["edge", "--distil-guidance", "3"], "requires --start"),
        (["edge", "--size", "128"], "requires --out"),
    ):
        result = CliRunner().invoke(train, arguments)
        assert result.exit_code == 2
        assert said in " ".join(result.output.replace("│", "").split()), result.output


def test_a_whole_vae_training_by_its_command(
    tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from dekag.training import vae
    from services.cli.train import train

    small = {**(vae.train_vae.__kwdefaults__ or {}), "channels": (4, 8, 8, 16)}
    monkeypatch.setattr(vae.train_vae, "__kwdefaults__", small)
    arguments = ["vae", "--size", "64", "--steps", "2", "--refinement-steps", "2", "--pictures", "40"]
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "vae")]
    result = CliRunner().invoke(train, [*arguments, *folders])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "vae" / "training.json").read_text())
    assert record["steps"] == record["continues"]["steps"] == 2
    assert set(record["quality"]) >= {"psnr_db", "ssim", "decode_ms"}


@pytest.mark.usefixtures("shapes")
def test_the_quality_of_the_shipped_autoencoder_is_recorded_for_the_page(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from services.cli.train import train

    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    result = CliRunner().invoke(train, ["vae-quality", "--count", "2", "--workers", "1", *folders])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "training" / "vae-stickers.json").read_text())
    assert (record["size"], record["threads"], record["quality"]["pictures"]) == (256, 1, 2)
    assert record["quality"]["psnr_db"] > 10
    other = ["--vae", "models/stickers/vae", "--results", str(tmp_path / "other")]
    result = CliRunner().invoke(
        train, ["vae-quality", "--count", "2", "--workers", "1", *folders[:2], *other]
    )
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "other" / "training").exists()
