"""Tiles: what is cut comes together again, and no tile is larger than the profile's size."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dekag.api.limits import PIXEL_STEP
from dekag.errors import InvalidInputError
from dekag.pictures import Picture, Tiling, files, folders, tiles


@given(
    width=st.integers(1, 700), height=st.integers(1, 700), size=st.sampled_from([64, 128, 256]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_cutting_and_joining_changes_no_sample(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    tiling = Tiling.of(width, height, size)
    cut = tiling.split(pixels)
    assert cut.shape == (tiling.count, tiling.tile_height, tiling.tile_width, 3)
    assert np.array_equal(tiling.join(cut), pixels)
    across = width, tiling.tile_width, tiling.columns
    down = height, tiling.tile_height, tiling.rows
    for side, tile, parts in (across, down):
        assert tile % PIXEL_STEP == 0
        assert tile <= size
        assert parts == -(-side // size)
        assert side <= tile * parts < side + PIXEL_STEP * parts
    assert tiling.source_values == pixels.size


def test_what_is_missing_repeats_the_edge() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    (tile,) = Tiling.of(3, 2, 64).split(pixels)
    assert (tile[:2, 2:] == pixels[:, 2:]).all()
    assert (tile[1:] == tile[1]).all()


@pytest.mark.parametrize("module", [files, folders, tiles])
def test_the_examples_give_what_they_show(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((4, 6), np.uint8), r"\(4, 6\) uint8"),
        (np.zeros((4, 6, 4), np.uint8), r"\(4, 6, 4\) uint8"),
        (np.zeros((0, 6, 3), np.uint8), r"\(0, 6, 3\) uint8"),
        (np.zeros((4, 6, 3)), "float64"),
        ([[[1, 2, 3]]], "list"),
    ],
)
def test_pixels_of_another_form_are_named(pixels: Any, told: str) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"^pixels must be \(height, width, 3\) uint8, RGB; got .*{told}"
    ):
        Picture(pixels, "PNG")


def test_a_tiling_of_another_picture_is_named() -> None:
    tiling = Tiling.of(300, 100, 256)
    with pytest.raises(
        InvalidInputError, match=r"^pixels must be \(100, 300, 3\) uint8; got '\(300, 100, 3\)"
    ):
        tiling.split(np.zeros((300, 100, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=r"^tiles must be \(2, 128, 160, 3\) uint8; got '\(1, 128"):
        tiling.join(np.zeros((1, 128, 160, 3), np.uint8))
    for sides in ((0, 100), (300, -1), (1.5, 100)):
        with pytest.raises(InvalidInputError, match="must be an integer of at least 1, pixels"):
            Tiling.of(*sides, 256)
