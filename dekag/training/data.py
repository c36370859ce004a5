"""Rendered scenes for training, and the seeds that keep evaluation apart from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.world.render import render
from dekag.world.scene import STYLES, SUBJECTS, Scene, random_scene

# Scene number n of a split is a pure function of (split, n); the splits' ranges never meet.
SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}


def scene_number(
    split: str, n: int, *, subjects: tuple[str, ...] = SUBJECTS, styles: tuple[str, ...] = STYLES
) -> tuple[Scene, int]:
    """Scene `n` of `split` and the seed that paints it.

    Training never meets a held-out combination of attributes; validation and test meet nothing else.
    """
    seed = SPLIT_START[split] + n
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng, subjects=subjects, styles=styles)
        if scene.held_out == (split != "train"):
            return scene, seed


def _render_range(split: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
    return np.stack([render(*scene_number(split, n)) for n in range(start, stop)])


def rendered_scenes(
    cache: Path, split: str, count: int, *, workers: int = 2, chunk: int = 500
) -> npt.NDArray[np.uint8]:
    """Pixels of scenes 0..count-1 of `split`, shape (count, 128, 128, 3), rendered once and memory-mapped."""
    path = cache / f"scenes-{split}-{count}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new.npy")
        out = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, 128, 128, 3))
        starts = range(0, count, chunk)
        with ProcessPoolExecutor(workers) as pool:
            parts = pool.map(
                _render_range, [split] * len(starts), starts, [min(s + chunk, count) for s in starts]
            )
            for start, part in tqdm(zip(starts, parts, strict=True), total=len(starts), desc="render"):
                out[start : start + len(part)] = part
        out.flush()
        unfinished.rename(path)
    pixels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return pixels


def to_tensor(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Pixels (batch, height, width, 3) uint8 to images (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover 0..count-1 in steps of `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR per image, dB, of images in [-1, 1]: (batch, 3, h, w) twice -> (batch,)."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).div(2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))
