"""Styles: how a colour is painted (fill and outline), and a filter over the finished picture.

Every style is a smooth colour map or a choice of outlines. Random textures (grain, mosaics) are left out
on purpose: an 8x latent of four channels cannot carry them, and they would drown what is being studied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rgb = tuple[int, int, int]
Pixels = npt.NDArray[np.float32]  # (height, width, 3), 0..255


@dataclass(frozen=True)
class Paint:
    """Fill and outline of one shape; `stroke` None means no outline. `width` is in 1/128 of the picture."""

    fill: Rgb
    stroke: Rgb | None
    width: float


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """`a` with `share` (0..1) of `b` in it."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def _luminance(colour: Rgb) -> float:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def _storybook(colour: Rgb, subject: bool) -> Paint:
    return Paint(colour, mix(colour, (40, 30, 50), 0.55) if subject else None, 1.5)


def _comic(colour: Rgb, subject: bool) -> Paint:
    return Paint(colour, (15, 15, 20), 3.0 if subject else 2.0)


def _neon(colour: Rgb, subject: bool) -> Paint:
    if not subject:
        return Paint(mix(colour, (12, 8, 32), 0.9), mix(colour, (40, 230, 220), 0.45), 1.5)
    glow = mix(colour, (255, 60, 200), 0.12)
    if _luminance(colour) < 0.25:
        glow = mix(glow, (120, 120, 140), 0.4)
    return Paint(mix(glow, (12, 8, 32), 0.72), glow, 3.5)


def _blueprint(colour: Rgb, subject: bool) -> Paint:
    if subject:
        return Paint((52, 96, 176), (240, 246, 255), 2.5)
    return Paint(mix((26, 62, 140), (40, 84, 168), _luminance(colour)), (140, 175, 230), 1.5)


def _plain(colour: Rgb, subject: bool) -> Paint:
    return Paint(colour, None, 0.0)


def _gray(pixels: Pixels) -> Pixels:
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def _duotone(*stops: Rgb) -> Callable[[Pixels], Pixels]:
    """Map brightness 0..255 onto a ramp through `stops`, which are evenly spaced."""
    table = np.stack(
        [np.interp(np.arange(256), np.linspace(0, 255, len(stops)), [s[c] for s in stops]) for c in range(3)],
        axis=-1,
    ).astype(np.float32)

    def apply(pixels: Pixels) -> Pixels:
        return np.asarray(table[_gray(pixels).astype(np.uint8)], np.float32)

    return apply


def _pastel(pixels: Pixels) -> Pixels:
    return 255 - (255 - pixels) * 0.5


def _negative(pixels: Pixels) -> Pixels:
    return 255 - pixels


def _watercolor(pixels: Pixels) -> Pixels:
    size = pixels.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    paper = np.clip((np.maximum(np.abs(ramp)[:, None], np.abs(ramp)[None, :]) - 0.72) / 0.2, 0, 1)[..., None]
    light = pixels * 0.8 + 48
    return np.asarray(light * (1 - paper) + np.array([250, 246, 236], np.float32) * paper, np.float32)


def _sunset(pixels: Pixels) -> Pixels:
    height = pixels.shape[0]
    glow = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None]
    tint = np.array([255, 120, 60], np.float32) * glow + np.array([90, 40, 120], np.float32) * (1 - glow)
    return np.asarray(pixels * 0.62 + tint * 0.34, np.float32)


@dataclass(frozen=True)
class Style:
    """`paint(colour, is_subject)` says how a shape is painted; `develop` filters the finished picture."""

    paint: Callable[[Rgb, bool], Paint]
    develop: Callable[[Pixels], Pixels] | None = None


STYLE_BY_NAME: dict[str, Style] = {
    "storybook": Style(_storybook),
    "pastel": Style(_storybook, _pastel),
    "comic": Style(_comic),
    "sepia": Style(_storybook, _duotone((46, 26, 12), (150, 104, 62), (250, 232, 200))),
    "negative": Style(_storybook, _negative),
    "watercolor": Style(_plain, _watercolor),
    "noir": Style(_storybook, _duotone((0, 0, 0), (70, 70, 74), (190, 190, 192), (255, 255, 255))),
    "sunset": Style(_storybook, _sunset),
    "neon": Style(_neon),
    "blueprint": Style(_blueprint),
    "thermal": Style(
        _plain, _duotone((10, 0, 60), (110, 0, 150), (230, 50, 60), (255, 170, 0), (255, 255, 170))
    ),
    "stencil": Style(_comic, _duotone((20, 50, 40), (30, 120, 90), (120, 210, 150), (235, 255, 225))),
}
