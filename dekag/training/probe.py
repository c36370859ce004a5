"""Training of the models that evaluate the generators: the attribute probe and the outline judge.

Both are trained on rendered scenes only, with slight blur, shifts and noise, which makes them robust.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dekag.metrics.outline import SEES, OutlineJudge
from dekag.metrics.probe import JUDGED, AttributeProbe
from dekag.training.damage import damaged
from dekag.training.data import Pixels, image_number, to_tensor
from dekag.training.device import CPU, multiplying
from dekag.training.loop import TrainingRun
from dekag.training.worlds import World

BATCH = 64
OUTLINE_BATCH = 16
SEEN_SIDE = 128  # input side of the probe for images of 256 pixels; for smaller images, half their side
BLOCKS = 1
SMOOTHING = 0.05  # of the labels


def seen_side(world: World) -> int:
    """Side to which the probe reduces the images of a world, pixels."""
    return min(SEEN_SIDE, world.size // 2)


def attribute_labels(split: str, count: int, world: World) -> dict[str, torch.Tensor]:
    """Class index of each judged attribute for images 0..count-1 of `split`; -100 where not visible."""
    scenes = [image_number(split, n, world)[0] for n in range(count)]
    return {
        name: torch.tensor(
            [
                world.attributes[name].index(getattr(s, name)) if name in s.visible_attributes() else -100
                for s in scenes
            ]
        )
        for name in JUDGED
    }


def weathered(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (batch, 3, h, w) with the deviations of a good generator, and mirrored at random.

    Each is shifted by up to 5 %, 10 % smaller to 10 % larger, blurred and noisy.
    """
    count = len(images)

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    frame = torch.zeros(count, 2, 3)
    frame[:, 1, 1] = drawn(0.9, 1.1)
    frame[:, 0, 0] = frame[:, 1, 1] * torch.where(drawn(0, 1) < 0.5, -1, 1)
    frame[:, :, 2] = drawn(-0.1, 0.1, 2)
    grid = F.affine_grid(frame, list(images.shape), align_corners=False).to(images.device)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    share, amount = (drawn(0, high, 1, 1, 1).to(images.device) for high in (1, 0.15))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return images + (blurred - images) * share + noise * amount


def reduced(pixels: Pixels, side: int) -> torch.Tensor:
    """Convert pixels (batch, size, size, 3) uint8 to images (batch, 3, side, side) in [-1, 1]."""
    return F.avg_pool2d(to_tensor(pixels), pixels.shape[1] // side)


def train_probe(
    folder: Path,
    pixels: Pixels,
    world: World,
    *,
    steps: int,
    seed: int,
    device: torch.device = CPU,
    bf16: bool = False,
) -> AttributeProbe:
    """Train the probe on training images 0..n-1, resuming from `folder`; returns the averaged model.

    `pixels` (n, h, h, 3) may be reduced to `seen_side(world)` already.
    """
    torch.manual_seed(seed)
    labels = attribute_labels("train", len(pixels), world)
    sees = seen_side(world)
    words = {name: list(world.attributes[name]) for name in JUDGED}
    probe = AttributeProbe(blocks=BLOCKS, sees=sees, words=words).to(
        device, memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    run = TrainingRun(folder, probe, [optimizer], seed=seed, ema_decay=0.995)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (BATCH,), generator=generator)
        images = weathered(reduced(pixels[pick.numpy()], sees).to(device), generator)
        with multiplying(device, bf16):
            logits = probe(images.contiguous(memory_format=torch.channels_last))
        losses = {
            name: F.cross_entropy(
                logits[name].float(), labels[name][pick].to(device), label_smoothing=SMOOTHING
            )
            for name in JUDGED
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    run.run(step, steps)
    average: AttributeProbe = run.average.to("cpu")
    return average


def rendered_accuracy(probe: AttributeProbe, pixels: Pixels, world: World) -> dict[str, float]:
    """Fraction of visible attributes recognised on validation images 0..n-1: the probe's upper limit."""
    scenes = [image_number("validation", n, world)[0] for n in range(len(pixels))]
    verdicts = probe.correct(pixels, scenes)
    shares = {}
    for name in JUDGED:
        seen = [verdict[name] for verdict in verdicts if name in verdict]
        shares[name] = round(sum(seen) / len(seen), 4)
    return shares


def train_outline_judge(
    folder: Path,
    pixels: Pixels,
    masks: Pixels,
    *,
    steps: int,
    seed: int,
    device: torch.device = CPU,
    bf16: bool = False,
) -> OutlineJudge:
    """Train the outline judge on images (n, h, w, 3) and masks (n, h, w), both uint8."""
    torch.manual_seed(seed)
    judge = OutlineJudge().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    run = TrainingRun(folder, judge, [optimizer], seed=seed, ema_decay=0.995)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (OUTLINE_BATCH,), generator=generator).numpy()
        images = reduced(pixels[pick], SEES).to(device)
        noise = torch.randn(images.shape, generator=generator).to(device)
        strength = 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator).to(device)
        wanted = torch.from_numpy(np.array(masks[pick])).unsqueeze(1).float().div(255)
        wanted = F.avg_pool2d(wanted, wanted.shape[-1] // SEES).to(device)
        with multiplying(device, bf16):
            logits = judge((images + noise * strength).contiguous(memory_format=torch.channels_last)).float()
        return {"loss": F.binary_cross_entropy_with_logits(logits, wanted)}

    run.run(step, steps)
    average: OutlineJudge = run.average.to("cpu")
    return average


def outline_quality(judge: OutlineJudge, pixels: Pixels, masks: Pixels) -> dict[str, float]:
    """Mean agreement on held-out images, undamaged and melted: the scores of a perfect and a poor image."""
    images = to_tensor(pixels)
    spoilt = damaged(images, torch.Generator().manual_seed(0), kind="melted")
    melted = spoilt.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return {
        "agreement": round(float(judge.agreement(pixels, masks).mean()), 4),
        "agreement_if_melted": round(float(judge.agreement(melted, masks).mean()), 4),
    }
