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
    return (mean - _shift(vae)) * float(vae.config.scaling_factor)


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (batch, channels, h, w) -> images (batch, 3, 8h, 8w), about in [-1, 1]."""
    raw = latents / vae.config.scaling_factor + _shift(vae)
    image: torch.Tensor = vae.decode(raw.to(*device_and_dtype(vae))).sample
    return image.to(latents)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
