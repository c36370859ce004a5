"""Contact sheets of the world."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.stickers.render import render
from dekag.stickers.scene import STYLES, SUBJECTS, random_scene


def save_sheet(rows: list[list[npt.NDArray[np.uint8]]], path: Path) -> None:
    """Save rows of equally large pictures (height, width, 3) uint8 in the format that `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(path)


def world_sheet(path: Path, seed: int = 0, size: int = 128) -> None:
    """Draw one scene for each style (rows) and subject (columns); `seed` draws the other attributes."""
    rng = random.Random(seed)
    save_sheet(
        [
            [
                render(random_scene(rng, subjects=(subject,), styles=(style,)), seed, size=size)
                for subject in SUBJECTS
            ]
            for style in STYLES
        ],
        path,
    )
