"""Artefacts typical of generators, added to images to train metrics that penalise such artefacts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

KINDS = ("blurred", "melted", "torn", "mixed")
MELT = 0.09  # largest displacement of a pixel, as a fraction of the image's side
COARSE = 6  # knots per side of the displacement field


def damaged(images: torch.Tensor, generator: torch.Generator, *, kind: str | None = None) -> torch.Tensor:
    """Images (batch, 3, h, w) in [-1, 1], each damaged in one of KINDS, selected at random.

    Args:
        images: images to damage.
        generator: CPU generator that selects kinds and positions.
        kind: one of KINDS to apply to all images, instead of a random one.
    """
    count = len(images)
    versions = {
        "blurred": _blurred(images, generator),
        "melted": _melted(images, generator),
        "torn": _torn(images, generator),
        "mixed": _mixed(images, generator),
    }
    drawn = torch.randint(len(KINDS), (count,), generator=generator).tolist()
    return torch.stack([versions[kind or KINDS[choice]][n] for n, choice in enumerate(drawn)])


def _blurred(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur the whole image over 5 to 9 % of its side."""
    side = images.shape[-1]
    width = max(3, int(side * (0.05 + 0.04 * float(torch.rand(1, generator=generator)))) | 1)
    soft = images
    for _ in range(2):
        soft = F.avg_pool2d(soft, width, stride=1, padding=width // 2, count_include_pad=False)
    return soft


def _field(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth random field (count, 2, side, side) with values up to about 1, strongest in the middle."""
    knots = 2 * torch.rand(count, 2, COARSE, COARSE, generator=generator) - 1
    field = F.interpolate(knots, size=side, mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, side)
    middle = torch.exp(-1.5 * (line[:, None] ** 2 + line[None] ** 2))
    return field * middle


def _moved(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Images with each pixel taken from `shift` (batch, 2, h, w) away, as a fraction of the side."""
    side = images.shape[-1]
    line = (torch.arange(side) * 2 + 1) / side - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    moved = grid + 2 * shift.permute(0, 2, 3, 1)
    return F.grid_sample(images, moved.to(images.device), padding_mode="border", align_corners=False)


def _melted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Displace pixels by a smooth random field, so that shapes melt."""
    return _moved(images, MELT * (1.2 * _field(len(images), images.shape[-1], generator)))


def _torn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Displace pixels by a finer field, which distorts details such as eyes, as weak generators do."""
    side = images.shape[-1]
    knots = 2 * torch.rand(len(images), 2, 4 * COARSE, 4 * COARSE, generator=generator) - 1
    return _moved(images, 0.035 * F.interpolate(knots, size=side, mode="bicubic", align_corners=True))


def _mixed(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blend a soft blob of the next image into the middle of each image."""
    side = images.shape[-1]
    line = torch.linspace(-1, 1, side)
    centre = 0.5 * torch.rand(len(images), 2, generator=generator) - 0.25
    far = (line[None, :, None] - centre[:, 0, None, None]) ** 2 + (
        line[None, None] - centre[:, 1, None, None]
    ) ** 2
    blob = torch.exp(-far / 0.12).unsqueeze(1).to(images.device)
    return images + (images.roll(1, 0) - images) * blob
