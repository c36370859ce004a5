"""A picture being painted, and a brush that draws in a subject's own coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dekag.world.styles import Rgb, Style

Point = tuple[float, float]


class Brush:
    """Draws shapes on `image`, placed at `centre` and scaled by `radius` (both in pixels).

    Shapes are given in local coordinates (-1..1, y down); every shape is painted as `style` says.
    """

    def __init__(
        self, image: Image.Image, style: Style, centre: Point, radius: float, *, subject: bool
    ) -> None:
        self._draw = ImageDraw.Draw(image)
        self._style = style
        self._centre = centre
        self._radius = radius
        self._subject = subject
        self._unit = image.width / 128

    def _at(self, x: float, y: float) -> Point:
        return self._centre[0] + x * self._radius, self._centre[1] + y * self._radius

    def _box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        return (*self._at(x - rx, y - ry), *self._at(x + rx, y + ry))

    def polygon(self, points: Sequence[Point], colour: Rgb) -> None:
        """A filled polygon through `points`."""
        paint = self._style.paint(colour, self._subject)
        corners = [self._at(x, y) for x, y in points]
        self._draw.polygon(corners, fill=paint.fill)
        if paint.stroke is not None:
            width = round(paint.width * self._unit)
            self._draw.line([*corners, corners[0], corners[1]], fill=paint.stroke, width=width, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb) -> None:
        """A filled ellipse around (x, y) with half-axes rx, ry."""
        paint = self._style.paint(colour, self._subject)
        width = round(paint.width * self._unit) if paint.stroke is not None else 0
        self._draw.ellipse(self._box(x, y, rx, ry), fill=paint.fill, outline=paint.stroke, width=width)

    def chord(self, x: float, y: float, rx: float, ry: float, colour: Rgb) -> None:
        """The upper half of an ellipse: a dome that stands on y."""
        paint = self._style.paint(colour, self._subject)
        width = round(paint.width * self._unit) if paint.stroke is not None else 0
        self._draw.chord(
            self._box(x, y, rx, ry), 180, 360, fill=paint.fill, outline=paint.stroke, width=width
        )

    def dot(self, x: float, y: float, r: float, colour: Rgb) -> None:
        """A disc without outline: eyes, spots, hubs."""
        self._draw.ellipse(self._box(x, y, r, r), fill=self._style.paint(colour, self._subject).fill)

    def line(self, points: Sequence[Point], colour: Rgb, width: float) -> None:
        """An open stroke; `width` in local units."""
        paint = self._style.paint(colour, self._subject)
        self._draw.line(
            [self._at(x, y) for x, y in points],
            fill=paint.stroke or paint.fill,
            width=max(1, round(width * self._radius)),
            joint="curve",
        )


def gradient(image: Image.Image, top: Rgb, bottom: Rgb, until: float) -> None:
    """Fill `image` from the upper edge down to `until` (share of the height) from `top` to `bottom`."""
    height = round(image.height * until)
    ramp = np.linspace(np.array(top, np.float32), np.array(bottom, np.float32), height)
    image.paste(Image.fromarray(ramp[:, None].astype(np.uint8)).resize((image.width, height)), (0, 0))
