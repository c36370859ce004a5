"""An order is checked before anything expensive is done for it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from dekag.errors import InvalidInputError
from dekag.makd import topics
from dekag.profile import load_profile
from services.cloud import distill_request
from services.proto.cloud_pb2 import DistillRequest


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are drawn."""
    prompts: list[str] = []

    def noted(draw: Any) -> Any:
        def draw_and_note(*arguments: Any) -> str:
            prompts.append(draw(*arguments))
            return prompts[-1]

        return draw_and_note

    for name in ("world_prompt", "expanded"):
        monkeypatch.setattr(topics, name, noted(getattr(topics, name)))
    return prompts


@pytest.mark.parametrize("prompts", [[], ["a {red|blue} {car|boat|kite|drum}, neon style"]])
def test_an_order_draws_few_prompts(dummy_profile: Path, drawn: list[str], prompts: list[str]) -> None:
    request = DistillRequest(topic="snail", images=4096, prompts=prompts)
    with contextlib.suppress(InvalidInputError):  # too few different ones
        distill_request.from_proto(request, load_profile(dummy_profile))
    assert 0 < len(drawn) < 1_000
