"""Which pipeline a generator is, and how it samples: the part of a profile that `Generator` reads."""

from __future__ import annotations

from typing import Literal, Protocol, Self

from pydantic import ConfigDict, Field

from dekag.schema import Document

REVISION = "Commit, tag or branch on the hub. Default: its main branch."
VARIANT = 'Variant of the files, such as "fp16". Default: none.'
Role = Literal["cloud", "edge"]
Dtype = Literal["float32", "bfloat16"]
"""Number formats of weights and activations. float16 is not one: Stable Diffusion 2.1 overflows in it."""


class ComponentProfile(Document):
    """A component of a pipeline that comes from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Folder, or name on a model hub.")
    subfolder: str | None = Field(default=None, description="Folder within it. Default: none.")
    revision: str | None = Field(default=None, description=REVISION)
    variant: str | None = Field(default=None, description=VARIANT)


class GeneratorProfile(Document):
    """A diffusers pipeline and its sampling settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="Folder of a diffusers pipeline, its name on a model hub, or a file with a checkpoint "
        "(.safetensors)."
    )
    revision: str | None = Field(default=None, description=REVISION)
    variant: str | None = Field(default=None, description=VARIANT)
    config: str | None = Field(
        default=None,
        description="For a checkpoint in one file: folder or hub name of a pipeline with the same "
        "configuration, tokenizer and scheduler; its weights are not needed.",
    )
    components: dict[str, ComponentProfile] = Field(
        default_factory=dict,
        description="Components that replace those of the pipeline, by name: "
        '`{"transformer": {"path": "...", "subfolder": "transformer"}}`.',
    )
    dtype: Dtype = Field(default="float32", description="Number format of denoiser and text encoder.")
    vae_dtype: Dtype = Field(default="float32", description="Number format of the autoencoder.")
    steps: int = Field(gt=0, le=200, description="Denoiser steps per image.")
    guidance_scale: float = Field(ge=1, le=30, description="Classifier-free guidance; 1 is none.")

    @property
    def formats(self) -> tuple[str, ...]:
        """The parts that do not compute in float32, with their number formats."""
        each = {"denoiser": self.dtype, "autoencoder": self.vae_dtype}
        return tuple(f"{part} {dtype}" for part, dtype in each.items() if dtype != "float32")

    def with_autoencoder_in(self, dtype: Dtype | Literal[""]) -> Self:
        """The same with another number format of the autoencoder; empty: its own."""
        return self.model_copy(update={"vae_dtype": dtype}) if dtype else self


class HasGenerators(Protocol):
    """A profile, of which only the generators matter."""

    @property
    def size(self) -> int:
        """Side of the images, pixels."""

    @property
    def cloud(self) -> GeneratorProfile:
        """The large generator."""

    @property
    def edge(self) -> GeneratorProfile:
        """The compact generator."""
