"""Training of the attribute probe on rendered scenes, blurred and shifted a little to make it robust."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from dekag.metrics.probe import JUDGED, AttributeProbe
from dekag.training.data import rendered_scenes, scene_number, to_tensor
from dekag.training.loop import TrainingRun
from dekag.training.vae import SCENES
from dekag.world.scene import ATTRIBUTES

BATCH = 64


def attribute_labels(split: str, count: int) -> dict[str, torch.Tensor]:
    """Index of each judged attribute's word for scenes 0..count-1 of `split`; -100 where not visible."""
    scenes = [scene_number(split, n)[0] for n in range(count)]
    return {
        name: torch.tensor(
            [
                ATTRIBUTES[name].index(getattr(s, name)) if name in s.visible_attributes() else -100
                for s in scenes
            ]
        )
        for name in JUDGED
    }


def weathered(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images as a generator might have drawn them: shifted by up to 6 pixels, some blurred, some noisy."""
    shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
    images = F.pad(images, (6, 6, 6, 6), mode="replicate")
    images = images[..., 6 + shift[0] : 134 + shift[0], 6 + shift[1] : 134 + shift[1]]
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    amount = 0.15 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images + (blurred - images) * share + noise * amount


def train_probe(folder: Path, cache: Path, *, steps: int, seed: int, scenes: int = SCENES) -> AttributeProbe:
    """Train the probe for `steps`, resuming what `folder` holds; returns the averaged model."""
    torch.manual_seed(seed)
    pixels = rendered_scenes(cache, "train", scenes)
    labels = attribute_labels("train", scenes)
    probe = AttributeProbe()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    run = TrainingRun(folder, probe, [optimizer], seed=seed, ema_decay=0.995)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (BATCH,), generator=generator)
        logits = probe(weathered(to_tensor(pixels[pick.numpy()]), generator))
        losses = {n: F.cross_entropy(logits[n], labels[n][pick]) for n in JUDGED}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    run.run(step, steps)
    average: AttributeProbe = run.average
    return average


def rendered_accuracy(probe: AttributeProbe, cache: Path, count: int = 500) -> dict[str, float]:
    """Share of visible attributes read right on validation scenes: the probe's own ceiling, per attribute."""
    pixels = rendered_scenes(cache, "validation", count)
    verdicts = probe.correct(pixels, [scene_number("validation", n)[0] for n in range(count)])
    shares = {}
    for name in JUDGED:
        seen = [verdict[name] for verdict in verdicts if name in verdict]
        shares[name] = round(sum(seen) / len(seen), 4)
    return shares
