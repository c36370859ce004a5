"""Placement of a subject in a setting: lighting, shadow, and a rim if their colours are similar."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.stickers.canvas import Canvas
from dekag.stickers.colour import LUMA, Plane, Planes, mix, rgb
from dekag.stickers.light import Light
from dekag.stickers.sprites import Sprite

AGREEMENT = 62.0  # distance of mean colours (0..255) below which subject and background are similar
RIM = np.float32(1.25)  # how fast light and shade at the rim fall off
TO_SHARE = np.float32(1 / 255)


def place(
    canvas: Canvas,
    sprite: Sprite,
    light: Light,
    left: int,
    foot: int,
    *,
    above: float = 0.0,
    afloat: bool = False,
) -> Plane:
    """Put `sprite` on the canvas with its left edge at column `left` and its bottom at row `foot` (pixels).

    `above` is its height above the ground as a fraction of the image; `afloat` places it on water. Returns
    its mask (size, size), 0..1.
    """
    size, margin = canvas.size, sprite.margin
    height, width = sprite.alpha.shape
    alpha = sprite.alpha * TO_SHARE
    soft = sprite.soft * TO_SHARE
    planes = lit(sprite, alpha, soft, light, (left + width / 2 - margin) / size)
    touches = ((left + sprite.left) / size, (left + sprite.right) / size)
    if afloat:
        inner = (slice(margin, height - margin), slice(margin, width - margin))
        _reflection(canvas, planes[:, *inner], alpha[inner], left, foot)
        _water_line(canvas, *touches, foot)
    else:
        _shadow(canvas, light, *touches, foot / size + above - 0.008, above)
    top, start = foot + margin - height, left - margin
    rows = slice(max(top, 0), min(top + height, size))
    columns = slice(max(start, 0), min(start + width, size))
    own = (slice(rows.start - top, rows.stop - top), slice(columns.start - start, columns.stop - start))
    part = canvas.planes[:, rows, columns]
    _set_apart(part, planes[:, *own], alpha[own], soft[own])
    part *= 1 - alpha[own]
    part += planes[:, *own]
    mask = np.zeros((size, size), np.float32)
    mask[rows, columns] = alpha[own]
    return mask


def lit(sprite: Sprite, alpha: Plane, soft: Plane, light: Light, column: float) -> Planes:
    """The sprite's premultiplied planes under `light`; `column` is its centre (fraction of the width)."""
    ramp = np.linspace(0, 1, alpha.shape[0], dtype=np.float32)[:, None]
    reach = max(1, sprite.margin // 2)
    dx = round(reach * float(np.clip((light.source - column) * 4, -1, 1)))
    near = alpha * np.clip(1 - RIM * _moved(soft, -dx, reach), 0, 1) * np.float32(light.strength)
    far = 1 - alpha * np.clip(1 - RIM * _moved(soft, dx, -reach), 0, 1) * np.float32(light.shade)
    bright = alpha * near
    keep = (1 - near) * far
    planes = np.empty(sprite.planes.shape, np.float32)
    for channel in range(3):
        gain = light.above[channel] + (light.below[channel] - light.above[channel]) * ramp
        planes[channel] = sprite.planes[channel] * gain * keep + light.key[channel] * bright
    return planes


def _moved(plane: Plane, dx: int, dy: int) -> Plane:
    """`plane` moved by (dx, dy) and filled with zeros."""
    height, width = plane.shape
    moved = np.zeros_like(plane)
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = plane[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def _shadow(canvas: Canvas, light: Light, left: float, right: float, foot: float, height: float) -> None:
    """The shadow of an object from `left` to `right` with its bottom at `foot` (fractions of the image).

    An object at a `height` above the ground has a paler shadow and no contact shadow.
    """
    middle, half = (left + right) / 2, max((right - left) / 2, 0.05)
    away = float(np.clip((middle - light.source) * 0.10, -0.05, 0.05))
    wide = (away, 1.35, 0.036, 0.42 / (1.0 + height * 8))
    touching = (away * 0.2, 1.02, 0.016, 0.60)
    for dx, rx, ry, strength in (wide,) if height else (wide, touching):
        rows, ys = canvas.rows(foot - ry * 2.2, foot + ry * 2.2)
        columns, xs = canvas.columns(middle + dx - half * rx * 1.8, middle + dx + half * rx * 1.8)
        across = ((xs - np.float32(middle + dx)) / np.float32(half * rx)) ** 2
        far = across + ((ys - np.float32(foot)) / np.float32(ry)) ** 2
        canvas.blend(rows, columns, light.shadow, np.exp(-far * far) * np.float32(strength))


def _reflection(canvas: Canvas, planes: Planes, alpha: Plane, left: int, foot: int) -> None:
    """The reflection in water: upside down, compressed, and paler with depth."""
    height, width = alpha.shape
    pressed = max(1, height * 2 // 5)
    depth = min(pressed, canvas.size - foot)
    if depth < 1:
        return
    fade = np.linspace(0.42, 0.0, pressed, dtype=np.float32)[:depth, None]
    mirrored = [_resized(plane, width, pressed)[:depth] for plane in (*planes, alpha * 255)]
    cover = mirrored[3] * TO_SHARE * fade
    for channel in range(3):
        part = canvas.planes[channel, foot : foot + depth, left : left + width]
        part += mirrored[channel] * fade - part * cover


def _resized(plane: Plane, width: int, height: int) -> npt.NDArray[np.float32]:
    """`plane` upside down and resized."""
    image = Image.fromarray(np.clip(plane[::-1], 0, 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32)


def _water_line(canvas: Canvas, left: float, right: float, foot: int) -> None:
    """The bright line where an object meets the water."""
    middle = (left + right) / 2
    column = min(max(int(middle * canvas.size), 0), canvas.size - 1)
    water = canvas.planes[:, min(foot + 2, canvas.size - 1), column]
    canvas.ellipse(
        middle, foot / canvas.size, (right - left) * 0.56, 0.011, mix(water, rgb("ffffff"), 0.45), 3.0
    )


def _set_apart(part: Planes, planes: Planes, alpha: Plane, soft: Plane) -> None:
    """Shade the background around the subject if it has a colour similar to the subject's rim."""
    rim = np.clip(soft * 2, 0, 1) * (1 - soft)
    outside = rim * (1 - alpha)
    behind = np.einsum("chw,hw->c", part, outside) / max(float(outside.sum()), 1e-3)
    subject = np.einsum("chw,hw->c", planes, rim) / max(float((rim * alpha).sum()), 1e-3)
    distance = float(np.linalg.norm(behind - subject))
    if distance >= AGREEMENT:
        return
    strength = 0.30 + 0.35 * (1 - distance / AGREEMENT)
    lighter = float(behind @ LUMA) < 150
    colour = mix(behind, rgb("ffffff"), 0.75) if lighter else mix(behind, rgb("1c2440"), 0.55)
    halo = np.clip(soft * np.float32(2.2) - np.float32(0.25), 0, 1) * np.float32(strength)
    for channel in range(3):
        part[channel] += (colour[channel] - part[channel]) * halo
