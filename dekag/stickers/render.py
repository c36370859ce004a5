"""Painting a scene."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dekag.stickers.canvas import Canvas
from dekag.stickers.colour import Plane
from dekag.stickers.compose import place
from dekag.stickers.light import Light
from dekag.stickers.scene import Scene
from dekag.stickers.settings import DRAW_SETTING
from dekag.stickers.sprites import sprite
from dekag.stickers.styles import STYLE_BY_NAME
from dekag.stickers.subjects import SUBJECT_BY_NAME

CELL = 8  # pixels of an image to one of its latent, each way: subjects stand on this grid at every size
# All in cells of an image of 32 x 32: the longer side of a subject, its middle, the rows its foot may be on.
SIZE_CELLS = {"small": 14, "medium": 18, "large": 22}
POSITION_CELLS = {"left": 10, "middle": 16, "right": 22}
FOOT_CELLS = {"ground": (27, 28, 29), "air": (21, 22), "water": (23, 24, 25), "afloat": (25, 26, 27)}
AIR_CELLS = 7  # how far what flies is above its shadow
SWIM_CELLS = 5
HIGHEST_CELLS = 28


def render(scene: Scene, seed: int, *, size: int = 256) -> npt.NDArray[np.uint8]:
    """Paint `scene`; `seed` draws what the words leave open (hills, clouds, a small shift of the subject).

    Returns RGB pixels, shape (size, size, 3), uint8. The same arguments always give the same pixels.
    """
    return render_with_mask(scene, seed, size=size)[0]


def render_with_mask(
    scene: Scene, seed: int, *, size: int = 256
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """`render` and where the subject is: its mask, shape (size, size), uint8 0..255."""
    if size % 32:
        raise ValueError(f"size must be a multiple of 32; got {size}")
    rng = random.Random(seed)
    canvas = Canvas(size)
    light = DRAW_SETTING[scene.setting](canvas, scene.time, rng)
    masks = []
    if scene.companion is not None:
        other = replace(
            scene,
            subject=scene.companion,
            colour=SUBJECT_BY_NAME[scene.companion].colour,
            position="right" if scene.position == "left" else "left",
            companion=None,
            accessory=None,
        )
        masks.append(_stand(canvas, light, rng, other))
    masks.append(_stand(canvas, light, rng, scene))
    mask = masks[-1]
    planes = np.clip(canvas.planes, 0, 255)
    develop = STYLE_BY_NAME[scene.style].develop
    if develop is not None:
        planes = np.clip(develop(planes, np.maximum.reduce(masks)), 0, 255)
    image = np.ascontiguousarray(np.round(planes).astype(np.uint8).transpose(1, 2, 0))
    return image, np.round(mask * 255).astype(np.uint8)


def _stand(canvas: Canvas, light: Light, rng: random.Random, scene: Scene) -> Plane:
    """Place a scene's subject where it belongs: on the ground, in the air, in or on the water."""
    subject = SUBJECT_BY_NAME[scene.subject]
    unit = canvas.size // 32
    if subject.flies:
        kind, above, cut = "air", AIR_CELLS, 0.0
    elif scene.setting == "underwater" and subject.swims:
        kind, above, cut = "water", SWIM_CELLS, 0.0
    elif scene.setting == "sea":
        kind, above, cut = "afloat", 0, max(subject.cut, 0.06)
    else:
        kind, above, cut = "ground", 0, subject.cut if subject.name == "sailboat" else 0.0
    pixels = SIZE_CELLS[scene.size] * unit
    drawn = sprite(subject.name, scene.colour, pixels, HIGHEST_CELLS * unit, cut, scene.accessory)
    width = drawn.alpha.shape[1] - 2 * drawn.margin
    height = drawn.alpha.shape[0] - 2 * drawn.margin
    left = round((POSITION_CELLS[scene.position] * unit - width / 2) / unit) + rng.choice((-1, 0, 0))
    left = min(max(left, 1), 31 - -(-width // unit)) * unit
    foot = rng.choice(FOOT_CELLS[kind])
    if height > foot * unit - unit:
        foot = -(-height // unit) + 1
    return place(canvas, drawn, light, left, foot * unit, above=above / 32, afloat=kind == "afloat")
