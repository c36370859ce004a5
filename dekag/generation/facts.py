"""What results say of a generator, and keys of caches depend on; known without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dekag.generation import loading
from dekag.generation.machine import machine_placement
from dekag.generation.placement import Placement
from dekag.generation.profile import GeneratorProfile, HasGenerators, Role


@dataclass(frozen=True)
class GeneratorFacts:
    """What an image of a generator depends on beside the request.

    Attributes:
        model_hash: of all that it is loaded from.
        steps: of its sampling.
        guidance_scale: of its sampling.
        departures: what tells its images from its model's usual ones: another size, formats other than
            float32, devices other than the CPU.
    """

    model_hash: str
    steps: int
    guidance_scale: float
    departures: tuple[str, ...]

    @classmethod
    def of_profile(cls, profile: HasGenerators, role: Role, placed: Placement | None = None) -> Self:
        """Those of a profile's "cloud" or "edge", as `Generator.from_profile` would have them.

        Example:
            >>> from dekag import load_profile
            >>> from dekag.generation.facts import GeneratorFacts
            >>> GeneratorFacts.of_profile(load_profile("stickers"), "cloud").departures
            ()

        Raises:
            NotFoundError: a part is not on this machine.
            MismatchError: the files hold no pipeline.
            InvalidInputError: a setting of the machine is invalid.
        """
        placed = placed or machine_placement(role)
        model = placed.formatted(getattr(profile, role))
        other = departures(profile.size, made_for(model), model.formats, placed.devices)
        return cls(loading.pipeline_hash(model), model.steps, model.guidance_scale, other)

    @property
    def identity(self) -> str:
        """All of it in one string; the keys of caches contain it."""
        return "/".join([self.model_hash, str(self.steps), str(self.guidance_scale), *self.departures])


def departures(
    size: int, own_size: int | None, formats: tuple[str, ...], devices: tuple[str, ...]
) -> tuple[str, ...]:
    """See `GeneratorFacts`.

    Args:
        size: side of the images, pixels.
        own_size: that for which the model was made; None: it does not say.
        formats: of parts that do not compute in float32.
        devices: of parts that do not compute on the CPU.
    """
    return (*(() if size == own_size else (f"{size} pixels",)), *formats, *devices)


def made_for(model: GeneratorProfile) -> int | None:
    """Side of the images for which a generator was made, pixels; None if its denoiser does not say."""
    vae = loading.component_config(model, "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    denoiser = loading.component_config(model, loading.denoiser_name(model))
    return side_in_pixels(denoiser.get("sample_size"), factor)


def side_in_pixels(sample_size: int | list[int] | tuple[int, ...] | None, factor: int) -> int | None:
    """The `sample_size` of a denoiser, which may be a number, both sides or None, in pixels."""
    side = sample_size[0] if isinstance(sample_size, list | tuple) else sample_size
    return None if side is None else int(side * factor)
