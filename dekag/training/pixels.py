"""Training of the codec of pixels, on random channels and at random rates.

It learns from squares of pictures of three kinds, which take turns in each batch: photographs of a folder,
scenes of a profile's world, and textures drawn here (gradients, edges and noise).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from dekag.api.limits import PIXEL_CODEC_STEP
from dekag.link.conditions import LinkConditions
from dekag.link.training_channel import pass_through
from dekag.pictures import PictureFolder
from dekag.pipeline import SemanticLink
from dekag.pixel_codec import OCTAVES, PixelCodec, from_pixels
from dekag.training.cala import ERROR_FLOOR, draw_conditions, sending_order
from dekag.training.codec import END_SHARE
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon

Pixels = npt.NDArray[np.uint8]
Squares = Callable[[int, torch.Generator], torch.Tensor]
"""Draws n squares (n, 3, side, side) in [-1, 1]."""

SIDE = 64
BATCH = 16
MAX_FILE_SIDE = 16_384
SIZES = (256, 384, 640, 1024)
"""Longer sides to which each photograph is reduced: what a square shows of it, from much to little."""

LEARNING_RATE = 2e-3


def reduced_photographs(folder: PictureFolder, sizes: Sequence[int] = SIZES) -> list[list[Pixels]]:
    """Of each picture of a folder, the sizes that are not larger than it, each (height, width, 3) uint8.

    Pictures that are too small for a square are left out.

    Raises:
        FileError: pictures are damaged or too large; names all of them.
    """
    found: list[list[Pixels]] = []
    for _, picture in folder.read(max_side=MAX_FILE_SIDE, max_pixels=MAX_FILE_SIDE**2):
        whole = Image.fromarray(picture.pixels)
        own = []
        for size in sizes:
            if size <= max(whole.size):
                reduced = whole.copy()
                reduced.thumbnail((size, size), Image.Resampling.LANCZOS)
                own += [np.array(reduced)] if min(reduced.size) >= SIDE else []
        found += [own] if own else []
    return found


def squares_of(pictures: Sequence[Pixels] | Pixels, side: int = SIDE) -> Squares:
    """Random squares of pictures that are at least `side` pixels on each side, half of them mirrored."""

    def draw(count: int, generator: torch.Generator) -> torch.Tensor:
        squares = []
        for number in torch.randint(len(pictures), (count,), generator=generator).tolist():
            picture = pictures[number]
            top, left = (
                int(torch.randint(size - side + 1, (1,), generator=generator)) for size in picture.shape[:2]
            )
            square = picture[top : top + side, left : left + side]
            mirrored = torch.rand(1, generator=generator) < 0.5
            squares.append(square[:, ::-1] if mirrored else square)
        return from_pixels(np.stack(squares))

    return draw


def textures(count: int, generator: torch.Generator, side: int = SIDE) -> torch.Tensor:
    """Squares (count, 3, side, side) of smoothed noise with edges: two of them, one on each side of a line.

    The noise has a random smoothness, colour and contrast, from a gradient to grain.
    """

    def noise() -> torch.Tensor:
        layers = torch.zeros(count, 3, side, side)
        for coarse in (2, 4, 8, 16, 32, side):
            grid = torch.randn(count, 3, coarse, coarse, generator=generator)
            grey = torch.rand(count, 1, 1, 1, generator=generator)
            grid = grey * grid.mean(1, keepdim=True) * 3**0.5 + (1 - grey) * grid
            strength = torch.rand(count, 1, 1, 1, generator=generator) ** 3 * (2 / coarse) ** 0.5
            layers += strength * F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        base = 1.6 * torch.rand(count, 3, 1, 1, generator=generator) - 0.8
        return base + layers

    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    angle = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    offset = 2 * torch.rand(count, 1, 1, generator=generator) - 1
    edge = ((angle.cos() * x + angle.sin() * y - offset) > 0)[:, None]
    return torch.where(edge, noise(), noise()).clamp(-1, 1)


def train_pixels(
    folder: Path,
    sources: Sequence[Squares],
    *,
    steps: int,
    seed: int,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    bf16: bool = False,
    show: bool = True,
    start: PixelCodec | None = None,
) -> PixelCodec:
    """Train on squares of several sources, in equal parts, resuming from `folder`; the averaged codec.

    Channels are drawn as for adapters (`draw_conditions`), rates log-uniformly over OCTAVES factors of two,
    with END_SHARE of the squares at each end. The loss is the mean logarithm of each square's squared error,
    as errors differ by condition.

    Args:
        folder: folder of the checkpoints.
        sources: of squares.
        steps: total optimiser steps.
        seed: seed of all randomness.
        batch: squares of a step.
        learning_rate: peak learning rate.
        bf16: run the convolutions in bfloat16.
        show: show a progress bar.
        start: go on from a copy of this codec; default: from random weights.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start) if start is not None else PixelCodec()
    model.requires_grad_(True).train().to(memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.ndim in (2, 4)]
    others = [p for p in model.parameters() if p.ndim not in (2, 4)]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, learning_rate, weight_decay=1e-4),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, fused=True),
    ]
    run = TrainingRun(folder, model, optimizers, seed=seed, ema_decay=0.998)

    def step(number: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kinds = len(sources)
        turns = [len(range((number + place) % kinds, batch, kinds)) for place in range(kinds)]
        drawn = [source(count, generator) for source, count in zip(sources, turns, strict=True) if count]
        clean = torch.cat(drawn).contiguous(memory_format=torch.channels_last)
        return loss_of(model, clean, generator, bf16=bf16)

    run.run(step, steps, show=show)
    average: PixelCodec = run.average
    return average


def loss_of(
    codec: PixelCodec, clean: torch.Tensor, generator: torch.Generator, *, bf16: bool = False
) -> dict[str, torch.Tensor]:
    """The loss of a batch (n, 3, h, w) in [-1, 1] over random channels at random rates."""
    count, shape = len(clean), (3, clean.shape[2], clean.shape[3])
    most = codec.max_channel_uses(shape)
    uniform = torch.rand(count, generator=generator)
    octaves = OCTAVES * ((uniform - END_SHARE) / (1 - 2 * END_SHARE)).clamp(0, 1)
    uses = (most * 2.0**-octaves).round().int().clamp(1, most).tolist()
    conditions = replace(draw_conditions(count, generator), cbr=torch.tensor(uses) / clean[0].numel())
    channels = conditions.channels(generator)
    known = conditions.features()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        symbols = codec.features(clean, uses, known)
    order = sending_order(uses, symbols.shape[1])
    equalised = pass_through(
        channels,
        symbols.gather(1, order),
        torch.tensor(uses),
        generator,
        zero_forcing=conditions.zero_forcing,
    ).gather(1, order.argsort(dim=1))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        received = codec.reconstruct(equalised, shape, uses, conditions.features(channels.block_snr_db))
    error = ((received - clean) / 2).square().mean(dim=(1, 2, 3))
    return {"loss": (error + ERROR_FLOOR).log().mean(), "psnr_db": -10 * error.log10().mean()}


def delivered_psnr_db(codec: PixelCodec, pictures: Sequence[Pixels], cbr: float, snr_db: float) -> float:
    """Mean PSNR, dB, of pictures (height, width, 3) over AWGN; cut to multiples of PIXEL_CODEC_STEP."""
    link, conditions = SemanticLink(codec), LinkConditions(snr_db=snr_db, fading="awgn")
    found = []
    for seed, pixels in enumerate(pictures):
        height, width = (side - side % PIXEL_CODEC_STEP for side in pixels.shape[:2])
        sent = from_pixels(pixels[None, :height, :width])
        uses = round(cbr * sent.numel())
        result = link.send(sent, [conditions], [seed], source_values=sent.numel(), channel_uses=uses)
        error = ((result.latents.clamp(-1, 1) - sent) / 2).square().mean()
        found.append(float(-10 * error.log10()))
    return round(float(np.mean(found)), 2)
