"""Styles: treatments of the whole picture, which know where the subject is.

No style uses random texture (grain, mosaics): an 8x latent of four channels cannot carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from dekag.stickers.colour import Pixels, rgb

Plane = npt.NDArray[np.float32]  # (height, width)
Develop = Callable[[Pixels, Plane], Pixels]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _image(pixels: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _blur(pixels: npt.NDArray[np.floating], radius: float) -> npt.NDArray[np.float32]:
    """`pixels` 0..255, one or three channels, smoothed; `radius` in 1/256 of the picture."""
    unit = pixels.shape[0] / 256
    return np.asarray(_image(pixels).filter(ImageFilter.GaussianBlur(radius * unit)), np.float32)


def _flat(pixels: Pixels, width: int) -> Pixels:
    """Flat areas with sharp edges: a median over `width` (odd) pixels of a picture half as large."""
    half = _image(pixels).reduce(2).filter(ImageFilter.MedianFilter(width))
    return np.asarray(half.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC), np.float32)


def _grey(pixels: Pixels) -> Plane:
    return np.asarray(pixels @ _LUMA, np.float32)


def _slope(plane: npt.NDArray[np.floating]) -> Plane:
    """How steeply a plane (or the steepest of three channels) rises, per two pixels of a 256-px picture."""
    unit = plane.shape[0] / 256
    across = np.zeros_like(plane)
    down = np.zeros_like(plane)
    across[:, 1:-1] = plane[:, 2:] - plane[:, :-2]
    down[1:-1] = plane[2:] - plane[:-2]
    steep = np.hypot(across, down) * np.float32(unit)
    return np.asarray(steep.max(axis=-1) if steep.ndim == 3 else steep, np.float32)


def _step(plane: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((plane - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def _lines(pixels: Pixels, mask: Plane, low: float, high: float, soft: float, background: float) -> Plane:
    """Lines (0..1) along the edges of a picture, those of the background `background` times as strong."""
    inside = _step(_slope(_blur(pixels, soft)), low, high)
    outline = _step(_slope(_blur(mask * 255, 1.0)), 70, 150)
    near = np.clip(_blur(mask * 255, 1.5) / 128, 0, 1)
    return np.asarray(np.maximum(inside * (background + (1 - background) * near), outline), np.float32)


def _ramp(*stops: str) -> Callable[[Plane], Pixels]:
    """Brightness 0..255 onto a ramp of evenly spaced colours."""
    colours = np.stack([rgb(stop) for stop in stops])
    at = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), at, colours[:, c]) for c in range(3)], axis=-1).astype(
        np.float32
    )

    def apply(plane: Plane) -> Pixels:
        return np.asarray(table[np.clip(plane, 0, 255).astype(np.uint8)], np.float32)

    return apply


def _spread(grey: Plane) -> Plane:
    """A picture's brightness stretched over the whole range, so that dark settings stay readable."""
    low, high = (float(v) for v in np.percentile(grey[::4, ::4], (2, 98)))
    return np.asarray(np.clip((grey - low) * (230 / max(high - low, 60)) + 14, 0, 255), np.float32)


def _tones(pixels: Pixels, mask: Plane) -> Plane:
    """Brightness 0..255 with the subject set apart from what is behind it."""
    grey = _spread(_grey(pixels))
    weight = max(float(mask.sum()), 1.0)
    subject = float((grey * mask).sum()) / weight
    near = np.clip(_blur(mask * 255, 10.0) / 255, 0, 1) * (1 - mask)
    behind = float((grey * near).sum()) / max(float(near.sum()), 1.0)
    gap = subject - behind
    push = np.float32(np.copysign(max(0.0, 70 - abs(gap)), gap))
    return np.asarray(np.clip(grey + push * (0.45 * mask - 0.55 * (1 - mask)), 0, 255), np.float32)


def _from_centre(size: int) -> Plane:
    """Distance from the picture's centre; 1 at the middle of an edge."""
    at = np.linspace(-1, 1, size, dtype=np.float32)
    return np.asarray(np.hypot(at[:, None], at[None]), np.float32)


def _vignette(pixels: Pixels, strength: float) -> Pixels:
    dark = 1 - np.float32(strength) * _step(_from_centre(pixels.shape[0]), 0.6, 1.4)
    return np.asarray(pixels * dark[..., None], np.float32)


def _saturate(pixels: Pixels, amount: float) -> Pixels:
    grey = _grey(pixels)[..., None]
    return np.asarray(grey + (pixels - grey) * np.float32(amount), np.float32)


