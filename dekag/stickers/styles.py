"""Styles: filters of the whole image that use the mask of the subject.

No style uses random texture (grain, mosaics), because an 8x smaller latent with four channels cannot
represent it. All planes are float32, 0..255. Lengths are for images of 256 pixels and scale with the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from dekag.stickers.colour import LUMA, Colour, Plane, Planes, rgb

Develop = Callable[[Planes, Plane], Planes]

PIXEL_BLOCKS = 64  # blocks of pixel art along a side: 2x2 per latent pixel
INK: Colour = rgb("14121c")


def _image(plane: Plane) -> Image.Image:
    return Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8))


def _blur(plane: Plane, radius: float) -> Plane:
    """A plane smoothed over `radius` pixels; large radii use a reduced image."""
    size = plane.shape[0]
    radius *= size / 256
    picture = _image(plane)
    if radius < 4:
        return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    small = picture.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _blurred(planes: Planes, radius: float) -> Planes:
    return np.stack([_blur(plane, radius) for plane in planes])


def _flat(planes: Planes) -> Planes:
    """Flat areas with sharp edges: the median over 3 x 3 pixels at half the size."""
    size = planes.shape[-1]
    halves = [_image(plane).reduce(2).filter(ImageFilter.MedianFilter(3)) for plane in planes]
    return np.stack(
        [np.asarray(half.resize((size, size), Image.Resampling.BICUBIC), np.float32) for half in halves]
    )


def _grey(planes: Planes) -> Plane:
    return np.asarray(planes[0] * LUMA[0] + planes[1] * LUMA[1] + planes[2] * LUMA[2], np.float32)


def _slope(plane: Plane) -> Plane:
    """Magnitude of the gradient of a plane, per two pixels."""
    across = np.zeros_like(plane)
    down = np.zeros_like(plane)
    np.subtract(plane[:, 2:], plane[:, :-2], out=across[:, 1:-1])
    np.subtract(plane[2:], plane[:-2], out=down[1:-1])
    return np.asarray(np.hypot(across, down) * np.float32(plane.shape[0] / 256), np.float32)


def _steepest(planes: Planes) -> Plane:
    return np.maximum(np.maximum(_slope(planes[0]), _slope(planes[1])), _slope(planes[2]))


def _step(plane: Plane, low: float, high: float) -> Plane:
    """Smooth step: 0 below `low`, 1 above `high`."""
    share = np.clip((plane - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _lines(planes: Planes, mask: Plane, low: float, high: float, soft: float, background: float) -> Plane:
    """Lines (0..1) along the edges of an image, those of the background `background` times as strong."""
    edges = _step(_steepest(_blurred(planes, soft)), low, high)
    around = _blur(mask * 255, 1.2)
    near = np.clip(around / 128, 0, 1)
    return np.maximum(edges * (background + (1 - background) * near), _step(_slope(around), 62, 140))


def _over(below: Planes | Colour, above: Planes | Colour, cover: Plane) -> Planes:
    """`above` over `below` with opacity `cover` (0..1)."""
    low = below if below.ndim == 3 else below[:, None, None]
    high = above if above.ndim == 3 else above[:, None, None]
    return np.asarray(low + (high - low) * cover, np.float32)


def _ramp(*stops: str) -> Callable[[Plane], Planes]:
    """A function that maps brightness 0..255 to a ramp of evenly spaced colours."""
    colours = np.stack([rgb(stop) for stop in stops])
    at = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), at, colours[:, c]) for c in range(3)]).astype(np.float32)

    def apply(plane: Plane) -> Planes:
        index = np.clip(plane, 0, 255).astype(np.uint8)
        return np.stack([np.take(channel, index) for channel in table])

    return apply


def _spread(grey: Plane) -> Plane:
    """Brightness stretched over the whole range, so that dark settings stay readable."""
    low, high = (float(value) for value in np.percentile(grey[::4, ::4], (2, 98)))
    return np.asarray(np.clip((grey - low) * (230 / max(high - low, 60)) + 14, 0, 255), np.float32)


def _tones(planes: Planes, mask: Plane) -> Plane:
    """Brightness with more contrast between the subject and its background."""
    grey = _spread(_grey(planes))
    near = np.clip(_blur(mask * 255, 10.0) / 255, 0, 1) * (1 - mask)
    subject = float((grey * mask).sum()) / max(float(mask.sum()), 1.0)
    behind = float((grey * near).sum()) / max(float(near.sum()), 1.0)
    gap = subject - behind
    push = np.float32(np.copysign(max(0.0, 70 - abs(gap)), gap))
    return np.asarray(np.clip(grey + push * (mask - np.float32(0.55)), 0, 255), np.float32)


def _from_centre(size: int) -> Plane:
    """Distance from the image's centre; 1 at the middle of an edge."""
    at = np.linspace(-1, 1, size, dtype=np.float32)
    return np.asarray(np.hypot(at[:, None], at[None]), np.float32)


