"""Artwork for the tests: small shapes, drawn here, so that neither npm nor the real artwork is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dekag.stickers import assets
from dekag.stickers.colour import from_oklab
from dekag.stickers.sprites import forget_sprites
from dekag.stickers.subjects import ACCESSORIES, SUBJECT_BY_NAME, Subject

SIDE = 64


def swatch(hue: float | None) -> tuple[int, int, int]:
    """A strong colour of `hue` (degrees of OKLCh), light grey for None."""
    angle = np.radians(hue or 0)
    chroma = 0.0 if hue is None else 0.14
    pixel = from_oklab(np.array([0.7, chroma * np.cos(angle), chroma * np.sin(angle)]))
    red, green, blue = (round(float(value) * 255) for value in pixel)
    return red, green, blue


def draw(number: int, subject: Subject | None) -> Image.Image:
    """A body of the subject's main hue with a dark face, in a shape of its own, inside an empty margin."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    low, high = 6, SIDE - 6
    colour = swatch(subject.hue) if subject is not None and subject.paintable else swatch(number * 37 % 360)
    narrow = number % 5 * 3
    box = (low + narrow, low, high - narrow, high)
    (pen.ellipse, pen.rectangle, pen.rounded_rectangle)[number % 3](box, fill=colour)
    pen.ellipse((24, 20 + number % 4 * 3, 30, 28 + number % 4 * 3), fill=(20, 18, 26))
    pen.ellipse((36, 20 + number % 4 * 3, 42, 28 + number % 4 * 3), fill=(20, 18, 26))
    return picture


def save_shapes(folder: Path) -> None:
    """Save a shape for every subject and accessory, under the names of the real artwork."""
    for number, subject in enumerate(SUBJECT_BY_NAME.values()):
        draw(number, subject).save(folder / f"{subject.code}.webp", lossless=True)
    for number, (code, _) in enumerate(ACCESSORIES.values()):
        draw(number + 1, None).save(folder / f"{code}.webp", lossless=True)


@pytest.fixture
def artwork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shapes for every subject and accessory, in place of the real artwork."""
    save_shapes(tmp_path)
    monkeypatch.setenv(assets.VARIABLE, str(tmp_path))
    forget_sprites()
    yield tmp_path
    forget_sprites()
