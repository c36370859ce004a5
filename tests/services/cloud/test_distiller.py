"""What a distiller loads, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dekag.generation.models import Generator
from dekag.generation.placement import Placement
from dekag.training.distill import Stopped
from services.cloud.distiller import Distillation
from services.cloud.jobs import DistillSpec
from services.cloud.settings import DistillerSettings


def test_a_distillation_that_goes_on_with_its_training_loads_no_cloud(
    monkeypatch: pytest.MonkeyPatch, dummy_profile: Path, tmp_path: Path
) -> None:
    load, roles = Generator.from_profile, list[str]()

    def noted(profile: Any, role: Any, placed: Any) -> Generator:
        roles.append(role)
        return load(profile, role, placed)

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    monkeypatch.setattr(Generator, "from_profile", noted)
    monkeypatch.setattr("dekag.training.distill.distill", stop)
    settings = DistillerSettings(profile=str(dummy_profile))
    prompts = [f"a {colour} boat" for colour in ("red", "blue", "grey", "pink")]
    few = {"images": 4, "held_out": 2}
    spec = DistillSpec(topic="boats", prompts=prompts, triggers=["boat"], config=few)
    for _ in range(2):
        assert Distillation(settings, spec, tmp_path, None).run() is None
    assert roles == ["cloud", "edge", "edge"]


def test_the_edge_that_is_trained_stays_on_its_device(
    monkeypatch: pytest.MonkeyPatch, dummy_profile: Path, tmp_path: Path
) -> None:
    placed: dict[str, Placement] = {}

    def load(_: Any, role: str, where: Placement) -> None:
        placed[role] = where

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    monkeypatch.setattr("dekag.generation.placement._device", lambda _, name: torch.device(name))
    monkeypatch.setattr("dekag.generation.models.Generator.from_profile", load)
    monkeypatch.setattr("dekag.training.distill.cloud_images", lambda *_, **__: None)
    monkeypatch.setattr("dekag.training.distill.distill", stop)
    settings = DistillerSettings(profile=str(dummy_profile), device="cuda", offload=True)
    few = {"images": 4, "held_out": 2}
    prompts = [f"a {colour} boat" for colour in ("red", "blue", "grey", "pink")]
    spec = DistillSpec(topic="boats", prompts=prompts, triggers=["boat"], config=few)
    assert Distillation(settings, spec, tmp_path, None).run() is None
    assert (placed["cloud"].offload, placed["edge"].offload) == (True, False)
