"""Both worlds at small sizes, the stickers' with shapes that the tests draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dekag.stickers import assets
from dekag.stickers.sprites import forget_sprites
from dekag.stickers.subjects import ACCESSORIES, SUBJECT_BY_NAME
from dekag.training.worlds import STICKERS, STORYBOOK, World
from tests.stickers.conftest import draw


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rendered pictures and latents are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shapes in the place of the stickers' artwork."""
    folder = tmp_path_factory.mktemp("artwork")
    codes = [subject.code for subject in SUBJECT_BY_NAME.values()] + [
        code for code, _ in ACCESSORIES.values()
    ]
    for number, code in enumerate(codes):
        draw(number, None).save(folder / f"{code}.webp", lossless=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(assets.VARIABLE, str(folder))
        forget_sprites()
        yield folder
    forget_sprites()


@pytest.fixture(scope="session", params=[STORYBOOK, STICKERS], ids=["storybook", "stickers"])
def world(request: pytest.FixtureRequest, shapes: Path) -> World:
    """Each of the worlds, at 64 pixels."""
    chosen: World = request.param
    return replace(chosen, size=64)
