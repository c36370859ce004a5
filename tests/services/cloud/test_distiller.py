"""What a distiller loads, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dekag.generation.placement import Placement
from dekag.training.distill import Stopped
from services.cloud.distiller import Distillation
from services.cloud.jobs import DistillSpec
from services.cloud.settings import DistillerSettings


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
