"""Rendering of scenes."""

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

CELL = 8  # side of the image area that one latent pixel covers, pixels
# Longer side, centre and bottom row of a subject, in cells of an image of 32 x 32. All are even, so that a
# subject looks the same everywhere to a denoiser that halves the side of the latents. The bottom row of small
# subjects is higher up, as if they were further away.
SIZE_CELLS = {"small": 14, "large": 20}
POSITION_CELLS = {"left": 10, "middle": 16, "right": 22}
FOOT_CELLS = {
    "ground": {"small": 26, "large": 28},
    "air": {"small": 20, "large": 22},
    "water": {"small": 22, "large": 24},
    "afloat": {"small": 24, "large": 26},
}
AIR_CELLS = 7  # distance of flying subjects from their shadow
SWIM_CELLS = 5
HIGHEST_CELLS = 26


def render(scene: Scene, seed: int, *, size: int = 256) -> npt.NDArray[np.uint8]:
    """Render `scene`; `seed` determines what the scene leaves open (hills, clouds, position of the sun).

    Returns RGB pixels, shape (size, size, 3), uint8. The same arguments always give the same pixels.
    """
    return render_with_mask(scene, seed, size=size)[0]


def render_with_mask(
    scene: Scene, seed: int, *, size: int = 256
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The image of `render` and the mask of the subject, shape (size, size), uint8 0..255."""
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
        masks.append(_stand(canvas, light, other))
    masks.append(_stand(canvas, light, scene))
    mask = masks[-1]
    planes = np.clip(canvas.planes, 0, 255)
    develop = STYLE_BY_NAME[scene.style].develop
    if develop is not None:
        planes = np.clip(develop(planes, np.maximum.reduce(masks)), 0, 255)
    image = np.ascontiguousarray(np.round(planes).astype(np.uint8).transpose(1, 2, 0))
    return image, np.round(mask * 255).astype(np.uint8)


def _stand(canvas: Canvas, light: Light, scene: Scene) -> Plane:
    """Place the subject of a scene: on the ground, in the air, in the water or on the water."""
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
    grid = 2 * unit
    left = round((POSITION_CELLS[scene.position] * unit - width / 2) / grid) * grid
    left = min(max(left, grid), (canvas.size - grid - width) // grid * grid)
    foot = FOOT_CELLS[kind][scene.size] * unit
    if height > foot - unit:
        foot = -(-(height + unit) // grid) * grid
    return place(canvas, drawn, light, left, foot, above=above / 32, afloat=kind == "afloat")
