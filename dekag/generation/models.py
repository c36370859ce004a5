"""Generators and the latent decoder: thin wrappers around diffusers, deterministic for a seed."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dekag.errors import DeadlineError, NotFoundError
from dekag.generation.autoencoder import decode
from dekag.generation.profile import GeneratorProfile, Profile, Role
from dekag.generation.prompts import PromptReader
from dekag.numerics import check_finite

PIXELS_AT_ONCE = 2**20
"""Largest number of pixels in a batch; bounds the memory for generating and decoding."""

HASHED_SUFFIXES = {".safetensors", ".json", ".model"}
HASHED_NAMES = {"merges.txt", "vocab.txt"}  # of tokenizers; a note in a folder changes nothing


def folder_hash(path: Path | str) -> str:
    """SHA-256 (hex) of the names and contents of weights and configurations in a model folder.

    Of a model on a hub, its name and the commit that is in the local cache are hashed.

    Raises:
        NotFoundError: there is neither such a folder nor such a model in the cache.
    """
    folder = Path(path)
    if not folder.is_dir():
        return hashlib.sha256(f"{path}@{hub_commit(str(path))}".encode()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        hashed = file.suffix in HASHED_SUFFIXES or file.name in HASHED_NAMES
        if hashed and file.name != "training.json":
            digest.update(os.fsencode(file.relative_to(folder).as_posix()) + b"\0")
            with file.open("rb") as content:  # in pieces: weights may be larger than memory
                while piece := content.read(2**20):
                    digest.update(piece)
    return digest.hexdigest()


def hub_commit(name: str) -> str:
    """The commit of a hub's model that the local cache holds, and that loading it takes.

    Raises:
        NotFoundError: the cache holds none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True)).name
    except (HFValidationError, LocalEntryNotFoundError):
        said = f"no model {name!r}: it is neither a folder nor in the cache of the hub"
        raise NotFoundError(said) from None


def autoencoder_hash(pipeline: Path | str) -> str:
    """The hash of a pipeline's autoencoder: of its folder, or of the whole pipeline on a hub."""
    folder = Path(pipeline) / "vae"
    return folder_hash(folder if folder.is_dir() else pipeline)


