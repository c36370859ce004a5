"""What an edge-GAI learns to predict: the cloud's images from any noise, or what the cloud predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from dekag.generation.models import Generator
from dekag.generation.trajectories import Trajectories, check_alike, trained_signal
from dekag.training.diffusion_loss import DiffusionLoss

Noised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Clean latents and noise, (batch, channels, h, w) each, and timesteps, (batch,)."""

CHECKED = (0.15, 0.4, 0.65, 0.9)
"""Noise at which the held-out loss is computed: fractions of the noise schedule."""


class Targets(Protocol):
    """What is learnt from some images."""

    def __len__(self) -> int: ...

    def rows(self, part: slice) -> Self:
        """That of some of the images."""

    def drawn(self, which: torch.Tensor, loss: DiffusionLoss, generator: torch.Generator) -> Noised:
        """A sample of each of the images `which`, (batch,)."""

    def checked(self, loss: DiffusionLoss, seed: int) -> Iterator[Noised]:
        """Samples of all images that are the same at each call."""


@dataclass(frozen=True)
class ImageTargets:
    """Finished latents, to which independent noise is added: the usual diffusion loss.

    Attributes:
        latents: (images, channels, h, w).
    """

    latents: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, part: slice) -> Self:
        return type(self)(self.latents[part])

    def drawn(self, which: torch.Tensor, loss: DiffusionLoss, generator: torch.Generator) -> Noised:
        clean = self.latents[which]
        timesteps = loss.draw_timesteps(len(which), generator)
        return clean, torch.randn(clean.shape, generator=generator), timesteps

    def checked(self, loss: DiffusionLoss, seed: int) -> Iterator[Noised]:
        noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(seed))
        for share in CHECKED:
            yield self.latents, noise, torch.full((len(self.latents),), int(share * loss.timesteps))


@dataclass(frozen=True)
class TrajectoryTargets:
    """Steps of the cloud's own sampling: the edge learns what the cloud predicted there, with its guidance.

    The noise is that which the cloud had, and its prediction has none of the randomness of an image: such
    targets teach more with fewer images, and the guidance with them (Meng et al., "On Distillation of Guided
    Diffusion Models", 2023).

    Attributes:
        trajectories: of the images.
    """

    trajectories: Trajectories

    def __len__(self) -> int:
        return len(self.trajectories)

    def rows(self, part: slice) -> Self:
        return type(self)(self.trajectories.rows(part))

    def drawn(self, which: torch.Tensor, loss: DiffusionLoss, generator: torch.Generator) -> Noised:
        count, steps = len(which), len(self.trajectories.timesteps)
        spread = (torch.rand(count, generator=generator) + torch.arange(count)) / count
        return self._at(which, (spread * steps).long().clamp(max=steps - 1))

    def checked(self, loss: DiffusionLoss, seed: int) -> Iterator[Noised]:
        every, steps = torch.arange(len(self)), len(self.trajectories.timesteps)
        for step in sorted({int(share * steps) for share in CHECKED}):
            yield self._at(every, torch.full_like(every, step))

    def _at(self, images: torch.Tensor, steps: torch.Tensor) -> Noised:
        known = self.trajectories
        return known.clean[images, steps].float(), known.noise[images, steps].float(), known.timesteps[steps]


def trajectory_targets(trajectories: Trajectories, edge: Generator) -> TrajectoryTargets:
    """The targets that trajectories are for an edge.

    Raises:
        MismatchError: the edge has another autoencoder or noise schedule than the cloud.
    """
    timesteps, signal = trajectories.timesteps, trained_signal(edge.pipeline.scheduler)
    if int(timesteps.max()) >= len(signal):
        timesteps = timesteps[:0]
    same = trajectories.autoencoder == edge.decoder.model_hash
    check_alike(same, trajectories.signal, signal[timesteps])
    return TrajectoryTargets(trajectories)
