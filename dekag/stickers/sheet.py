"""Contact sheets of the world: all subjects, settings at each time of day, styles and combinations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dekag.stickers.render import render
from dekag.stickers.scene import SETTINGS, STYLES, SUBJECTS, TIMELESS, TIMES, Scene, random_scene
from dekag.stickers.subjects import SUBJECT_BY_NAME
from dekag.stickers.topics import EDGE_SUBJECTS, TOPICS, topic_scene

WEBP_QUALITY = 76


def save_sheet(rows: Sequence[Sequence[npt.NDArray[np.uint8]]], path: Path) -> None:
    """Save rows of equally large images (height, width, 3) uint8 in the format of the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    sheet.save(path, quality=WEBP_QUALITY, method=6)  # other formats ignore these options


def subject_scenes(rng: random.Random) -> list[Scene]:
    """One scene of every subject, in sticker style."""
    return [random_scene(rng, subjects=(subject,), styles=("sticker",)) for subject in SUBJECTS]


def setting_scenes(rng: random.Random) -> list[Scene]:
    """Every setting at every time of day that changes its look."""
    scenes = []
    for setting in SETTINGS:
        fitting = [name for name in EDGE_SUBJECTS if setting in SUBJECT_BY_NAME[name].settings]
        for time in ("day",) if setting in TIMELESS else TIMES:
            scene = random_scene(rng, subjects=(rng.choice(fitting),), styles=("sticker",))
            scenes.append(replace(scene, setting=setting, time=time))
    return scenes


def style_scenes(rng: random.Random) -> list[Scene]:
    """Two scenes of every style."""
    return [random_scene(rng, subjects=EDGE_SUBJECTS, styles=(style,)) for style in STYLES for _ in range(2)]


def combination_scenes(rng: random.Random) -> list[Scene]:
    """Three scenes of every combination topic."""
    kinds = [topic for topic in TOPICS.values() if topic.kind == "combination"]
    return [replace(topic_scene(topic, rng), style="sticker") for topic in kinds for _ in range(3)]


SHEETS: dict[str, tuple[Callable[[random.Random], list[Scene]], int]] = {
    "subjects": (subject_scenes, 9),
    "settings": (setting_scenes, 9),
    "styles": (style_scenes, 7),
    "combinations": (combination_scenes, 9),
}


def world_sheets(folder: Path, seed: int = 0, shown: int = 256) -> list[Path]:
    """Render the four sheets to `folder` as WebP, with images `shown` pixels wide; returns their paths."""
    paths = []
    for name, (draw, columns) in SHEETS.items():
        scenes = draw(random.Random(seed))
        images = [_resized(render(scene, seed + n), shown) for n, scene in enumerate(scenes)]
        images += [np.full_like(images[0], 255)] * (-len(images) % columns)
        paths.append(folder / f"world-{name}.webp")
        rows = [images[start : start + columns] for start in range(0, len(images), columns)]
        save_sheet(rows, paths[-1])
    return paths


def _resized(image: npt.NDArray[np.uint8], pixels: int) -> npt.NDArray[np.uint8]:
    """`image` with a side of `pixels`."""
    if image.shape[0] == pixels:
        return image
    return np.asarray(Image.fromarray(image).resize((pixels, pixels), Image.Resampling.LANCZOS))
