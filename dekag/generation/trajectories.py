"""How a generator denoised images: at each step, what it read and what it predicted."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dekag.errors import MismatchError
from dekag.generation import loading
from dekag.generation.profile import GeneratorProfile, HasGenerators

if TYPE_CHECKING:
    from dekag.generation.models import Generator

_NOTE, _AUTOENCODER = "note", "autoencoder"
_TENSORS = ("timesteps", "signal", "clean", "noise")
_PREDICTED = ("v_prediction", "epsilon")
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

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Those of several images of one generator.

        Raises:
            MismatchError: they have different steps or autoencoders.
        """
        first = parts[0]
        if any(not torch.equal(each.timesteps, first.timesteps) for each in parts) or any(
            each.autoencoder != first.autoencoder for each in parts
        ):
            raise MismatchError("trajectories of different samplings cannot be learnt together")
        clean, noise = (torch.cat([getattr(each, name) for each in parts]) for name in ("clean", "noise"))
        return cls(first.timesteps, first.signal, clean, noise, first.autoencoder)


@dataclass(frozen=True)
class TrajectoryFile:
    """A file of an image's trajectory.

    Attributes:
        path: where it is.
        note: says what made it.
    """

    path: Path
    note: str

    def write(self, trajectories: Trajectories) -> None:
        """Write the trajectory of one image."""
        tensors = {name: getattr(trajectories, name).contiguous() for name in _TENSORS}
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        save_file(tensors, unfinished, {_NOTE: self.note, _AUTOENCODER: trajectories.autoencoder})
        unfinished.replace(self.path)

    def is_there(self) -> bool:
        """Whether there is such a file, and made as the note says."""
        try:
            self.read()
        except MismatchError:
            return False
        return True

    def read(self) -> Trajectories:
        """The trajectory.

        Raises:
            MismatchError: there is no such file, it is damaged, or something else made it.
        """
        try:
            with safe_open(self.path, "pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (OSError, SafetensorError) as error:
            raise MismatchError(f"{self.path} is no trajectory: {error}") from None
        if said.get(_NOTE) != self.note:
            raise MismatchError(f"{self.path} was made by another cloud, or of another prompt")
        return Trajectories(**tensors, autoencoder=said[_AUTOENCODER])


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
    timesteps = torch.tensor([each.timestep for each in steps])
    signal = signal_of(scheduler)[timesteps]
    shape = (1, -1, 1, 1, 1)
    kept, spoilt = signal.sqrt().view(shape), (1 - signal).sqrt().view(shape)
    noisy = torch.stack([each.noisy.cpu().float() for each in steps], 1)
    said = torch.stack([each.predicted.cpu().float() for each in steps], 1)
    if scheduler.config.prediction_type == "v_prediction":
        clean, noise = kept * noisy - spoilt * said, spoilt * noisy + kept * said
    else:
        clean, noise = (noisy - spoilt * said) / kept, said
    return Trajectories(timesteps, signal, clean.half(), noise.half(), autoencoder)


def check_teachable(
    profile: HasGenerators, objective: Literal["images", "trajectories"] = "trajectories"
) -> None:
    """Raises MismatchError if the edge of a profile cannot learn from its cloud's images or trajectories.

    It loads no weights, so that nothing is drawn in vain.

    Raises:
        NotFoundError: a part is not on this machine.
        MismatchError: also if a part is not what a pipeline needs.
    """
    cloud, edge = profile.cloud, profile.edge
    own = trained_signal(_sampler(edge))
    if objective == "images":
        return
    if cloud.steps < edge.steps:
        raise MismatchError(_too_few(cloud.steps, edge.steps))
    hashes = [loading.autoencoder_hash(each) for each in (cloud, edge)]
    check_alike(hashes[0] == hashes[1], signal_of(_sampler(cloud)), own)


def _sampler(model: GeneratorProfile) -> Any:
    """The sampler of a generator that is not loaded."""
    try:
        return loading.load_component(model, "scheduler")
    except OSError as error:
        raise MismatchError(f"a sampler has no configuration: {error}") from None


def check_generators(cloud: Generator, edge: Generator) -> None:
    """The same of generators."""
    if cloud.steps < edge.steps:
        raise MismatchError(_too_few(cloud.steps, edge.steps))
    signals = signal_of(cloud.pipeline.scheduler), trained_signal(edge.pipeline.scheduler)
    check_alike(cloud.decoder.model_hash == edge.decoder.model_hash, *signals)


def _too_few(cloud: int, edge: int) -> str:
    return f"the cloud takes fewer steps ({cloud}) than the edge ({edge}): {_REMEDY}"


def signal_of(scheduler: Any) -> torch.Tensor:
    """Power of the clean latents at each timestep of a sampler's noise schedule, (timesteps,) float32.

    Raises:
        MismatchError: it has another kind of noise schedule, or its model predicts something else than noise
            or velocity.
    """
    if not hasattr(scheduler, "alphas_cumprod") or float(getattr(scheduler, "init_noise_sigma", 0)) != 1:
        kind = type(scheduler).__name__
        raise MismatchError(f"the sampler {kind} does not preserve variance: {_REMEDY}")
    if not _has_own_signal(scheduler):
        raise MismatchError(f"the sampler {type(scheduler).__name__} replaces the noise schedule: {_REMEDY}")
    if (predicts := scheduler.config.prediction_type) not in _PREDICTED:
        raise MismatchError(f"a cloud that predicts {predicts!r} keeps no trajectories: {_REMEDY}")
    signal: torch.Tensor = scheduler.alphas_cumprod.cpu().float()
    return signal


def trained_signal(scheduler: Any) -> torch.Tensor:
    """The same of the noise schedule that a denoiser was trained with, whatever sampler it draws with.

    Raises:
        MismatchError: as `trained_schedule`.
    """
    signal: torch.Tensor = trained_schedule(scheduler).alphas_cumprod.float()
    return signal


def trained_schedule(scheduler: Any) -> Any:
    """The DDPMScheduler with the noise schedule that a denoiser was trained with, from that of its sampler.

    Raises:
        MismatchError: the sampler says nothing of such a schedule, as those of EDM and of flow matching. The
            schedule that diffusers takes for a missing one would be wrong.
    """
    from diffusers import DDPMScheduler

    if not hasattr(scheduler, "alphas_cumprod") or not _has_own_signal(scheduler):
        kind = type(scheduler).__name__
        raise MismatchError(
            f"the edge's sampler {kind} has no noise schedule that an update can be taught with"
        )
    return DDPMScheduler.from_config(scheduler.config)


def _has_own_signal(scheduler: Any) -> bool:
    """Whether a sampler takes the noise of its steps from `alphas_cumprod`, not from that of a flow."""
    return not scheduler.config.get("use_flow_sigmas")


def check_alike(same_autoencoder: bool, cloud: torch.Tensor, edge: torch.Tensor) -> None:
    """Raises MismatchError unless an edge can learn from a cloud with these signals, (timesteps,) each."""
    if not same_autoencoder:
        raise MismatchError(f"cloud and edge have different autoencoders: {_REMEDY}")
    if cloud.shape != edge.shape or not torch.allclose(cloud, edge, atol=1e-4):
        raise MismatchError(f"cloud and edge have different noise schedules: {_REMEDY}")
