"""A canvas for backgrounds: soft gradients and a few large shapes with smooth edges.

Positions are fractions of the image (0..1, y down), so that a scene looks the same at every size. Shapes are
anti-aliased by the distance to their edge, which takes a tenth of the time of rendering at twice the size.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import numpy.typing as npt

from dekag.stickers.colour import Colour, Plane, Planes

Line = npt.NDArray[np.float32]  # a height (fraction of the image) for every column
ALL = slice(None)


class Canvas:
    """An image in progress; `planes` are red, green and blue, (3, size, size) float32, 0..255."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.planes: Planes = np.empty((3, size, size), np.float32)
        self.x: Line = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)

    def rows(self, top: float, bottom: float) -> tuple[slice, Plane]:
        """The rows from `top` to `bottom`, and the heights of their centres as a column."""
        first = min(max(math.floor(top * self.size), 0), self.size)
        last = min(max(math.ceil(bottom * self.size), first), self.size)
        return slice(first, last), self.x[first:last, None]

    def columns(self, left: float, right: float) -> tuple[slice, Plane]:
        """The columns from `left` to `right`, and the positions of their centres as a row."""
        first = min(max(math.floor(left * self.size), 0), self.size)
        last = min(max(math.ceil(right * self.size), first), self.size)
        return slice(first, last), self.x[None, first:last]

    def blend(self, rows: slice, columns: slice, colour: Colour | Planes, cover: Plane) -> None:
        """Blend a colour or the planes of a gradient into a part of the image with opacity `cover` (0..1)."""
        for channel in range(3):
            part = self.planes[channel, rows, columns]
            part += (colour[channel] - part) * cover

    def sky(self, stops: list[tuple[float, Colour]]) -> None:
        """Fill the image with a vertical gradient through (height, colour) stops."""
        at = [height for height, _ in stops]
        for channel in range(3):
            ramp = np.interp(self.x, at, [colour[channel] for _, colour in stops])
            self.planes[channel] = ramp.astype(np.float32)[:, None]

    def level(self, height: float) -> Line:
        """A straight line at `height`."""
        return np.full(self.size, height, np.float32)

    def hills(self, rng: random.Random, base: float, swing: float, waves: int = 2) -> Line:
        """A rolling line around `base`."""
        line = self.level(base)
        for n in range(1, waves + 1):
            turn, phase = rng.uniform(0.55, 1.0) * n, rng.uniform(0, math.tau)
            line += np.float32(swing / n) * np.sin(self.x * np.float32(math.tau * turn) + np.float32(phase))
        return line

    def ground(
        self,
        line: Line,
        top: Colour,
        bottom: Colour,
        depth: float = 0.3,
        soft: float = 1.2,
        until: float = 1.0,
    ) -> None:
        """Fill the area below `line`, from colour `top` at the line to colour `bottom` at `depth` below it.

        `soft` is the width of the edge in 1/256 of the image.
        """
        rows, y = self.rows(float(line.min()) - soft / 256, until)
        below = y - line[None]
        cover = np.clip(below * np.float32(256 / soft) + np.float32(0.5), 0, 1)
        if until < 1.0:
            cover *= np.clip((np.float32(until) - y) * np.float32(256) + np.float32(0.5), 0, 1)
        shade = np.clip(below * np.float32(1 / depth), 0, 1)
        for channel in range(3):
            part = self.planes[channel, rows]
            part += (top[channel] + (bottom[channel] - top[channel]) * shade - part) * cover

    def disc(
        self, x: float, y: float, radius: float, colour: Colour, soft: float = 1.2, opacity: float = 1.0
    ) -> None:
        """A filled circle."""
        reach = radius + soft / 256
        rows, ys = self.rows(y - reach, y + reach)
        columns, xs = self.columns(x - reach, x + reach)
        far = np.hypot(xs - np.float32(x), ys - np.float32(y))
        cover = np.clip((np.float32(radius) - far) * np.float32(256 / soft) + np.float32(0.5), 0, 1)
        self.blend(rows, columns, colour, cover * np.float32(opacity))

    def crescent(self, x: float, y: float, radius: float, turn: float, colour: Colour) -> None:
        """A disc without the part covered by a smaller disc that is shifted by `turn`."""
        rows, ys = self.rows(y - radius - 0.01, y + radius + 0.01)
        columns, xs = self.columns(x - radius - 0.01, x + radius + 0.01)
        outer = np.float32(radius) - np.hypot(xs - np.float32(x), ys - np.float32(y))
        moved = np.hypot(xs - np.float32(x + turn), ys - np.float32(y - radius * 0.2))
        inside = np.minimum(outer, moved - np.float32(radius * 0.84))
        self.blend(rows, columns, colour, np.clip(inside * np.float32(256 / 1.6) + np.float32(0.5), 0, 1))

    def stroke(self, points: list[tuple[float, float]], start: float, end: float, colour: Colour) -> None:
        """A line with round ends through `points`, from radius `start` to radius `end`."""
        reach = max(start, end) + 0.006
        rows, ys = self.rows(min(y for _, y in points) - reach, max(y for _, y in points) + reach)
        columns, xs = self.columns(min(x for x, _ in points) - reach, max(x for x, _ in points) + reach)
        inside = np.full((ys.shape[0], xs.shape[1]), -1, np.float32)
        pieces = len(points) - 1
        for n, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
            dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
            away_x, away_y = xs - np.float32(x0), ys - np.float32(y0)
            along = np.clip(
                (away_x * dx + away_y * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-9)), 0, 1
            )
            far = np.hypot(away_x - along * dx, away_y - along * dy)
            radius = np.float32(start) + np.float32((end - start) / pieces) * (along + np.float32(n))
            inside = np.maximum(inside, radius - far)
        cover = np.clip(inside * np.float32(256 / 1.3) + np.float32(0.5), 0, 1)
        self.blend(rows, columns, colour, cover)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Colour,
        soft: float = 1.5,
        opacity: float = 1.0,
    ) -> None:
        """A filled ellipse."""
        edge = soft / 256 / min(rx, ry)
        rows, ys = self.rows(y - ry * (1 + edge), y + ry * (1 + edge))
        columns, xs = self.columns(x - rx * (1 + edge), x + rx * (1 + edge))
        far = np.hypot((xs - np.float32(x)) / np.float32(rx), (ys - np.float32(y)) / np.float32(ry))
        cover = np.clip((1 - far) / np.float32(edge) + np.float32(0.5), 0, 1)
        self.blend(rows, columns, colour, cover * np.float32(opacity))

    def glow(self, x: float, y: float, reach: float, colour: Colour, strength: float) -> None:
        """Light around (x, y) that fades to nothing at three times `reach`."""
        rows, ys = self.rows(y - 3 * reach, y + 3 * reach)
        columns, xs = self.columns(x - 3 * reach, x + 3 * reach)
        scale = np.float32(1 / reach)
        across = np.exp(-(((xs - np.float32(x)) * scale) ** 2))
        down = np.exp(-(((ys - np.float32(y)) * scale) ** 2))
        self.blend(rows, columns, colour, down * across * np.float32(strength))

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        colour: Colour,
        opacity: float = 1.0,
        soft: float = 1.0,
        lower: Colour | None = None,
    ) -> None:
        """A filled rectangle, from `colour` at the top to `lower` at the bottom."""
        edge, middle = np.float32(256 / soft), np.float32(0.5)
        half = soft / 512
        rows, ys = self.rows(top - half, bottom + half)
        columns, xs = self.columns(left - half, right + half)
        down = np.clip(np.minimum(ys - np.float32(top), np.float32(bottom) - ys) * edge + middle, 0, 1)
        across = np.clip(np.minimum(xs - np.float32(left), np.float32(right) - xs) * edge + middle, 0, 1)
        cover = down * across * np.float32(opacity)
        if lower is None:
            self.blend(rows, columns, colour, cover)
        else:
            share = np.clip((ys - np.float32(top)) / np.float32(bottom - top), 0, 1)
            self.blend(rows, columns, gradient(colour, lower, share), cover)

    def trapezium(
        self, x: float, top: float, bottom: float, above: float, below: float, upper: Colour, lower: Colour
    ) -> None:
        """A symmetrical trapezium at column `x`; half widths `above` at the top and `below` at the bottom."""
        reach = max(above, below) + 0.01
        rows, ys = self.rows(top - 0.01, bottom + 0.01)
        columns, xs = self.columns(x - reach, x + reach)
        share = np.clip((ys - np.float32(top)) / np.float32(bottom - top), 0, 1)
        half = np.float32(above) + np.float32(below - above) * share
        inside = np.minimum(ys - np.float32(top), np.float32(bottom) - ys)
        inside = np.minimum(half - np.abs(xs - np.float32(x)), inside)
        cover = np.clip(inside * np.float32(256) + np.float32(0.5), 0, 1)
        self.blend(rows, columns, gradient(upper, lower, share), cover)

    def cloud(self, x: float, y: float, width: float, light: Colour, shade: Colour, opacity: float) -> None:
        """A cloud with a flat base at `y`, lit from above."""
        height = width * 0.5
        rows, ys = self.rows(y - height, y + 0.01)
        columns, xs = self.columns(x - width * 0.62, x + width * 0.62)
        inside = np.full((ys.shape[0], xs.shape[1]), -1, np.float32)
        puffs = ((-0.36, -0.10, 0.17), (-0.08, -0.18, 0.26), (0.24, -0.13, 0.20), (0.44, -0.07, 0.12))
        for dx, dy, r in puffs:
            far = np.hypot(xs - np.float32(x + dx * width), ys - np.float32(y + dy * width))
            inside = np.maximum(inside, np.float32(r * width) - far)
        inside = np.minimum(inside, np.float32(y) - ys)
        cover = np.clip(inside * np.float32(256 / 2.0) + np.float32(0.5), 0, 1) * np.float32(opacity)
        share = np.clip((ys - np.float32(y - height * 0.75)) / np.float32(height * 0.75), 0, 1)
        self.blend(rows, columns, gradient(light, shade, share), cover)


def gradient(start: Colour, end: Colour, share: Plane) -> Planes:
    """The planes of a gradient from `start` to `end`; `share` (height, width or 1) is 0..1."""
    return start[:, None, None] + (end - start)[:, None, None] * share
