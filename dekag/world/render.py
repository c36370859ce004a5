"""Painting a scene."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.world.canvas import Brush
from dekag.world.scene import Scene
from dekag.world.settings import DRAW_SETTING
from dekag.world.styles import STYLE_BY_NAME
from dekag.world.subjects import DRAW_SUBJECT, palette

SIZE_RADIUS = {"small": 0.22, "medium": 0.29, "large": 0.37}
POSITION_X = {"left": 0.32, "middle": 0.5, "right": 0.68}
SUPERSAMPLING = 2


def render(scene: Scene, seed: int, *, size: int = 128) -> npt.NDArray[np.uint8]:
    """Paint `scene`; `seed` draws what the words leave open (hills, sun, a small shift of the subject).

    Returns RGB pixels, shape (size, size, 3), uint8. The same arguments always give the same pixels.
    """
    rng = random.Random(seed)
    pixels = size * SUPERSAMPLING
    style = STYLE_BY_NAME[scene.style]
    image = Image.new("RGB", (pixels, pixels))
    DRAW_SETTING[scene.setting](image, style, rng)
    radius = SIZE_RADIUS[scene.size]
    x = POSITION_X[scene.position] + rng.uniform(-0.02, 0.02)
    x = min(max(x, radius + 0.02), 0.98 - radius)
    y = 0.88 - radius + rng.uniform(-0.03, 0.03)
    y = min(y, 0.58)
    brush = Brush(image, style, (x * pixels, y * pixels), radius * pixels, subject=True)
    DRAW_SUBJECT[scene.subject](brush, palette(scene.colour))
    small = image.reduce(SUPERSAMPLING)
    if style.develop is None:
        return np.asarray(small)
    return np.clip(style.develop(np.asarray(small, np.float32)), 0, 255).astype(np.uint8)
