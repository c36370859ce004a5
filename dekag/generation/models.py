"""Generators and the latent decoder: thin wrappers around diffusers, deterministic for a seed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from dekag.errors import DeadlineError, MismatchError
from dekag.generation import loading, placement
from dekag.generation.autoencoder import decode, encode
from dekag.generation.facts import GeneratorFacts, departures, side_in_pixels
from dekag.generation.machine import machine_placement
from dekag.generation.placement import Placement
from dekag.generation.profile import GeneratorProfile, HasGenerators, Role
from dekag.generation.prompts import PromptReader
from dekag.generation.traced_denoiser import TracedDenoiser, traced_if_possible, worth_tracing
from dekag.generation.trajectories import Trajectories, of_steps, recorded
from dekag.numerics import check_finite

_Key = TypeVar("_Key", int, tuple[Any, ...])
OnStep = Callable[[int, torch.Tensor], None]
"""Called after each denoising step with its number, from 1, and the latents that the denoiser predicts."""

PIXELS_AT_ONCE = 2**20
"""Largest number of pixels in a batch; bounds the memory for generating and decoding."""


class LatentDecoder:
    """Turns latents into images: the decoder half of an AutoencoderKL."""

    def __init__(self, vae: Any, model_hash: str) -> None:
        # this memory layout is faster on a CPU
        self.vae = vae.eval().to(memory_format=torch.channels_last)
        self.model_hash = model_hash

    @classmethod
    def load(cls, model: GeneratorProfile, placed: Placement | None = None) -> Self:
        """Load the autoencoder of a generator's pipeline.

        Args:
            model: the generator.
            placed: where it computes; default: as the machine's settings say.

        Raises:
            NotFoundError: it is not on this machine.
            InvalidInputError: a setting of the machine is invalid.
        """
        placed = placed or machine_placement()
        vae = loading.load_component(placed.formatted(model), "vae").to(placed.device)
        return cls(vae, loading.autoencoder_hash(model))

    @property
    def factor(self) -> int:
        """Pixels for each latent position, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.inference_mode()
    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (batch, channels, h, w) float32 -> images (batch, 3, 8h, 8w), about in [-1, 1].

        A large batch is decoded in parts.
        """
        rows = max(1, PIXELS_AT_ONCE // (self.factor**2 * latents.shape[2] * latents.shape[3]))
        return torch.cat([decode(self.vae, part) for part in latents.split(rows)])

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor, seeds: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """Latents (batch, 4, h, w) float32 -> pixels (batch, 8h, 8w, 3) uint8.

        Args:
            latents: (batch, 4, h, w) float32.
            seeds: seeds of the rows, for error messages.

        Raises:
            NumericalError: a pixel is not finite.
        """
        images = self.images(latents)
        check_finite(images, "render", seeds=seeds, model_hash=self.model_hash)
        pixels = images.add(1).mul(127.5).clamp(0, 255).round().to("cpu", torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


class LatentEncoder:
    """Turns images into latents: the encoder half of the autoencoder that a `LatentDecoder` holds."""

    def __init__(self, decoder: LatentDecoder) -> None:
        self.vae, self.model_hash = decoder.vae, decoder.model_hash

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Pixels (batch, height, width, 3) uint8 -> latents (batch, channels, h, w) float32.

        Sides are multiples of the decoder's factor. Images are encoded one by one, so that the bits of one do
        not depend on the others.

        Raises:
            NumericalError: a latent is not finite.
        """
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = torch.cat([encode(self.vae, image) for image in images.split(1)]).cpu()
        check_finite(latents, "autoencode", model_hash=self.model_hash)
        return latents


def by_group(keys: Sequence[_Key], draw: Callable[[Sequence[int], _Key], torch.Tensor]) -> torch.Tensor:
    """Calls `draw` for each group of requests with the same key; returns rows in the given order.

    Args:
        keys: one for each request; they can be sorted. A key contains the number of windows of the prompt:
            with padding instead, long prompts in a batch would change the bits of short ones.
        draw: called with the positions of the requests in a group, and with their key.
    """
    rows: dict[int, torch.Tensor] = {}
    for key in sorted(set(keys)):
        which = [i for i, each in enumerate(keys) if each == key]
        rows |= zip(which, draw(which, key).split(1), strict=True)
    return torch.cat([rows[i] for i in range(len(keys))])


