"""The world at a small size, with shapes that the tests draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dekag.training.worlds import STICKERS, World


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rendered pictures and latents are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def world(shapes: Path) -> World:
    """The world, at 64 pixels."""
    return replace(STICKERS, size=64)
