"""One step of a denoiser on damaged latents: what it computes, when it does nothing, which denoisers fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dekag.errors import MismatchError, NumericalError
from dekag.generation.models import Generator
from dekag.generation.restorer import PREDICTIONS, Restorer
from dekag.profile import load_profile


@pytest.fixture(scope="module")
def edge(dummy_profile: Path) -> Generator:
    return Generator.from_profile(load_profile(dummy_profile), "edge")


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_perfect_denoiser_gives_back_the_clean_latents(edge: Generator, predicts: str) -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    signal = float(edge.pipeline.scheduler.alphas_cumprod[300])
    damaged = clean + ((1 - signal) / signal) ** 0.5 * noise
    outputs = {
        "epsilon": noise,
        "v_prediction": signal**0.5 * noise - (1 - signal) ** 0.5 * clean,
        "sample": clean,
    }

    def oracle(noisy: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
        assert int(timestep) == 300
        torch.testing.assert_close(noisy, signal**0.5 * damaged)
        return SimpleNamespace(sample=outputs[predicts])

    scheduler = SimpleNamespace(
        alphas_cumprod=edge.pipeline.scheduler.alphas_cumprod, config={"prediction_type": predicts}
    )
    generator: Any = SimpleNamespace(
        pipeline=SimpleNamespace(scheduler=scheduler, unet=oracle, maybe_free_model_hooks=lambda: None),
        reader=edge.reader,
        for_denoiser=lambda values: values,
        model_hash="oracle",
    )
    restored = Restorer(generator).restore(damaged, "a boat", timestep=300)
    torch.testing.assert_close(restored, clean, atol=1e-5, rtol=1e-5)


def test_timestep_zero_changes_nothing_and_the_prompt_matters(edge: Generator) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    restorer = Restorer(edge)
    assert restorer.restore(latents, "a boat", timestep=0) is latents
    boat, cat, nothing = (restorer.restore(latents, said, timestep=300) for said in ("a boat", "a cat", ""))
    assert not boat.equal(cat)
    assert not boat.equal(nothing)
    assert boat.equal(restorer.restore(latents, "a boat", timestep=300))
    with pytest.raises(NumericalError, match="seed 7"):
        restorer.restore(latents * float("nan"), "a boat", timestep=300, seeds=[7])


def test_a_long_prompt_is_read_whole(edge: Generator) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    long = "a red boat on the beach " * 40
    one, other = (
        Restorer(edge).restore(latents, long + end, timestep=300) for end in ("at night", "in snow")
    )
    assert not one.equal(other)


def test_a_pipeline_of_another_kind_is_refused(dummy_profile: Path) -> None:
    with pytest.raises(MismatchError, match="Stable Diffusion"):
        Restorer(Generator.from_profile(load_profile(dummy_profile), "cloud"))
