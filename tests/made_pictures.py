"""Pictures for tests that need one with flats, edges and gradients, drawn here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

PALETTE = ("#d94f3d", "#f2c14e", "#3f88c5", "#44af69", "#7d4e9f")


def picture(seed: int = 1, size: int = 128) -> npt.NDArray[np.uint8]:
    """A sky with a few shapes on it, (size, size, 3); the same for the same seed."""
    rng, scale = np.random.default_rng(seed), 4  # drawn larger, so that edges are smooth
    side = size * scale
    sky = np.linspace((120, 180, 240), (250, 220, 180), side)[:, None].repeat(side, 1)
    image = Image.fromarray(sky.round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, side * 3 // 4, 2)
        width, height = rng.integers(side // 8, side // 3, 2)
        draw = (pen.ellipse, pen.rectangle)[rng.integers(2)]
        draw(
            (x, y, x + width, y + height),
            fill=PALETTE[rng.integers(len(PALETTE))],
            outline="#14121c",
            width=scale,
        )
    return np.asarray(image.reduce(scale))