class LatentDecoder:
    """Turns latents into images: the decoder half of an AutoencoderKL."""

    def __init__(self, vae: Any, model_hash: str) -> None:
        # this memory layout is faster on a CPU
        self.vae = vae.eval().to(memory_format=torch.channels_last)
        self.model_hash = model_hash

    @classmethod
    def load(cls, pipeline: Path | str) -> Self:
        """Load the autoencoder of a pipeline, a folder or a hub name."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(
            pipeline, subfolder="vae", dtype=torch.float32, use_safetensors=True
        )
        return cls(vae, autoencoder_hash(pipeline))

    @property
    def factor(self) -> int:
        """Pixels for each latent position, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor, seeds: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """Latents (batch, 4, h, w) float32 -> pixels (batch, 8h, 8w, 3) uint8.

        Args:
            latents: (batch, 4, h, w) float32.
            seeds: seeds of the rows, for error messages.

        Raises:
            NumericalError: a pixel is not finite.
        """
        rows = max(1, PIXELS_AT_ONCE // (self.factor**2 * latents.shape[2] * latents.shape[3]))
        images: torch.Tensor = torch.cat([decode(self.vae, part) for part in latents.split(rows)])
        check_finite(images, "render", seeds=seeds, model_hash=self.model_hash)
        pixels = images.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def by_windows(counts: Sequence[int], draw: Callable[[Sequence[int], int], torch.Tensor]) -> torch.Tensor:
    """Calls `draw` for groups of prompts with the same number of windows; returns rows in the given order.

    With padding instead, long prompts in a batch would change the bits of short ones.

    Args:
        counts: number of windows of each prompt.
        draw: called with the positions of the prompts in a group, and with their number of windows.
    """
    rows: dict[int, torch.Tensor] = {}
    for count in sorted(set(counts)):
        which = [i for i, each in enumerate(counts) if each == count]
        rows |= zip(which, draw(which, count).split(1), strict=True)
    return torch.cat([rows[i] for i in range(len(counts))])


class Generator:
    """A text-to-image pipeline (Stable Diffusion or PixArt-Sigma) with its sampling settings.

    Where no size is asked for, the sides of images are `size` pixels; by default, that for which the pipeline
    was trained.
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
    ) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline
        self.model_hash = model_hash
        self.decoder = decoder
        self.steps = steps
        self.guidance_scale = guidance_scale
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        self.size = denoiser.config.sample_size * decoder.factor if size is None else size
        self.reader = PromptReader(pipeline)
        self._accepted = accepted = inspect.signature(pipeline.__call__).parameters
        self._extra: dict[str, Any] = {}
        if "use_resolution_binning" in accepted:
            self._extra = {
                "use_resolution_binning": False,
                "clean_caption": False,
                "max_sequence_length": self.reader.length,
            }

    @classmethod
    def load(cls, path: Path | str, *, steps: int, guidance_scale: float, size: int | None = None) -> Self:
        """Load any folder or hub name that `DiffusionPipeline.from_pretrained` loads."""
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        decoder = LatentDecoder(pipeline.vae, autoencoder_hash(path))
        return cls(
            pipeline, folder_hash(path), decoder, steps=steps, guidance_scale=guidance_scale, size=size
        )

    @classmethod
    def from_profile(cls, profile: Profile, role: Role) -> Self:
        """Load a profile's "cloud" or "edge", with its sampling settings and the profile's size."""
        model: GeneratorProfile = getattr(profile, role)
        return cls.load(model.path, steps=model.steps, guidance_scale=model.guidance_scale, size=profile.size)

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
        should_continue: Callable[[], bool] | None = None,
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
            should_continue: called after each step; False stops the generation.
            states: as in `latents`, with a row for each image.

        Raises:
            DeadlineError: the generation was stopped.
            NumericalError: the model produced a value that is not finite.
        """
        common: dict[str, Any] = {
            "width": width or self.size, "height": height or self.size, "guidance_scale": guidance_scale,
            "should_continue": should_continue,
        }  # fmt: skip
        read = [self.reader.windows(prompt) for prompt in prompts or ()]
        if all(len(windows) == 1 for windows in read):
            return self._draw(prompts, seeds, **common, **states)

        def draw(which: Sequence[int], windows: int) -> torch.Tensor:
            some = [seeds[i] for i in which]
            if windows == 1 and prompts is not None:
                return self._draw([prompts[i] for i in which], some, **common)
            return self._draw(None, some, **common, **self.reader.states([read[i] for i in which]))

        return by_windows([len(windows) for windows in read], draw)

    def _draw(
        self,
        prompts: Sequence[str] | None,
        seeds: Sequence[int],
        *,
        width: int,
        height: int,
        guidance_scale: float | None,
        should_continue: Callable[[], bool] | None,
        **states: Any,
    ) -> torch.Tensor:
        """Latents of prompts with one window each, or of states of equal length."""
        if prompts is None and self.reader.masked:
            states = {"negative_prompt": None, **states}
        latents: torch.Tensor = self.pipeline(
            prompt=None if prompts is None else list(prompts),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale if guidance_scale is None else guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            width=width,
            height=height,
            output_type="latent",
            return_dict=False,
            **self._extra,
            **({} if should_continue is None else self._stop_callback(should_continue)),
            **states,
        )[0]
        check_finite(latents, "generate", seeds=seeds, model_hash=self.model_hash)
        return latents.float()

    def _stop_callback(self, should_continue: Callable[[], bool]) -> dict[str, Any]:
        """The pipeline's arguments with a callback that stops the generation."""

        def check() -> None:
            if not should_continue():
                raise DeadlineError("the image is no longer needed")

        def on_step_end(_: Any, __: int, ___: Any, changed: dict[str, Any]) -> dict[str, Any]:
            check()
            return changed

        if "callback_on_step_end" in self._accepted:
            return {"callback_on_step_end": on_step_end}
        return {"callback": lambda *_: check(), "callback_steps": 1}

    def image(
        self, prompt: str, seed: int, *, width: int | None = None, height: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """The image for `prompt` and `seed`, (height, width, 3) uint8."""
        batch = self.decoder.decode(self.latents(prompt, seed, width=width, height=height), [seed])
        pixels: npt.NDArray[np.uint8] = batch[0]
        return pixels
