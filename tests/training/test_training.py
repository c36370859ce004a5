"""Two steps of every training on a handful of scenes; resuming continues as if never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dekag.training.loop import TrainingRun, learning_rate_factor

SCENES = 100


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _toy_run(folder: Path) -> TrainingRun:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return TrainingRun(folder, model, [torch.optim.AdamW(model.parameters(), lr=0.01)], seed=3)


def _toy_step(run: TrainingRun):  # type: ignore[no-untyped-def]
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


def test_vae_trains_and_its_latents_are_normalised(tmp_path: Path, cache: Path) -> None:
    from dekag.training.data import rendered_scenes, to_tensor
    from dekag.training.vae import held_out_psnr, train_vae

    vae = train_vae(tmp_path, cache, steps=2, seed=1, scenes=SCENES)
    assert held_out_psnr(vae, cache, 8).isfinite().all()
    with torch.inference_mode():
        latents = vae.encode(to_tensor(rendered_scenes(cache, "train", SCENES))).latent_dist.mean
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)


def test_folding_the_normalisation_leaves_reconstructions_alone(cache: Path) -> None:
    from dekag.training.data import rendered_scenes, to_tensor
    from dekag.training.vae import new_vae, normalise_latents

    torch.manual_seed(0)
    vae = new_vae().eval()
    pixels = rendered_scenes(cache, "train", SCENES)
    images = to_tensor(pixels[:4])
    with torch.inference_mode():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        normalise_latents(vae, pixels)
        after = vae.decode(vae.encode(images).latent_dist.mean).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["edge", "cloud"])
def test_generators_take_two_steps(name: str, tmp_path: Path, cache: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from dekag.training import diffusion, text
    from dekag.training.vae import new_vae

    monkeypatch.setattr(text, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(text, "PRETRAINING_CAPTIONS", 50)
    torch.manual_seed(0)
    new_vae().save_pretrained(tmp_path / "vae")
    train = {"edge": diffusion.train_edge, "cloud": diffusion.train_cloud}[name]
    pipeline = train(tmp_path / name, cache, tmp_path / "vae", steps=2, seed=1, batch=2, scenes=SCENES)
    pipeline.save_pretrained(tmp_path / "saved")

    from dekag.generation.models import Generator

    generator = Generator.load(tmp_path / "saved", steps=2, guidance_scale=2.0)
    first = generator.latents("a red cat on the beach", 7)
    assert first.shape == (1, 4, 16, 16)
    assert torch.equal(first, generator.latents("a red cat on the beach", 7))
    assert not torch.equal(first, generator.latents("a red cat on the beach", 8))
    assert not torch.equal(first, generator.latents("a blue house in the city", 7))


def test_the_edge_never_sees_a_held_out_topic() -> None:
    from dekag.training.data import scene_number
    from dekag.training.diffusion import known_scenes
    from dekag.world import EDGE_STYLES, EDGE_SUBJECTS

    scenes = [scene_number("train", n)[0] for n in known_scenes(cloud=False, count=500)]
    assert 100 < len(scenes) < 500
    assert {s.style for s in scenes} == set(EDGE_STYLES)
    assert {s.subject for s in scenes} == set(EDGE_SUBJECTS)
    assert len(known_scenes(cloud=True, count=500)) == 500


def test_codec_probe_and_encoders_take_two_steps(tmp_path: Path, cache: Path) -> None:
    from dekag.training.codec import clean_latent_snr_db, train_codec
    from dekag.training.encoders import clip_retrieval, dino_neighbours, train_clip, train_dino
    from dekag.training.probe import rendered_accuracy, train_probe

    latents = torch.randn(70, 4, 16, 16)
    codec = train_codec(tmp_path / "codec", latents, steps=2, seed=1)
    assert -20 < clean_latent_snr_db(codec, latents) < 20
    probe = train_probe(tmp_path / "probe", cache, steps=2, seed=1, scenes=SCENES)
    assert set(rendered_accuracy(probe, cache, 8)) == {"subject", "colour", "setting", "style"}
    clip, tokenizer = train_clip(tmp_path / "clip", cache, steps=2, seed=1, scenes=SCENES)
    assert 0 <= clip_retrieval(clip, tokenizer, cache, 8) <= 1
    dino = train_dino(tmp_path / "dino", cache, steps=2, seed=1, scenes=SCENES)
    assert set(dino_neighbours(dino, cache, 8)) == {"subject", "setting", "style"}


def test_unknown_words_fall_apart_into_letters_and_are_never_lost() -> None:
    from dekag.training.text import new_cloud_tokenizer, new_edge_tokenizer

    edge, cloud = new_edge_tokenizer(), new_cloud_tokenizer()
    assert len(edge.tokenize("meadow")) == 1
    assert len(edge.tokenize("amethyst")) > 3
    for tokenizer in (edge, cloud):
        inner = tokenizer("zebra quokka 99!").input_ids[1:-1]
        assert tokenizer.unk_token_id not in inner
        assert len(inner) > 5