_SEPIA = _ramp("2c190d", "7d5532", "c79f6c", "f5e3bf", "fff6e0")
_NOIR = _ramp("050506", "26272b", "8a8c92", "e4e5e8", "ffffff")
_THERMAL = _ramp("06063a", "3a0a86", "a1128f", "e8443a", "fb9b1c", "ffe14d", "fffbe0")
_VAPOR = _ramp("1a0b52", "5a1fa8", "d0339f", "ff7bb0", "8fd8f5", "d8fbff")
_GREEN = _ramp("021006", "0a4a1c", "2fae3e", "9dfb8a", "efffe0")
_GOLD = _ramp("2e1503", "7a4306", "c98510", "ffc93c", "fff2b0", "fffdf0")


def _sepia(pixels: Pixels, mask: Plane) -> Pixels:
    return _vignette(_SEPIA(_tones(pixels, mask)), 0.45)


def _noir(pixels: Pixels, mask: Plane) -> Pixels:
    return _vignette(_NOIR(_tones(pixels, mask)), 0.55)


def _pastel(pixels: Pixels, mask: Plane) -> Pixels:
    bright = np.sqrt(pixels / 255) * 255
    light = 255 - (255 - _saturate(np.asarray(bright, np.float32), 1.1)) * 0.62
    return np.asarray(light * 0.92 + rgb("ffe9f2") * 0.08, np.float32)


def _comic(pixels: Pixels, mask: Plane) -> Pixels:
    bright = np.asarray(255 * (pixels / 255) ** np.float32(0.85), np.float32)
    plain = _flat(bright, 3)
    flat = _saturate(plain + (bright - plain) * mask[..., None], 1.45)
    peak = np.maximum(flat.max(axis=-1, keepdims=True), 1.0)
    bands = np.float32(5)
    level = peak / 255 * bands
    low = np.floor(level)
    banded = (low + _step(np.asarray(level - low, np.float32), 0.40, 0.60)) / bands * 255
    flat = flat * (banded + 12) / peak
    inside = _step(_slope(_blur(pixels, 1.0)), 26, 52) * _step(_blur(mask * 255, 1.5), 60, 180)
    behind = _step(_slope(_blur(plain, 1.0)), 26, 52) * np.clip(_grey(plain) / 150, 0, 0.85)
    outline = _step(_slope(_blur(mask * 255, 1.8)), 22, 60)
    ink = np.maximum(np.maximum(inside, behind), outline)[..., None]
    return np.asarray(np.clip(flat, 0, 255) * (1 - ink) + rgb("14121c") * ink, np.float32)


def _pencil(pixels: Pixels, mask: Plane) -> Pixels:
    grey = _spread(_grey(pixels))
    lines = _lines(pixels, mask, 9, 44, 0.9, 0.55)
    tone = 1 - (1 - _blur(grey, 1.2) / 255) * (0.12 + 0.26 * mask)
    dark = tone * (1 - 0.82 * lines)
    return np.asarray(
        rgb("fbf8f0") * dark[..., None] + rgb("2c2c34") * (1 - dark[..., None]) * 0.75, np.float32
    )


def _neon(pixels: Pixels, mask: Plane) -> Pixels:
    lines = _lines(pixels, mask, 20, 60, 1.1, 0.62)
    hue = _saturate(_blur(pixels, 2.0), 2.4)
    hue = np.clip(hue - hue.min(axis=-1, keepdims=True) * 0.8, 0, 255) + 8
    hue = hue / hue.max(axis=-1, keepdims=True)
    tubes = hue * lines[..., None] * 255
    glow = _blur(tubes, 5.0) * 1.7 + _blur(tubes, 14.0) * 0.9
    core = _step(lines, 0.55, 1.0)[..., None] * 110
    return np.asarray(rgb("0e0a24") + pixels * 0.06 + glow + tubes * 0.75 + core, np.float32)