def _vignette(planes: Planes, strength: float) -> Planes:
    return np.asarray(planes * (1 - np.float32(strength) * _step(_from_centre(planes.shape[-1]), 0.6, 1.4)))


def _saturate(planes: Planes, amount: float) -> Planes:
    grey = _grey(planes)
    return np.asarray(grey + (planes - grey) * np.float32(amount), np.float32)


_SEPIA = _ramp("2c190d", "7d5532", "c79f6c", "f5e3bf", "fff6e0")
_THERMAL = _ramp("06063a", "3a0a86", "a1128f", "e8443a", "fb9b1c", "ffe14d", "fffbe0")
_VAPOR = _ramp("1a0b52", "5a1fa8", "d0339f", "ff7bb0", "8fd8f5", "d8fbff")


def _sepia(planes: Planes, mask: Plane) -> Planes:
    return _vignette(_SEPIA(_tones(planes, mask)), 0.45)


def _pastel(planes: Planes, mask: Plane) -> Planes:
    bright = _saturate(np.sqrt(planes * np.float32(1 / 255)) * 255, 1.1)
    light = 255 - (255 - bright) * np.float32(0.62)
    return np.asarray(light * np.float32(0.92) + rgb("ffe9f2")[:, None, None] * np.float32(0.08))


def _comic(planes: Planes, mask: Plane) -> Planes:
    bright = np.asarray(255 * np.power(planes * np.float32(1 / 255), np.float32(0.85)), np.float32)
    plain = _flat(bright)
    flat = _saturate(plain + (bright - plain) * mask, 1.45)
    peak = np.maximum(np.maximum(np.maximum(flat[0], flat[1]), flat[2]), 1)
    level = peak * np.float32(5 / 255)
    low = np.floor(level)
    flat = flat * (((low + _step(level - low, 0.40, 0.60)) * 51 + 12) / peak)
    around = _blur(mask * 255, 1.6)
    inside = _step(_steepest(_blurred(planes, 1.0)), 26, 52) * _step(around, 60, 180)
    # Dark backgrounds get no ink: only rings around stars would be visible.
    behind = _step(_steepest(_blurred(plain, 1.0)), 26, 52) * np.clip(_grey(plain) / 150, 0, 0.85)
    ink = np.maximum(np.maximum(inside, behind), _step(_slope(around), 24, 64))
    return _over(np.clip(flat, 0, 255), INK, ink)


def _pencil(planes: Planes, mask: Plane) -> Planes:
    grey = _spread(_grey(planes))
    lines = _lines(planes, mask, 9, 44, 0.9, 0.55)
    shade = (1 - _blur(grey, 1.2) / 255) * (0.12 + 0.24 * mask)
    black = _step(255 - _blur(_grey(planes), 0.7), 178, 210) * mask * 0.6
    paper = (1 - shade) * (1 - 0.85 * np.maximum(lines, black))
    return _over(rgb("26262e"), rgb("fbf8f0"), paper)


