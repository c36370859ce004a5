"""Rendered scenes for training, and seeds that separate evaluation from training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dekag.training.worlds import World

Pixels = npt.NDArray[np.uint8]  # (count, height, width, 3), RGB

CELL = 8  # side of the image area that one latent pixel covers, pixels
CHUNK = 100  # images per task of a rendering process
SCENES = 24_000  # default number of training images

# Scene number n of a split is a pure function of (split, n); the seeds of the splits do not overlap.
SPLIT_START = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}


def scene_number(split: str, n: int, draw: Callable[[random.Random], Any]) -> tuple[Any, int]:
    """Scene `n` of `split` and its rendering seed.

    Args:
        split: one of SPLIT_START.
        n: number of the scene.
        draw: draws a scene, `world.scenes(cloud=True)` for example.

    No subject of a training scene has a held-out combination of attributes; the first subject of a validation
    or test scene always has one.
    """
    seed = SPLIT_START[split] + n
    rng = random.Random(seed)
    while True:
        scene = draw(rng)
        if scene.trainable if split == "train" else scene.held_out:
            return scene, seed


def image_number(split: str, n: int, world: World) -> tuple[Any, int]:
    """Scene `n` of the images for training or evaluating any model of `world`, and its seed."""
    return scene_number(split, n, world.scenes(cloud=True))


def _images(world: World, split: str, start: int, stop: int, *, side: int | None = None) -> Pixels:
    images = (world.render(*image_number(split, n, world)) for n in range(start, stop))
    return np.stack([image if side is None else _means(image, side) for image in images])


def _means(image: Pixels, side: int) -> Pixels:
    """An image (size, size, 3) reduced to (side, side, 3) by the mean over squares."""
    squares = image.reshape(side, len(image) // side, side, len(image) // side, 3)
    reduced: Pixels = np.round(squares.mean(axis=(1, 3))).astype(np.uint8)
    return reduced


def _masks(world: World, split: str, start: int, stop: int) -> Pixels:
    return np.stack([world.mask(*image_number(split, n, world)) for n in range(start, stop)])


def _shares(world: World, split: str, start: int, stop: int) -> Pixels:
    masks, side = _masks(world, split, start, stop), world.size // CELL
    shares: Pixels = np.round(masks.reshape(-1, side, CELL, side, CELL).mean(axis=(2, 4))).astype(np.uint8)
    return shares


def rendered_scenes(cache: Path, split: str, count: int, *, world: World, workers: int = 2) -> Pixels:
    """Images 0..count-1 of `split`, shape (count, size, size, 3), rendered once and memory-mapped.

    Args:
        cache: cache folder; the file name identifies the world, its version, split, size and count.
        split: one of SPLIT_START.
        count: number of images.
        world: world to render, at its size.
        workers: number of rendering processes.
    """
    name = f"{world.profile}-{world.version}-{split}-{world.size}-{count}.npy"
    return _rendered(cache / name, _images, (count, world.size, world.size, 3), split, world, workers)


def reduced_scenes(
    cache: Path, split: str, count: int, *, side: int, world: World, workers: int = 2
) -> Pixels:
    """The same images reduced to (count, side, side, 3), for models that see no more; cached likewise.

    `side` must divide the world's size. A quarter of the pixels is a quarter of the memory, so that more
    images fit.
    """
    name = f"{world.profile}-{world.version}-{split}-{world.size}-{count}-to-{side}.npy"
    render = partial(_images, side=side)
    return _rendered(cache / name, render, (count, side, side, 3), split, world, workers)


def rendered_masks(cache: Path, split: str, count: int, *, world: World, workers: int = 2) -> Pixels:
    """Subject masks of the same images, shape (count, size, size), 0..255; cached in the same way."""
    name = f"{world.profile}-{world.version}-{split}-{world.size}-{count}-masks.npy"
    return _rendered(cache / name, _masks, (count, world.size, world.size), split, world, workers)


def subject_shares(cache: Path, split: str, count: int, *, world: World, workers: int = 2) -> Pixels:
    """Coverage of each latent pixel by the subject, (count, size / 8, size / 8), 0..255; cached likewise."""
    name = f"{world.profile}-{world.version}-{split}-{world.size}-{count}-shares.npy"
    side = world.size // CELL
    return _rendered(cache / name, _shares, (count, side, side), split, world, workers)


def _rendered(
    path: Path,
    render: Callable[[World, str, int, int], Pixels],
    shape: tuple[int, ...],
    split: str,
    world: World,
    workers: int,
) -> Pixels:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new.npy")
        out = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        starts = range(0, len(out), CHUNK)
        stops = [min(start + CHUNK, len(out)) for start in starts]
        with ProcessPoolExecutor(workers) as pool:
            parts = pool.map(render, repeat(world), repeat(split), starts, stops)
            for start, part in tqdm(zip(starts, parts, strict=True), total=len(starts), desc="render"):
                out[start : start + len(part)] = part
        out.flush()
        unfinished.rename(path)
    pixels: Pixels = np.load(path, mmap_mode="r")
    return pixels


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """Convert pixels (batch, height, width, 3) uint8 to images (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of length `size` that cover 0..count-1; the last may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def picked(
    latents: torch.Tensor, rows: torch.Tensor, crop: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Rows (batch,) of latents (n, c, h, w), as float32; of each a random square, if they are larger.

    Args:
        latents: (n, c, h, w) of any number format.
        rows: (batch,) int64.
        crop: side of the squares, latent pixels; None: whole latents.
        generator: source of the squares' positions; not used for whole latents.
    """
    height, width = latents.shape[2:]
    if crop is None or crop >= max(height, width):
        return latents[rows].float()
    down, across = min(crop, height), min(crop, width)
    tops = torch.randint(height - down + 1, (len(rows),), generator=generator).tolist()
    lefts = torch.randint(width - across + 1, (len(rows),), generator=generator).tolist()
    places = zip(rows.tolist(), tops, lefts, strict=True)
    return torch.stack([latents[i, :, y : y + down, x : x + across] for i, y, x in places]).float()


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR per image, dB, of images in [-1, 1]: (batch, 3, h, w) twice -> (batch,)."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).div(2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-10))
