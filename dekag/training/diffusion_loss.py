"""Training loss of all denoisers: of generators and of knowledge updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dekag.errors import MismatchError

MIN_SNR_GAMMA = 5.0


class DiffusionLoss:
    """Min-SNR weighted error (gamma 5; Hang et al. 2023) of a denoiser that predicts noise or velocity.

    Args:
        scheduler: a DDPMScheduler that defines the noise schedule and the prediction type.

    Raises:
        MismatchError: the denoiser predicts something else.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        if (predicts := scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
            raise MismatchError(f"a denoiser that predicts {predicts!r} cannot be trained: only noise or v")
        self._predicts_velocity = predicts == "v_prediction"
        self.timesteps = int(scheduler.config.num_train_timesteps)
        signal = scheduler.alphas_cumprod
        snr = signal / (1 - signal)
        weights = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1 if self._predicts_velocity else snr)
        self._weights = weights.nan_to_num(nan=1.0)  # 0 / 0 of noise alone: the limit

    def draw_timesteps(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Sample a timestep from each of `batch` equal parts of the schedule, (batch,) int64.

        This reduces the variance in comparison with independent samples.
        """
        spread = (torch.rand(batch, generator=generator) + torch.arange(batch)) / batch
        return (spread * self.timesteps).long().clamp(max=self.timesteps - 1)

    def __call__(
        self,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        denoise: Callable[[torch.Tensor], torch.Tensor],
        emphasis: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean weighted error, a scalar.

        Args:
            clean, noise: (batch, 4, h, w).
            timesteps: (batch,).
            denoise: the denoiser's prediction for noisy latents, (batch, 4, h, w) -> (batch, 4, h, w).
            emphasis: loss weight of each position, (batch, 1, h, w), with mean 1; default: uniform.
        """
        target = noise
        if self._predicts_velocity:
            target = self._scheduler.get_velocity(clean, noise, timesteps)
        noisy = self._scheduler.add_noise(clean, noise, timesteps)
        errors = (denoise(noisy) - target).square()
        if emphasis is not None:
            errors = errors * emphasis
        return self.weighted(errors.mean(dim=(1, 2, 3)), timesteps)

    def weighted(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean of errors (batch,), weighted by timestep, a scalar."""
        weights = self._weights.to(errors.device)[timesteps]
        loss: torch.Tensor = (weights * errors).mean()
        return loss
