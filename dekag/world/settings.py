"""The settings: gradients and a few large shapes, each with its own horizon."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from PIL import Image

from dekag.world.canvas import Brush, Point, gradient
from dekag.world.styles import Rgb, Style


def _sky(image: Image.Image, style: Style, top: Rgb, bottom: Rgb, until: float) -> None:
    gradient(image, style.paint(top, False).fill, style.paint(bottom, False).fill, until)


def _brush(image: Image.Image, style: Style) -> Brush:
    """A brush over the whole picture: x and y 0..1 from the upper left corner."""
    return Brush(image, style, (0.0, 0.0), float(image.width), subject=False)


def _waves(height: float, swing: float, phase: float, count: float) -> list[Point]:
    line = [(x / 24, height + swing * math.sin(phase + x / 24 * count * math.tau)) for x in range(-1, 26)]
    return [*line, (1.1, 1.1), (-0.1, 1.1)]


def _meadow(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (96, 178, 240), (214, 240, 252), 0.75)
    b = _brush(image, style)
    sun = rng.choice((0.16, 0.84))
    b.dot(sun, 0.15, 0.09, (255, 232, 110))
    b.polygon(_waves(0.64, 0.05, rng.uniform(0, 6.28), 1.0), (120, 200, 96))
    b.polygon(_waves(0.78, 0.03, rng.uniform(0, 6.28), 0.8), (92, 178, 74))


def _beach(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (250, 190, 130), (255, 236, 190), 0.5)
    b = _brush(image, style)
    b.dot(rng.uniform(0.2, 0.8), 0.42, 0.12, (255, 250, 214))
    b.polygon([(-0.1, 0.46), (1.1, 0.46), (1.1, 1.1), (-0.1, 1.1)], (52, 150, 200))
    b.polygon(_waves(0.7, 0.025, rng.uniform(0, 6.28), 1.0), (244, 220, 164))


def _mountains(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (140, 160, 214), (232, 238, 250), 0.8)
    b = _brush(image, style)
    for x in (0.2 + rng.uniform(-0.06, 0.06), 0.78 + rng.uniform(-0.06, 0.06)):
        b.polygon([(x - 0.46, 0.8), (x, 0.16), (x + 0.46, 0.8)], (112, 122, 156))
        b.polygon([(x - 0.13, 0.34), (x, 0.16), (x + 0.13, 0.34)], (246, 250, 255))
    b.polygon(_waves(0.74, 0.02, rng.uniform(0, 6.28), 1.0), (236, 243, 252))


def _desert(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (60, 170, 196), (250, 226, 170), 0.7)
    b = _brush(image, style)
    x = rng.choice((0.1, 0.9))
    b.polygon(_waves(0.6, 0.06, rng.uniform(0, 6.28), 0.7), (226, 150, 78))
    b.line([(x, 0.32), (x, 0.72)], (46, 120, 76), 0.05)
    b.line([(x - 0.07, 0.42), (x - 0.07, 0.52), (x + 0.07, 0.52), (x + 0.07, 0.38)], (46, 120, 76), 0.035)
    b.polygon(_waves(0.76, 0.04, rng.uniform(0, 6.28), 0.6), (204, 118, 56))


def _city(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (44, 44, 96), (170, 120, 170), 0.8)
    b = _brush(image, style)
    b.dot(rng.choice((0.3, 0.7)), 0.12, 0.07, (250, 246, 220))
    for column, low in enumerate((0.3, 0.5, 0.36, 0.56, 0.4, 0.28)):
        left = column / 6
        top = low + rng.uniform(-0.03, 0.03)
        wall: Rgb = (66, 62, 104) if column % 2 else (86, 78, 126)
        b.polygon([(left, 1.1), (left, top), (left + 1 / 6, top), (left + 1 / 6, 1.1)], wall)
    b.polygon([(-0.1, 0.84), (1.1, 0.84), (1.1, 1.1), (-0.1, 1.1)], (70, 70, 80))


def _sea(image: Image.Image, style: Style, rng: random.Random) -> None:
    _sky(image, style, (64, 196, 214), (8, 60, 130), 1.0)
    b = _brush(image, style)
    for x, height in ((0.08, 0.5), (0.92, 0.58)):
        sway = rng.uniform(-0.04, 0.04)
        b.line([(x, 0.95), (x + sway, 0.95 - height / 2), (x - sway, 0.95 - height)], (30, 140, 110), 0.06)
    b.polygon(_waves(0.86, 0.03, rng.uniform(0, 6.28), 1.0), (206, 190, 140))


DRAW_SETTING: dict[str, Callable[[Image.Image, Style, random.Random], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "mountains": _mountains,
    "desert": _desert,
    "city": _city,
    "sea": _sea,
}
