"""Colour words look like what they say, and shading stays."""

from __future__ import annotations

import numpy as np
import pytest

from dekag.stickers.colour import PAINTS, from_oklab, recolour, to_oklab


def _ball(hue: float, chroma: float = 0.13) -> tuple[np.ndarray, np.ndarray]:
    """A shaded ball of one hue: lightness from 0.35 to 0.85."""
    lightness = np.linspace(0.35, 0.85, 24)[:, None] * np.ones((1, 24))
    angle = np.radians(hue)
    lab = np.stack(
        [lightness, 0 * lightness + chroma * np.cos(angle), 0 * lightness + chroma * np.sin(angle)], -1
    )
    return from_oklab(lab), np.ones((24, 24))


def _hue(pixels: np.ndarray) -> float:
    _, a, b = to_oklab(pixels).reshape(-1, 3).mean(axis=0)
    return float(np.degrees(np.arctan2(b, a)) % 360)


def test_oklab_and_back() -> None:
    pixels = np.random.default_rng(0).random((50, 3))
    np.testing.assert_allclose(from_oklab(to_oklab(pixels)), pixels, atol=1e-6)


@pytest.mark.parametrize("word", PAINTS)
@pytest.mark.parametrize("hue", [20.0, 75.0, 150.0, 250.0, 340.0])
def test_the_main_hue_becomes_the_colour_word(word: str, hue: float) -> None:
    painted = recolour(*_ball(hue), word, hue)
    away = abs((_hue(painted) - PAINTS[word].hue + 180) % 360 - 180)
    assert away < 12
    nearest = min(PAINTS, key=lambda other: abs((_hue(painted) - PAINTS[other].hue + 180) % 360 - 180))
    assert nearest == word
    lightness = to_oklab(painted)[:, 0, 0]
    assert (np.diff(lightness) > -1e-3).all()
    assert lightness[-1] - lightness[0] > 0.2


@pytest.mark.parametrize("word", PAINTS)
def test_grey_takes_a_colour_and_dark_parts_do_not(word: str) -> None:
    pixels = np.full((8, 8, 3), 0.75)
    pixels[:2] = 0.08
    painted = recolour(pixels, np.ones((8, 8)), word, None)
    assert abs((_hue(painted[2:]) - PAINTS[word].hue + 180) % 360 - 180) < 12
    np.testing.assert_allclose(painted[:2], pixels[:2], atol=1e-6)


def test_other_hues_stay() -> None:
    leaf, body = _ball(145)[0], _ball(20)[0]
    pixels = np.concatenate([leaf, body])
    painted = recolour(pixels, np.ones(pixels.shape[:2]), "blue", 20.0)
    np.testing.assert_allclose(painted[:24], leaf, atol=1e-6)
    assert np.abs(painted[24:] - body).mean() > 0.2