class Generator:
    """A text-to-image pipeline (Stable Diffusion, also XL, or PixArt-Sigma) with its sampling settings.

    Where no size is asked for, the sides of images are `size` pixels; by default, that for which the pipeline
    was trained.

    Attributes:
        formats: of its parts that do not compute in float32.
        devices: of its parts that do not compute on the CPU.
    """

    def __init__(
        self,
        pipeline: Any,
        model_hash: str,
        decoder: LatentDecoder,
        *,
        steps: int,
        guidance_scale: float,
        size: int | None = None,
        formats: tuple[str, ...] = (),
        devices: tuple[str, ...] = (),
        load_text_encoder: Callable[[], Any] | None = None,
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.model_hash = model_hash
        self.decoder = decoder
        self.steps = steps
        self.guidance_scale = guidance_scale
        self.formats, self.devices = formats, devices
        self._denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        self._traced: TracedDenoiser | None = None
        self._own_size = side_in_pixels(self._denoiser.config.sample_size, decoder.factor)
        if (side := size or self._own_size) is None:
            raise MismatchError("the denoiser does not say for which size it was made: a size is required")
        self.size = side
        self.reader = PromptReader(pipeline, load_text_encoder)
        self._accepted = accepted = inspect.signature(pipeline.__call__).parameters
        self._extra: dict[str, Any] = {}
        if "use_resolution_binning" in accepted:
            self._extra = {
                "use_resolution_binning": False,
                "clean_caption": False,
                "max_sequence_length": self.reader.length,
            }

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        steps: int,
        guidance_scale: float,
        size: int | None = None,
        placed: Placement | None = None,
    ) -> Self:
        """Load any folder or hub name that `DiffusionPipeline.from_pretrained` loads.

        It computes in float32, except what the machine's settings say of the autoencoder.
        """
        model = GeneratorProfile(path=str(path), steps=steps, guidance_scale=guidance_scale)
        return cls._of(model, size, placed or machine_placement())

    @classmethod
    def from_profile(cls, profile: HasGenerators, role: Role, placed: Placement | None = None) -> Self:
        """Load a profile's "cloud" or "edge", with its sampling settings and the profile's size.

        Args:
            profile: whose generator.
            role: "cloud" or "edge".
            placed: where it computes; default: as the machine's settings say (`dekag.generation.machine`).

        Raises:
            NotFoundError: a part is not on this machine.
            MismatchError: the files hold no such pipeline, or one that cannot have this role.
            InvalidInputError: a setting of the machine is invalid.
        """
        generator = cls._of(getattr(profile, role), profile.size, placed or machine_placement(role))
        kind, only = type(generator.pipeline).__name__, loading.PIPELINES[0]
        if role == "edge" and kind != only:
            raise MismatchError(f"the edge is a {kind}; must be {only}, the kind that knowledge updates fit")
        return generator

    @classmethod
    def _of(cls, model: GeneratorProfile, size: int | None, placed: Placement) -> Self:
        model = placed.formatted(model)
        pipeline = loading.load_pipeline(model, placed)
        return cls(
            pipeline,
            loading.pipeline_hash(model),
            LatentDecoder(pipeline.vae, loading.autoencoder_hash(model)),
            steps=model.steps,
            guidance_scale=model.guidance_scale,
            size=size,
            formats=model.formats,
            devices=placed.devices,
            load_text_encoder=None
            if placed.keep_text_encoder
            else lambda: loading.load_component(model, "text_encoder").to(placed.text_device),
        )

    @property
    def facts(self) -> GeneratorFacts:
        """What its image of a request depends on beside the request."""
        other = departures(self.size, self._own_size, self.formats, self.devices)
        return GeneratorFacts(self.model_hash, self.steps, self.guidance_scale, other)

    @property
    def departures(self) -> tuple[str, ...]:
        """What tells its images from its model's usual ones; see `GeneratorFacts`."""
        return self.facts.departures

    @property
    def identity(self) -> str:
        """What its image of a request depends on beside the request; the keys of caches contain it."""
        return self.facts.identity

    @property
    def bytes_in_memory(self) -> int:
        """Memory of its weights, on whatever device."""
        models = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(each.numel() * each.element_size() for model in models for each in model.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return placement.device_and_dtype(self._denoiser)[0]

    @property
    def small(self) -> bool:
        """Whether the denoiser is so small that its time is not all arithmetic: batches and traces pay."""
        return worth_tracing(self._denoiser)

    def trace(self) -> None:
        """Draw from now on by a trace of the denoiser, if that is faster; the bits stay the same.

        It takes as long as ten images of the embedded models, so it pays in a service. The denoiser must stay
        as it is: layers that are added later are not in the trace.
        """
        if self._traced is not None or not self.small:
            return
        self._traced = traced_if_possible(self._denoiser)

    def twin(self) -> Self:
        """A generator of the same models, which need no further memory, that may draw in another thread.

        Raises:
            MismatchError: its text encoder does not stay in memory.
        """
        if self.reader.encoder is None:
            raise MismatchError("a generator whose text encoder does not stay in memory has no twin")
        other = copy.copy(self)
        other.pipeline = copy.copy(self.pipeline)
        for state in ("scheduler", "tokenizer"):  # what drawing changes
            setattr(other.pipeline, state, copy.deepcopy(getattr(self.pipeline, state)))
        other.reader = PromptReader(other.pipeline)
        return other

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of an image with that size in pixels."""
        factor = self.decoder.factor
        return int(self.pipeline.vae.config.latent_channels), height // factor, width // factor

    def latents(
        self,
        prompt: str | None,
        seed: int,
        *,
        width: int | None = None,
        height: int | None = None,
        guidance_scale: float | None = None,
        should_continue: Callable[[], bool] | None = None,
        **states: Any,
    ) -> torch.Tensor:
        """The latent for `prompt` and `seed` (0..2**63-1), (1, 4, height/8, width/8) float32.

        The same arguments give the same bits. `guidance_scale` overrides the generator's own. `states`
        replace
        the prompt: the pipeline's arguments `prompt_embeds` and `negative_prompt_embeds`.

        Raises:
            DeadlineError, NumericalError: as `batch`.
        """
        return self.batch(
            None if prompt is None else [prompt],
            [seed],
            width=width,
            height=height,
            guidance_scale=guidance_scale,
            should_continue=should_continue,
            **states,
        )

    @torch.inference_mode()
    def batch(
        self,
        prompts: Sequence[str] | None,
        seeds: Sequence[int],
        *,
        width: int | None = None,
        height: int | None = None,
        guidance_scale: float | None = None,
        steps: int | None = None,
        negative_prompt: str = "",
        should_continue: Callable[[], bool] | None = None,
        on_step: OnStep | None = None,
        **states: Any,
    ) -> torch.Tensor:
        """Latents of a batch of prompts with a seed each, (n, 4, height/8, width/8) float32.

        They differ from those of `latents` by rounding. Prompts with different numbers of windows are
        generated in separate batches.

        Args:
            prompts: one for each image; None if `states` replace them.
            seeds: 0..2**63-1.
            width, height: pixels; default: the generator's size.
            guidance_scale: overrides the generator's own.
            steps: number of denoising steps; overrides the generator's own.
            negative_prompt: what the images are guided away from; `states` have their own.
            should_continue: called after each step; False stops the generation.
            on_step: called after each step with the latents of the batch that the denoiser predicts or,
                with a sampler that does not keep its predictions, with the noisy ones. Prompts with
                different numbers of windows give separate batches.
            states: as in `latents`, with a row for each image.

        Raises:
            DeadlineError: the generation was stopped.
            InvalidInputError: the negative prompt does not fit in one window.
            NumericalError: the model produced a value that is not finite.
        """
        common: dict[str, Any] = {
            "width": width or self.size, "height": height or self.size, "guidance_scale": guidance_scale,
            "steps": steps, "should_continue": should_continue, "on_step": on_step,
        }  # fmt: skip
        read = [self.reader.windows(prompt) for prompt in prompts or ()]
        direct = self.reader.pipeline_can_read and not negative_prompt
        if all(len(windows) == 1 for windows in read) and (direct or prompts is None):
            return self._draw(prompts, seeds, **common, **states)

        def draw(which: Sequence[int], windows: int) -> torch.Tensor:
            some = [seeds[i] for i in which]
            if windows == 1 and prompts is not None and direct:
                return self._draw([prompts[i] for i in which], some, **common)
            said = self.reader.states([read[i] for i in which], negative_prompt)
            return self._draw(None, some, **common, **said)

        return by_group([len(windows) for windows in read], draw)

    def denoised(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[torch.Tensor, Trajectories]:
        """The latents of `batch`, and how they were denoised.

        Args:
            prompts, seeds: one for each image.

        Raises:
            MismatchError: trajectories of this sampler cannot be learnt from.
            NumericalError: as `batch`.
        """
        scheduler, found = self.pipeline.scheduler, dict[int, Trajectories]()

        def draw(which: Sequence[int], _: int) -> torch.Tensor:
            with recorded(scheduler) as steps:
                latents = self.batch([prompts[i] for i in which], [seeds[i] for i in which])
            some = of_steps(steps, scheduler, self.decoder.model_hash)
            for each in (some.clean, some.noise):
                check_finite(each, "generate", seeds=[seeds[i] for i in which], model_hash=self.model_hash)
            found.update((i, some.rows(slice(row, row + 1))) for row, i in enumerate(which))
            return latents

        latents = by_group([len(self.reader.windows(prompt)) for prompt in prompts], draw)
        return latents, Trajectories.joined([found[i] for i in range(len(prompts))])

    def _draw(
        self,
        prompts: Sequence[str] | None,
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        guidance_scale: float | None,
        steps: int | None,
        should_continue: Callable[[], bool] | None,
        on_step: OnStep | None,
        **states: Any,
    ) -> torch.Tensor:
        """Latents of prompts with one window each, or of states of equal length."""
        states = {name: self.for_denoiser(each) for name, each in states.items()}
        if prompts is None and self.reader.masked:
            states = {"negative_prompt": None, **states}
        watched = should_continue is not None or on_step is not None
        # one for each image: samplers that add noise at their steps go on where its first noise ended
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with self._traced.in_use() if self._traced is not None else nullcontext():
            latents: torch.Tensor = self.pipeline(
                prompt=None if prompts is None else list(prompts),
                num_inference_steps=self.steps if steps is None else steps,
                guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
                latents=self.for_denoiser(self._noise(generators, width, height)),
                generator=generators,
                width=width,
                height=height,
                output_type="latent",
                return_dict=False,
                **self._extra,
                **(self._step_callback(should_continue, on_step) if watched else {}),
                **states,
            )[0]
        latents = latents.to("cpu", torch.float32)
        check_finite(latents, "generate", seeds=seeds, model_hash=self.model_hash)
        return latents

    def _noise(self, generators: Sequence[torch.Generator], width: int, height: int) -> torch.Tensor:
        """First noise of each image, drawn in float32 on the CPU: the same for every device and format."""
        shape = (1, *self.latent_shape(width, height))
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators])

    def for_denoiser(self, values: torch.Tensor) -> torch.Tensor:
        """Values as the denoiser takes them: on its device, floating-point numbers in its format."""
        device, dtype = placement.device_and_dtype(self._denoiser)
        return values.to(device, dtype) if values.is_floating_point() else values.to(device)

    def _step_callback(
        self, should_continue: Callable[[], bool] | None, on_step: OnStep | None
    ) -> dict[str, Any]:
        """The pipeline's arguments with a callback that shows each step, and may stop the generation."""

        def after(step: int, latents: torch.Tensor) -> None:
            if should_continue is not None and not should_continue():
                raise DeadlineError("the image is no longer needed")
            if on_step is not None:
                on_step(step + 1, self._predicted(latents).to("cpu", torch.float32))

        def on_step_end(_: Any, step: int, __: Any, changed: dict[str, Any]) -> dict[str, Any]:
            after(step, changed["latents"])
            return changed

        if "callback_on_step_end" in self._accepted:
            return {"callback_on_step_end": on_step_end}
        return {"callback": lambda step, _, latents: after(step, latents), "callback_steps": 1}

    def _predicted(self, latents: torch.Tensor) -> torch.Tensor:
        """What the denoiser expects the finished latents to be; `latents` if the sampler does not keep it.

        DPM-Solver++ solves for the prediction of the data and keeps the latest ones (Lu et al.,
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022).
        """
        scheduler = self.pipeline.scheduler
        if getattr(scheduler.config, "algorithm_type", None) in ("dpmsolver++", "sde-dpmsolver++"):
            found = scheduler.model_outputs[-1]
            return latents if found is None else found
        return latents

    def image(
        self, prompt: str, seed: int, *, width: int | None = None, height: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """The image for `prompt` and `seed`, (height, width, 3) uint8."""
        batch = self.decoder.decode(self.latents(prompt, seed, width=width, height=height), [seed])
        pixels: npt.NDArray[np.uint8] = batch[0]
        return pixels
