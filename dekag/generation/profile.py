"""Profiles: the models of a system and their sampling settings.

A profile is a folder with a `profile.json`; its models are folders relative to it or names on a model hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.api.limits import MAX_PIXELS, MIN_PIXELS, PIXEL_STEP
from dekag.documents import read_json
from dekag.errors import FileError, NotFoundError
from dekag.paths import MODELS

LARGEST = 2  # largest side of a requested image, in multiples of the profile's size
Role = Literal["cloud", "edge"]


class GeneratorProfile(BaseModel):
    """A diffusers pipeline and its sampling settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Folder of a diffusers pipeline, or its name on a model hub.")
    steps: int = Field(gt=0, le=200, description="Denoiser steps per image.")
    guidance_scale: float = Field(ge=1, le=30, description="Classifier-free guidance; 1 is none.")


class ScorerProfile(BaseModel):
    """The evaluators of a profile's images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: str = Field(description="Folder of a CLIPModel, or its name on a model hub.")
    dino: str = Field(description="Folder of a Dinov2Model, or its name on a model hub.")
    probe: str | None = Field(
        default=None,
        description="Folder of an attribute probe, for images of the world that it was trained on.",
    )


class Profile(BaseModel):
    """The models of one system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(
        ge=MIN_PIXELS,
        le=MAX_PIXELS,
        multiple_of=PIXEL_STEP,
        description="Side of the images that the generators are made for, pixels: that of every image whose "
        f"size is not given. Requests may have sides of up to {LARGEST} times this.",
    )
    cloud: GeneratorProfile = Field(description="The large generator.")
    edge: GeneratorProfile = Field(description="The compact generator; its autoencoder is the user's too.")
    codec: str = Field(description="Folder of the joint source-channel codec.")
    adapters: str | None = Field(
        default=None,
        description="Folder of the codec's adapters, its transmission knowledge. Default: none.",
    )
    knowledge: str | None = Field(
        default=None,
        description="Folder of knowledge updates, one per topic, for sweeps. Default: none.",
    )
    scorer: ScorerProfile | None = Field(
        default=None, description="Scores knowledge updates; without it they carry no CLIP- and DINO-scores."
    )

    @property
    def largest(self) -> int:
        """The largest side of an image, pixels."""
        return min(LARGEST * self.size, MAX_PIXELS)


def profile_folder(name: str | Path) -> Path:
    """The folder of a profile: models/<name> if it exists, else the path itself."""
    return MODELS / name if (MODELS / name).is_dir() else Path(name)


def load_profile(name: str | Path) -> Profile:
    """The profile with that name under models/, or in that folder; model folders become absolute.

    Example:
        >>> from dekag import load_profile
        >>> load_profile("embedded").edge.steps
        8

    Raises:
        NotFoundError: there is no such profile.
        FileError: its profile.json cannot be read or is invalid; names the field.
        DocumentError: it is not valid JSON, or cannot be read without loss; names the line.
    """
    folder = profile_folder(name)
    path = folder / "profile.json"
    if not os.path.lexists(path):
        raise NotFoundError(f"no profile {str(name)!r}: {path} does not exist")
    try:
        profile = Profile.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(path, f"is not a profile: {where + ': ' if where else ''}{first['msg']}") from None

    def absolute(path: str | None) -> str | None:
        return str((folder / path).resolve()) if path and (folder / path).is_dir() else path

    def resolved(model: BaseModel, *names: str) -> dict[str, Any]:
        return {name: absolute(getattr(model, name)) for name in names}

    scorer = profile.scorer
    return profile.model_copy(
        update={
            **resolved(profile, "codec", "adapters", "knowledge"),
            "cloud": profile.cloud.model_copy(update=resolved(profile.cloud, "path")),
            "edge": profile.edge.model_copy(update=resolved(profile.edge, "path")),
            "scorer": scorer and scorer.model_copy(update=resolved(scorer, "clip", "dino", "probe")),
        }
    )
