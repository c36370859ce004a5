"""Images to latents and back, in the scale in which denoiser, codec and channel work.

An autoencoder's raw latents have any mean and deviation; its configuration says how its denoiser scales them.
Latents outside this module are always scaled. The autoencoder may be on any device and in any number format:
what is returned is on the device and in the format of what was given.
"""

from __future__ import annotations

from typing import Any

import torch

from dekag.generation.placement import device_and_dtype


def encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Images (batch, 3, h, w) in [-1, 1] -> latents (batch, channels, h / 8, w / 8): the posterior's mean."""
    mean: torch.Tensor = vae.encode(images.to(*device_and_dtype(vae))).latent_dist.mean.to(images)
    scale, shift = _scale(vae, mean)
    return (mean - shift) * scale


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (batch, channels, h, w) -> images (batch, 3, 8h, 8w), about in [-1, 1]."""
    scale, shift = _scale(vae, latents)
    raw = latents / scale + shift
    image: torch.Tensor = vae.decode(raw.to(*device_and_dtype(vae))).sample
    return image.to(latents)


def scaling(vae: Any) -> dict[str, Any]:
    """What the configuration of an autoencoder says of the scale of its latents, except what is usual."""
    usual = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": None, "latents_std": None}
    found = {name: getattr(vae.config, name, None) for name in usual}
    return {name: value for name, value in found.items() if value != usual[name]}


def _scale(vae: Any, like: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """What raw latents are multiplied by after what is subtracted from them.

    Autoencoders such as that of Playground v2.5 have a mean and a deviation for each channel.
    """
    config = vae.config
    scale = float(config.scaling_factor)
    means, deviations = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if means is None or deviations is None:  # diffusers reads them together alone
        return scale, getattr(config, "shift_factor", None) or 0.0
    mean, deviation = (like.new_tensor(each).view(1, -1, 1, 1) for each in (means, deviations))
    return scale / deviation, mean
