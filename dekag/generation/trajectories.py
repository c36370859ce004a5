"""How a generator denoised images: at each step, what it read and what it predicted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dekag.errors import MismatchError
from dekag.generation import loading
from dekag.generation.profile import HasGenerators

_NOTE, _AUTOENCODER = "note", "autoencoder"
_REMEDY = 'such an edge can learn from images alone (distill.objective "images" in the profile)'


@dataclass(frozen=True)
class Trajectories:
    """The denoising of some images, from pure noise on.

    At each step, the denoiser read `sqrt(signal) * clean + sqrt(1 - signal) * noise`: `clean` is what it
    expected the finished latents to be, with its classifier-free guidance, and `noise` the rest.

    Attributes:
        timesteps: of the noise schedule, (steps,) int64.
        signal: power of the clean latents at each step, (steps,) float32; that of the noise is the rest.
        clean, noise: (images, steps, channels, h, w) float16.
        autoencoder: SHA-256 (hex) of the autoencoder that the latents belong to.
    """

    timesteps: torch.Tensor
    signal: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor
    autoencoder: str

    def __len__(self) -> int:
        return len(self.clean)

    def rows(self, part: slice) -> Self:
        """Those of some of the images."""
        clean, noise = self.clean[part], self.noise[part]
        return type(self)(self.timesteps, self.signal, clean, noise, self.autoencoder)

    def save(self, path: Path, note: str) -> None:
        """Write them; `note` says what made them."""
        tensors = {
            "timesteps": self.timesteps,
            "signal": self.signal,
            "clean": self.clean.contiguous(),
            "noise": self.noise.contiguous(),
        }
        unfinished = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, unfinished, {_NOTE: note, _AUTOENCODER: self.autoencoder})
        unfinished.replace(path)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several images of one generator."""
        clean, noise = (torch.cat([getattr(each, name) for each in parts]) for name in ("clean", "noise"))
        return cls(parts[0].timesteps, parts[0].signal, clean, noise, parts[0].autoencoder)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("timesteps", "signal", "clean", "noise")}
            return cls(**tensors, autoencoder=file.metadata()[_AUTOENCODER])


def trajectory_note(path: Path) -> str:
    """The note in a file of trajectories; empty if there is no such file."""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get(_NOTE, ""))
    except (OSError, SafetensorError):
        return ""


@dataclass(frozen=True)
class Step:
    """A step of a sampler: the timestep, the latents that the denoiser read, and what it predicted."""

    timestep: int
    noisy: torch.Tensor
    predicted: torch.Tensor


@contextmanager
def recorded(scheduler: Any) -> Iterator[list[Step]]:
    """Inside the context, the steps of a sampler are kept in the list."""
    seen: list[Step] = []
    step = scheduler.step

    @functools.wraps(step)
    def recording(
        predicted: torch.Tensor, timestep: Any, noisy: torch.Tensor, *args: Any, **named: Any
    ) -> Any:
        seen.append(Step(int(timestep), noisy.clone(), predicted.clone()))
        return step(predicted, timestep, noisy, *args, **named)

    scheduler.step = recording
    try:
        yield seen
    finally:
        del scheduler.step


def of_steps(steps: Sequence[Step], scheduler: Any, autoencoder: str) -> Trajectories:
    """The trajectories of a batch.

    Args:
        steps: from `recorded`.
        scheduler: the sampler.
        autoencoder: as in `Trajectories`.

    Raises:
        MismatchError: the sampler has another kind of noise schedule, or its model predicts something else.
    """
    predicts = scheduler.config.prediction_type
    timesteps = torch.tensor([each.timestep for each in steps])
    signal = signal_of(scheduler)[timesteps]
    shape = (1, -1, 1, 1, 1)
    kept, spoilt = signal.sqrt().view(shape), (1 - signal).sqrt().view(shape)
    noisy = torch.stack([each.noisy.cpu().float() for each in steps], 1)
    said = torch.stack([each.predicted.cpu().float() for each in steps], 1)
    if predicts == "v_prediction":
        clean, noise = kept * noisy - spoilt * said, spoilt * noisy + kept * said
    elif predicts == "epsilon":
        clean, noise = (noisy - spoilt * said) / kept, said
    else:
        raise MismatchError(f"a denoiser that predicts {predicts!r} has no trajectories: only noise or v")
    return Trajectories(timesteps, signal, clean.half(), noise.half(), autoencoder)


def check_teachable(profile: HasGenerators) -> None:
    """Raises MismatchError if the edge of a profile cannot learn from trajectories of its cloud.

    Raises:
        NotFoundError: a part is not on this machine.
        MismatchError: also if a part is not what a pipeline needs.
    """
    cloud, edge = profile.cloud, profile.edge
    hashes = [loading.autoencoder_hash(each) for each in (cloud, edge)]
    samplers = [loading.load_component(each, "scheduler") for each in (cloud, edge)]
    check_alike(hashes[0] == hashes[1], signal_of(samplers[0]), trained_signal(samplers[1]))


def signal_of(scheduler: Any) -> torch.Tensor:
    """Power of the clean latents at each timestep of a sampler's noise schedule, (timesteps,) float32.

    Raises:
        MismatchError: it has another kind of noise schedule.
    """
    if not hasattr(scheduler, "alphas_cumprod") or float(getattr(scheduler, "init_noise_sigma", 0)) != 1:
        kind = type(scheduler).__name__
        raise MismatchError(f"the sampler {kind} does not preserve variance: {_REMEDY}")
    signal: torch.Tensor = scheduler.alphas_cumprod.cpu().float()
    return signal


def trained_signal(scheduler: Any) -> torch.Tensor:
    """The same of the noise schedule that a denoiser was trained with, whatever sampler it draws with."""
    from diffusers import DDPMScheduler

    signal: torch.Tensor = DDPMScheduler.from_config(scheduler.config).alphas_cumprod.float()
    return signal


def check_alike(same_autoencoder: bool, cloud: torch.Tensor, edge: torch.Tensor) -> None:
    """Raises MismatchError unless an edge can learn from a cloud with these signals, (timesteps,) each."""
    if not same_autoencoder:
        raise MismatchError(f"cloud and edge have different autoencoders: {_REMEDY}")
    if cloud.shape != edge.shape or not torch.allclose(cloud, edge, atol=1e-4):
        raise MismatchError(f"cloud and edge have different noise schedules: {_REMEDY}")
