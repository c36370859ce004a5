"""The request for one image, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the denoiser is run; the defaults are the model's own settings.

    Attributes:
        steps: number of denoising steps; None: the model's.
        guidance_scale: classifier-free guidance; None: the model's.
        negative_prompt: what the image is guided away from; has an effect only with guidance above 1.
        adapter_scale: factor of the low-rank adapters of knowledge updates; 1: as trained, 0: none.

    Example:
        >>> Sampling(steps=12) == Sampling()
        False
    """

    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str = ""
    adapter_scale: float = 1.0

    @property
    def key(self) -> tuple[str, ...]:
        """What distinguishes it in the key of a cache; empty for the defaults."""
        return () if self == DEFAULT_SAMPLING else (repr(self),)


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class GenerationRequest:
    """One image; equal requests give the same image.

    Attributes:
        prompt: text prompt.
        seed: 0 to 2**63 - 1.
        width, height: pixels.
        updates: content hashes of the knowledge updates to use; the generator must have loaded them.
        sampling: settings of the denoiser.
    """

    prompt: str
    seed: int
    width: int
    height: int
    updates: tuple[str, ...] = ()
    sampling: Sampling = DEFAULT_SAMPLING

    @property
    def size(self) -> tuple[int, int]:
        """Width and height; images of one size may share a batch."""
        return self.width, self.height
