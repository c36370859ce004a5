"""Profiles: which models a system runs, and how it samples them.

A profile is a folder with a `profile.json`; its models are folders beside it or names on a model hub.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dekag.errors import NotFoundError
from dekag.places import MODELS


class GeneratorProfile(BaseModel):
    """A diffusers pipeline and how it is sampled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="Folder of a diffusers pipeline, or its name on a model hub.")
    steps: int = Field(gt=0, le=200, description="Denoiser steps per image.")
    guidance_scale: float = Field(ge=1, le=30, description="Classifier-free guidance; 1 is none.")


class ScorerProfile(BaseModel):
    """The encoders that tell how alike two pictures are."""

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
    """
    folder = profile_folder(name)
    path = folder / "profile.json"
    if not path.exists():
        raise NotFoundError(f"no profile {str(name)!r}: {path} does not exist")
    raw = json.loads(path.read_text())

    def located(place: str) -> str:
        return str((folder / place).resolve()) if (folder / place).is_dir() else place

    raw["cloud"]["path"] = located(raw["cloud"]["path"])
    raw["edge"]["path"] = located(raw["edge"]["path"])
    raw["codec"] = located(raw["codec"])
    for name in {"adapters", "knowledge"} & set(raw):
        raw[name] = located(raw[name])
    if "scorer" in raw:
        raw["scorer"] = {name: located(place) for name, place in raw["scorer"].items()}
    return Profile.model_validate(raw)
