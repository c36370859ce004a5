"""Profiles: which models a system runs, and how it samples them.

A profile is a folder with a `profile.json`; its models are folders beside it or names on a model hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.documents import read_json
from dekag.errors import FileError, NotFoundError
from dekag.paths import MODELS


class GeneratorProfile(BaseModel):
    """A diffusers pipeline and how it is sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Folder of a diffusers pipeline, or its name on a model hub.")
    steps: int = Field(gt=0, le=200, description="Denoiser steps per image.")
    guidance_scale: float = Field(ge=1, le=30, description="Classifier-free guidance; 1 is none.")


class ScorerProfile(BaseModel):
    """The encoders that tell how alike two images are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: str = Field(description="Folder of a CLIPModel, or its name on a model hub.")
    dino: str = Field(description="Folder of a Dinov2Model, or its name on a model hub.")


class Profile(BaseModel):
    """The models of one system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cloud: GeneratorProfile = Field(description="The large generator.")
    edge: GeneratorProfile = Field(description="The compact generator; its autoencoder is the user's too.")
    codec: str = Field(description="Folder of the joint source-channel codec.")
    adapters: str | None = Field(
        default=None,
        description="Folder of the codec's adapters, its transmission knowledge; left out, there are none.",
    )
    knowledge: str | None = Field(
        default=None,
        description="Folder of knowledge updates, one a topic, for sweeps; left out, there are none.",
    )
    scorer: ScorerProfile | None = Field(
        default=None, description="Scores knowledge updates; without it they carry no CLIP- and DINO-scores."
    )


def profile_folder(name: str | Path) -> Path:
    """The folder of the profile of that name: the one under models/, if there is one, else that folder."""
    return MODELS / name if (MODELS / name).is_dir() else Path(name)


def load_profile(name: str | Path) -> Profile:
    """The profile of that name under models/, or in that folder; model folders come back absolute.

    Example:
        >>> from dekag import load_profile
        >>> load_profile("embedded").edge.steps
        8

    Raises:
        NotFoundError: there is no such profile.
        FileError: its profile.json cannot be read, or does not say what it must; names the field.
        DocumentError: it is no JSON, or would lose something; names the line.
    """
    folder = profile_folder(name)
    path = folder / "profile.json"
    if not os.path.lexists(path):
        raise NotFoundError(f"no profile {str(name)!r}: {path} does not exist")
    try:
        said = Profile.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(path, f"is no profile: {where + ': ' if where else ''}{first['msg']}") from None

    def located(place: str | None) -> str | None:
        return str((folder / place).resolve()) if place and (folder / place).is_dir() else place

    def with_located(model: BaseModel, *names: str) -> dict[str, Any]:
        return {name: located(getattr(model, name)) for name in names}

    return said.model_copy(
        update={
            **with_located(said, "codec", "adapters", "knowledge"),
            "cloud": said.cloud.model_copy(update=with_located(said.cloud, "path")),
            "edge": said.edge.model_copy(update=with_located(said.edge, "path")),
            "scorer": said.scorer
            and said.scorer.model_copy(update=with_located(said.scorer, "clip", "dino")),
        }
    )
