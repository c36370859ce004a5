"""Placing a subject in a setting: the setting's light, a shadow that touches it, and a rim where they agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.stickers.canvas import Canvas
from dekag.stickers.colour import Pixels, mix, rgb
from dekag.stickers.light import Light
from dekag.stickers.sprites import Sprite

AGREEMENT = 62.0  # distance of mean colours (0..255) below which subject and background agree
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Mask = npt.NDArray[np.float32]  # (size, size), 0..1: where the subject is


def _shifted(soft: npt.NDArray[np.float32], dx: int, dy: int) -> npt.NDArray[np.float32]:
    """`soft` moved by (dx, dy); what comes in is empty."""
    height, width = soft.shape
    moved = np.zeros_like(soft)
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = soft[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return moved


def lit(sprite: Sprite, light: Light, column: float) -> Pixels:
    """The sprite's premultiplied pixels under `light`, with the sprite's centre at `column` (share of the width)."""
    height = sprite.alpha.shape[0]
    ramp = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    pixels = sprite.pixels * (light.above + (light.below - light.above) * ramp)[:, None]
    alpha = sprite.alpha.astype(np.float32) * np.float32(1 / 255)
    soft = sprite.soft.astype(np.float32) * np.float32(1 / 255)
    reach = max(1, sprite.margin // 2)
    side = float(np.clip((light.source - column) * 4, -1, 1))
    dx = round(reach * side)
    near = alpha * np.clip(1 - 1.25 * _shifted(soft, -dx, reach), 0, 1)
    far = alpha * np.clip(1 - 1.25 * _shifted(soft, dx, -reach), 0, 1)
    pixels *= (1 - np.float32(light.shade) * far)[..., None]
    glow = (near * np.float32(light.strength))[..., None]
    return np.asarray(pixels + (light.key * alpha[..., None] - pixels) * glow, np.float32)


def shadow(canvas: Canvas, light: Light, left: float, right: float, foot: float, height: float) -> None:
    """The shadow of something that touches the ground from `left` to `right` at `foot` (shares of the picture).

    `height` is how far it is above the ground: the shadow gets wider and paler with it.
    """
    middle, half = (left + right) / 2, max((right - left) / 2, 0.05)
    away = float(np.clip((middle - light.source) * 0.10, -0.05, 0.05))
    faint = 1.0 / (1.0 + height * 8)
    for dx, rx, ry, strength in ((away, 1.35, 0.036, 0.42), (away * 0.2, 1.02, 0.016, 0.60)):
        if height and ry < 0.02:
            continue
        rows, ys = canvas._rows(foot - ry * 2.2, foot + ry * 2.2)
        columns, xs = canvas._columns(middle + dx - half * rx * 1.8, middle + dx + half * rx * 1.8)
        far = ((xs - np.float32(middle + dx)) / np.float32(half * rx)) ** 2 + (
            (ys - np.float32(foot)) / np.float32(ry)
        ) ** 2
        canvas._blend(rows, columns, light.shadow, np.exp(-far * far) * np.float32(strength * faint))


def reflection(canvas: Canvas, pixels: Pixels, alpha: npt.NDArray[np.float32], left: int, foot: int) -> None:
    """What the water under a boat shows of it: upside down, pressed and pale, and a bright water line."""
    size = canvas.size
    depth = min(alpha.shape[0] * 2 // 5, size - foot)
    if depth < 2:
        return
    joined = np.concatenate([pixels, alpha[..., None] * 255], axis=-1)[::-1].clip(0, 255).astype(np.uint8)
    pressed = np.asarray(
        Image.fromarray(joined, "RGBa").resize(
            (alpha.shape[1], alpha.shape[0] * 2 // 5), Image.Resampling.BOX
        ),
        np.float32,
    )[:depth]
    fade = np.linspace(0.42, 0.0, depth, dtype=np.float32)[:, None, None]
    part = canvas.image[foot : foot + depth, left : left + alpha.shape[1]]
    part += (pressed[..., :3] - part * pressed[..., 3:] / 255) * fade


def place(
    canvas: Canvas,
    sprite: Sprite,
    light: Light,
    left: int,
    foot: int,
    *,
    above: float = 0.0,
    afloat: bool = False,
) -> Mask:
    """Put `sprite` on the canvas with its left edge at column `left` and its foot on row `foot` (pixels).

    `above` lifts it off the ground by that share of the picture; `afloat` sets it on water. Returns its mask.
    """
    size, margin = canvas.size, sprite.margin
    height, width = sprite.alpha.shape
    alpha = sprite.alpha.astype(np.float32) * np.float32(1 / 255)
    soft = sprite.soft.astype(np.float32) * np.float32(1 / 255)
    pixels = lit(sprite, light, (left + width / 2 - margin) / size)
    touches = ((left + sprite.left) / size, (left + sprite.right) / size)
    if afloat:
        inner = slice(margin, width - margin)
        rows = slice(margin, height - margin)
        reflection(canvas, pixels[rows, inner], alpha[rows, inner], left, foot)
        middle, half = (touches[0] + touches[1]) / 2, (touches[1] - touches[0]) / 2
        under = canvas.image[min(foot, size - 1), min(max(int(middle * size), 0), size - 1)]
        canvas.ellipse(middle, foot / size, half * 1.15, 0.013, mix(under, rgb("ffffff"), 0.5), 3.0, 0.8)
    else:
        shadow(canvas, light, *touches, foot / size + above - 0.008, above)
    top, start = foot + margin - height, left - margin
    rows = slice(max(top, 0), min(top + height, size))
    columns = slice(max(start, 0), min(start + width, size))
    own = (slice(rows.start - top, rows.stop - top), slice(columns.start - start, columns.stop - start))
    part = canvas.image[rows, columns]
    set_apart(part, pixels[own], alpha[own], soft[own])
    part *= 1 - alpha[own][..., None]
    part += pixels[own]
    mask = np.zeros((size, size), np.float32)
    mask[rows, columns] = alpha[own]
    return mask


def set_apart(
    part: Pixels, pixels: Pixels, alpha: npt.NDArray[np.float32], soft: npt.NDArray[np.float32]
) -> None:
    """Where the subject's rim and the background next to it agree in colour, shade the background behind it."""
    rim = np.clip(soft * 2, 0, 1) * (1 - soft)
    outside, inside = rim * (1 - alpha), rim * alpha
    weight = max(float(outside.sum()), 1e-3)
    behind = np.einsum("hwc,hw->c", part, outside) / weight
    subject = np.einsum("hwc,hw->c", pixels, rim) / max(float(inside.sum()), 1e-3)
    distance = float(np.linalg.norm(behind - subject))
    if distance >= AGREEMENT:
        return
    strength = 0.30 + 0.35 * (1 - distance / AGREEMENT)
    lighter = float(behind @ _LUMA) < 150
    colour = mix(behind, rgb("ffffff"), 0.75) if lighter else mix(behind, rgb("1c2440"), 0.55)
    halo = np.clip(soft * 2.2 - 0.25, 0, 1) * np.float32(strength)
    part += (colour - part) * halo[..., None]
