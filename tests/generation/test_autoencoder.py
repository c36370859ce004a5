"""Latents are scaled in one place, whatever the autoencoder's own scale and shift are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from dekag.generation.autoencoder import decode, encode
from dekag.generation.models import LatentDecoder, LatentEncoder
from dekag.training import distill, examples, latents
from dekag.training.worlds import STICKERS

SCALES = ((1.0, None), (0.18215, None), (0.13025, None), (1.5305, 0.0609))  # embedded, SD 2.1, SDXL, SD 3


def tiny(scaling_factor: float, shift_factor: float | None, channels: int = 4, **config: Any) -> Any:
    """An untrained autoencoder; the same weights for the same channels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        **config,
    ).eval()


@pytest.mark.parametrize(("scale", "shift"), SCALES)
@pytest.mark.parametrize("channels", [4, 16])
def test_every_way_to_latents_and_back_has_the_same_scale(
    scale: float, shift: float | None, channels: int, tmp_path: Path
) -> None:
    vae = tiny(scale, shift, channels)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.inference_mode():
        raw = vae.encode(images).latent_dist.mean
        scaled = encode(vae, images)
        assert scaled.shape == (2, channels, 8, 8)
        torch.testing.assert_close(scaled, (raw - (shift or 0)) * scale)
        torch.testing.assert_close(decode(vae, scaled), vae.decode(raw).sample)
    torch.testing.assert_close(distill.encode(vae, pixels), scaled)
    torch.testing.assert_close(LatentEncoder(LatentDecoder(vae, "")).encode(pixels), scaled)
    shown = LatentDecoder(vae, "").decode(scaled)
    with torch.inference_mode():
        own = vae.decode(raw).sample.add(1).mul(127.5).clamp(0, 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(shown.astype(int) - own).max() <= 1


def test_an_autoencoder_may_have_a_mean_and_a_deviation_for_each_channel() -> None:
    means, deviations = (-1.6574, 1.886, -1.383, 2.5155), (8.4927, 5.9022, 6.5498, 5.2299)
    vae = tiny(0.5, None, latents_mean=means, latents_std=deviations)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        raw = vae.encode(images).latent_dist.mean
        scaled = encode(vae, images)
        for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            torch.testing.assert_close(scaled[:, channel], (raw[:, channel] - mean) * 0.5 / deviation)
        torch.testing.assert_close(decode(vae, scaled), vae.decode(raw).sample)
    assert latents.autoencoder_hash(vae) != latents.autoencoder_hash(tiny(0.5, None))
    without = tiny(0.5, None, latents_mean=means)  # diffusers reads them together alone
    with torch.inference_mode():
        torch.testing.assert_close(encode(without, images), raw * 0.5)


@pytest.mark.usefixtures("shapes")
def test_latents_to_train_on_are_scaled_and_kept_by_autoencoder(tmp_path: Path) -> None:
    plain, scaled = (
        latents.encoded_scenes(tmp_path, tiny(each, None), 3, world=STICKERS) for each in (1.0, 0.18215)
    )
    torch.testing.assert_close(scaled.float(), plain.float() * 0.18215, rtol=2e-3, atol=1e-4)


@pytest.mark.usefixtures("shapes")
def test_latents_and_states_of_another_device_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors of that device have no data, so that the latents are said to be zero."""
    vae = tiny(1.0, None)
    here = latents.encoded_scenes(tmp_path, vae, 3, world=STICKERS).clone()
    sides = here.shape[1:]
    monkeypatch.setattr(latents, "encode", lambda _, images: torch.zeros(len(images), *sides))
    known = latents.autoencoder_hash(vae)
    monkeypatch.setattr(latents, "autoencoder_hash", lambda _: known)
    there = latents.encoded_scenes(tmp_path, vae, 3, world=STICKERS, device=torch.device("meta"))
    assert here.any()
    assert not there.any()

    encoder = torch.nn.Linear(2, 2)
    read = SimpleNamespace(encoder=encoder, states=lambda _: encoder.weight.detach().cpu())
    monkeypatch.setattr(examples, "weights_hash", lambda _: "same")
    monkeypatch.setattr(examples, "encoded_scenes", lambda *_, **__: here)
    whole = examples.rendered_examples(tmp_path, vae, 3, world=STICKERS, side_information=read)
    read.encoder, read.states = encoder.to("meta"), lambda _: torch.zeros(2, 2)
    other = examples.rendered_examples(tmp_path, vae, 3, world=STICKERS, side_information=read)
    assert whole.text.any()
    assert not other.text.any()


def test_the_hash_of_weights_is_of_their_bytes_in_any_number_format() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    known = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        known.update(name.encode() + b"\0" + weight.numpy().tobytes())
    assert latents.weights_hash(model) == known.hexdigest()[:12]
    assert latents.weights_hash(model.to(memory_format=torch.channels_last)) == known.hexdigest()[:12]
    assert latents.weights_hash(model.to(torch.bfloat16)) != known.hexdigest()[:12]