def _neon(planes: Planes, mask: Plane) -> Planes:
    lines = _lines(planes, mask, 20, 60, 1.1, 0.62)
    hue = _saturate(_blurred(planes, 2.0), 2.4)
    least = np.minimum(np.minimum(hue[0], hue[1]), hue[2])
    hue = np.clip(hue - least * np.float32(0.8), 0, 255) + 8
    hue = hue / np.maximum(np.maximum(hue[0], hue[1]), hue[2])
    tubes = hue * (lines * 255)
    glow = _blurred(tubes, 5.0) * np.float32(1.7) + _blurred(tubes, 14.0) * np.float32(0.9)
    core = _step(lines, 0.55, 1.0) * 110
    fill = hue * (mask * 20)
    dark = rgb("0e0a24")[:, None, None] + planes * np.float32(0.06)
    return np.asarray(dark + fill + glow + tubes * np.float32(0.75) + core, np.float32)


def _watercolour(planes: Planes, mask: Plane) -> Planes:
    flat = _blurred(_flat(planes), 1.4)
    at = np.linspace(0, 1, planes.shape[-1], dtype=np.float32)
    y, x = at[:, None], at[None]
    wash = 0.5 + 0.5 * np.sin(x * 7 + np.sin(y * 5) * 1.6) * np.sin(y * 6 + np.sin(x * 4) * 1.4)
    light = 255 - (255 - _saturate(flat, 1.15)) * (0.62 + 0.16 * wash)
    light = light * (1 - 0.30 * _step(_steepest(flat), 8, 50))
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    edge = edge + 0.016 * np.sin(x * 19 + 2 * np.sin(y * 8)) + 0.016 * np.sin(y * 17 + 2 * np.sin(x * 9))
    rim = np.exp(-(((edge - 0.05) / 0.014) ** 2)) * 0.10
    return _over(rgb("fdfbf4"), light * (1 - rim), _step(edge, 0.022, 0.05))


def _pixel_art(planes: Planes, mask: Plane) -> Planes:
    size = planes.shape[-1]
    blocks = []
    for plane in _saturate(planes, 1.2):
        small = _image(plane).resize((PIXEL_BLOCKS, PIXEL_BLOCKS), Image.Resampling.BOX)
        small = small.filter(ImageFilter.UnsharpMask(radius=1.0, percent=60, threshold=0))
        levels = np.round(np.asarray(small, np.float32) * np.float32(1 / 28)) * np.float32(28)
        blocks.append(np.asarray(_image(levels).resize((size, size), Image.Resampling.NEAREST), np.float32))
    return np.stack(blocks)


def _thermal(planes: Planes, mask: Plane) -> Planes:
    grey = _blur(_spread(_grey(planes)), 1.0)
    warm = _blur(mask * 255, 5.0)
    hot = 104 + grey * 0.55 + warm * 0.06
    cold = 8 + grey * 0.30 + warm * 0.16
    return _THERMAL(np.asarray(cold + (hot - cold) * mask, np.float32))


def _vaporwave(planes: Planes, mask: Plane) -> Planes:
    return np.asarray(
        _VAPOR(_tones(planes, mask)) * np.float32(0.86) + _saturate(planes, 1.3) * np.float32(0.14)
    )


@dataclass(frozen=True)
class Style:
    """A style; `develop(image, mask)` filters an image (3, size, size), 0..255; None leaves it unchanged.

    `keeps_colour` tells whether colours remain recognisable; `words` are the style's adjectives.
    """

    develop: Develop | None
    keeps_colour: bool
    words: tuple[str, ...]


STYLE_BY_NAME: dict[str, Style] = {
    "sticker": Style(None, True, ("sticker", "3d sticker", "3d render")),
    "comic": Style(_comic, True, ("comic", "comic book", "cartoon")),
    "watercolour": Style(_watercolour, True, ("watercolour", "watercolor", "watercolour painting")),
    "pastel": Style(_pastel, True, ("pastel", "soft pastel")),
    "pencil": Style(_pencil, False, ("pencil", "pencil sketch", "pencil drawing")),
    "sepia": Style(_sepia, False, ("sepia", "sepia photo", "old photo")),
    "neon": Style(_neon, True, ("neon", "neon lights", "neon sign")),
    "pixel-art": Style(_pixel_art, True, ("pixel art", "8-bit", "pixelated")),
    "thermal": Style(_thermal, False, ("thermal", "thermal camera", "heat map")),
    "vaporwave": Style(_vaporwave, False, ("vaporwave", "synthwave")),
}
