"""A contact sheet of the world: every style against every subject."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.world.render import render
from dekag.world.scene import COLOURS, POSITIONS, SETTINGS, SIZES, STYLES, SUBJECTS, Scene


def save_sheet(rows: list[list[npt.NDArray[np.uint8]]], path: Path) -> None:
    """Save rows of equally large pictures (height, width, 3) uint8 as one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(path)


def world_sheet(path: Path, seed: int = 0) -> None:
    """Draw one scene for each style (rows) and subject (columns); `seed` draws the other attributes."""
    rng = random.Random(seed)
    save_sheet(
        [
            [
                render(
                    Scene(
                        subject=subject,
                        colour=rng.choice(COLOURS),
                        size=rng.choice(SIZES),
                        position=rng.choice(POSITIONS),
                        setting=rng.choice(SETTINGS),
                        style=style,
                    ),
                    seed,
                )
                for subject in SUBJECTS
            ]
            for style in STYLES
        ],
        path,
    )