def _blueprint(pixels: Pixels, mask: Plane) -> Pixels:
    size = pixels.shape[0]
    lines = _lines(pixels, mask, 12, 46, 0.9, 0.55)
    at = (np.arange(size) * 256 // size) % 32 == 0
    grid = np.maximum(at[:, None], at[None]).astype(np.float32) * (1 - mask)
    tone = _spread(_grey(pixels)) / 255
    base = rgb("1d4fa8") + (rgb("3f78cf") - rgb("1d4fa8")) * (tone * (0.35 + 0.65 * mask))[..., None]
    base = base + grid[..., None] * 22
    return np.asarray(base + (rgb("f2f8ff") - base) * lines[..., None], np.float32)


def _watercolour(pixels: Pixels, mask: Plane) -> Pixels:
    size = pixels.shape[0]
    flat = _blur(_flat(pixels, 3), 1.4)
    at = np.linspace(0, 1, size, dtype=np.float32)
    y, x = at[:, None], at[None]
    wash = 0.5 + 0.5 * np.sin(x * 7 + np.sin(y * 5) * 1.6) * np.sin(y * 6 + np.sin(x * 4) * 1.4)
    light = 255 - (255 - _saturate(flat, 1.15)) * (0.62 + 0.16 * wash)[..., None]
    pigment = _step(_slope(flat), 8, 50)[..., None]
    light = light * (1 - 0.30 * pigment)
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    edge = edge + 0.016 * np.sin(x * 19 + 2 * np.sin(y * 8)) + 0.016 * np.sin(y * 17 + 2 * np.sin(x * 9))
    paint = _step(np.asarray(edge, np.float32), 0.022, 0.05)[..., None]
    rim = np.exp(-(((edge - 0.05) / 0.014) ** 2))[..., None] * 0.10
    paper = rgb("fdfbf4")
    return np.asarray(paper + (light * (1 - rim) - paper) * paint, np.float32)


def _pixel(pixels: Pixels, mask: Plane) -> Pixels:
    size = pixels.shape[0]
    blocks = 64
    small = _image(_saturate(pixels, 1.2)).resize((blocks, blocks), Image.Resampling.BOX)
    small = small.filter(ImageFilter.UnsharpMask(radius=1.0, percent=60, threshold=0))
    levels = np.round(np.asarray(small, np.float32) / 28) * 28
    return np.asarray(_image(levels).resize((size, size), Image.Resampling.NEAREST), np.float32)


def _thermal(pixels: Pixels, mask: Plane) -> Pixels:
    grey = _blur(_spread(_grey(pixels)), 1.0)
    warm = np.clip(_blur(mask * 255, 5.0), 0, 255)
    hot = 104 + grey * 0.55 + warm * 0.06
    cold = 8 + grey * 0.30 + warm * 0.16
    return _THERMAL(np.asarray(cold + (hot - cold) * mask, np.float32))


def _vaporwave(pixels: Pixels, mask: Plane) -> Pixels:
    grey = _tones(pixels, mask)
    return np.asarray(_VAPOR(grey) * 0.86 + _saturate(pixels, 1.3) * 0.14, np.float32)


def _night_vision(pixels: Pixels, mask: Plane) -> Pixels:
    grey = _tones(pixels, mask) * 0.80 + 30 + mask * 28
    ring = _from_centre(pixels.shape[0])
    inside = 1 - _step(ring, 0.955, 0.99)
    falloff = 1 - 0.45 * _step(ring, 0.45, 1.0)
    return np.asarray(_GREEN(np.asarray(grey * falloff, np.float32)) * inside[..., None], np.float32)


def _golden(pixels: Pixels, mask: Plane) -> Pixels:
    grey = _grey(pixels)
    inside = grey[mask > 0.5]
    low, high = (float(v) for v in np.percentile(inside, (3, 97))) if inside.size else (0.0, 255.0)
    shine = np.clip((grey - low) / max(high - low, 40), 0, 1)
    gold = _GOLD(np.asarray((0.22 + 0.70 * shine) * 255, np.float32))
    behind = _blur(_saturate(pixels, 0.7), 2.0) * 0.74
    glow = _blur(mask * 255, 9.0)[..., None] / 255 * 0.30
    behind = behind + (rgb("ffdf90") - behind) * glow
    return np.asarray(behind + (gold - behind) * mask[..., None], np.float32)


@dataclass(frozen=True)
class Style:
    """`develop(picture, mask)` treats a picture (size, size, 3), 0..255; None leaves it as it is.

    `keeps_colour` says whether colour words stay visible in it; `words` are what captions call it, as an adjective.
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
    "noir": Style(_noir, False, ("noir", "black and white", "monochrome")),
    "golden": Style(_golden, False, ("golden", "gold statue")),
    "neon": Style(_neon, True, ("neon", "neon lights", "neon sign")),
    "pixel-art": Style(_pixel, True, ("pixel art", "8-bit", "pixelated")),
    "blueprint": Style(_blueprint, False, ("blueprint", "technical blueprint")),
    "thermal": Style(_thermal, False, ("thermal", "thermal camera", "heat map")),
    "vaporwave": Style(_vaporwave, False, ("vaporwave", "synthwave")),
    "night-vision": Style(_night_vision, False, ("night vision", "night vision goggles")),
}
