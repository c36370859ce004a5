"""Colours: hex to RGB, conversion to OKLab and back, and recolouring of a sprite around its main hue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Colour = npt.NDArray[np.float32]  # red, green, blue, 0..255
Plane = npt.NDArray[np.float32]  # (height, width)
Planes = npt.NDArray[np.float32]  # (3, height, width), 0..255


@dataclass(frozen=True)
class Paint:
    """A colour word in OKLCh: hue in degrees, lightness 0..1, chroma."""

    hue: float
    lightness: float
    chroma: float


PAINTS: dict[str, Paint] = {
    "red": Paint(26, 0.60, 0.225),
    "orange": Paint(58, 0.74, 0.175),
    "yellow": Paint(97, 0.88, 0.175),
    "green": Paint(146, 0.69, 0.18),
    "blue": Paint(256, 0.61, 0.18),
    "purple": Paint(304, 0.55, 0.20),
    "pink": Paint(354, 0.76, 0.155),
}

# The mean lightness moves by this fraction towards that of the paint; shading and highlights stay.
LIGHTNESS_SHARE = 0.75

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue in the brightness

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def rgb(code: str) -> Colour:
    """`rrggbb` as an array of three numbers 0..255."""
    return np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A mixture of `a` with a fraction `share` (0..1) of `b`."""
    return np.asarray(a + (b - a) * np.float32(share), np.float32)


def to_oklab(pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """OKLab of sRGB pixels 0..1."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(np.clip(linear @ _TO_LMS.T, 0, None)) @ _TO_LAB.T)


def from_oklab(lab: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """sRGB pixels 0..1 of OKLab, clipped to the sRGB gamut."""
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(srgb, 0, 1))


def recolour(
    pixels: npt.NDArray[np.floating],
    alpha: npt.NDArray[np.floating],
    word: str,
    hue: float | None,
    reach: float = 48.0,
) -> npt.NDArray[np.float64]:
    """Give the parts of a sprite within `reach` degrees of `hue` the colour `word`.

    `pixels` (height, width, 3) and `alpha` (height, width) are 0..1. If `hue` is None, for subjects without a
    main hue, the light grey parts get the colour.
    """
    paint = PAINTS[word]
    lab = to_oklab(pixels)
    lightness = lab[..., 0]
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    angle = np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    if hue is None:
        share = np.clip((lightness - 0.30) / 0.2, 0, 1) * np.clip((0.12 - chroma) / 0.05, 0, 1)
        off = np.zeros_like(angle)
    else:
        off = (angle - hue + 180) % 360 - 180
        share = np.clip((reach - np.abs(off)) / 14, 0, 1) * np.clip((chroma - 0.045) / 0.04, 0, 1)
    weight = share * alpha * (1 if hue is None else chroma)
    total = max(float(weight.sum()), 1e-6)
    new_lightness = (
        lightness + (paint.lightness - float((weight * lightness).sum()) / total) * LIGHTNESS_SHARE
    )
    if hue is None:
        new_chroma = np.full_like(chroma, paint.chroma * 0.92)
    else:
        mean_chroma = max(float((weight * chroma).sum()) / total, 1e-6)
        new_chroma = chroma * np.clip(paint.chroma / mean_chroma, 0.6, 1.8)
    new_angle = paint.hue + off * 0.3
    radians = np.radians(new_angle)
    painted = np.stack([new_lightness, new_chroma * np.cos(radians), new_chroma * np.sin(radians)], axis=-1)
    return from_oklab(lab + (painted - lab) * share[..., None])
