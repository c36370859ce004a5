"""The outline judge, a metric of the subject's silhouette that does not saturate.

A small network segments the subject in an image; its mask is compared with the true mask of the scene. A blob
in the right colours satisfies the attribute probe, but not this metric.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

SEES = 128  # input side, pixels
SHIFT = 12  # allowed displacement of the subject, pixels of SEES


class OutlineJudge(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small U-shaped network that marks the subject.

    forward: images (batch, 3, 128, 128) in [-1, 1] -> logits (batch, 1, 128, 128): is the subject here?
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 3 * width, 4 * width, 4 * width]
        self.first = _layer(3, width)
        self.down = nn.ModuleList(_layer(a, b, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_layer(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the subject's mask."""
        levels = [self.first(images)]
        for layer in self.down:
            levels.append(layer(levels[-1]))
        state = levels.pop()
        for layer in self.up:
            state = F.interpolate(state, scale_factor=2.0)
            state = layer(torch.cat([state, levels.pop()], dim=1))
        logits: torch.Tensor = self.last(state)
        return logits

    @torch.inference_mode()
    def masks(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Where the subject is, (n, 128, 128) in 0..1, in images (n, h, w, 3) uint8."""
        images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        small = F.interpolate(images, size=SEES, mode="bilinear", antialias=True)
        return torch.cat([self(part).sigmoid() for part in small.split(16)])[:, 0]

    def agreement(
        self, pixels: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        """(n,): how well the subject's outline in each image agrees with its true mask, 0..1.

        Intersection over union where the two lie on each other best, within SHIFT pixels.

        Args:
            pixels: (n, h, w, 3) uint8.
            masks: (n, h, w) uint8, 0..255.
        """
        true = torch.from_numpy(np.array(masks)).float().div(255).unsqueeze(1)
        true = F.interpolate(true, size=SEES, mode="bilinear", antialias=True)[:, 0]
        return best_overlap(self.masks(pixels), true).double().numpy()


def best_overlap(ours: torch.Tensor, theirs: torch.Tensor, shift: int = SHIFT) -> torch.Tensor:
    """(n,): intersection over union of masks (n, h, w) in 0..1, shifted to where it is largest."""
    size = [side + 2 * shift for side in ours.shape[1:]]
    spectrum = torch.fft.rfft2(ours, s=size) * torch.fft.rfft2(theirs, s=size).conj()
    common = torch.fft.irfft2(spectrum, s=size)
    near = torch.cat([common[:, : shift + 1], common[:, -shift:]], dim=1)
    near = torch.cat([near[..., : shift + 1], near[..., -shift:]], dim=2)
    intersection = near.amax(dim=(1, 2)).clamp_min(0)
    union = ours.sum(dim=(1, 2)) + theirs.sum(dim=(1, 2)) - intersection
    overlap: torch.Tensor = intersection / union.clamp_min(1e-6)
    return overlap.clamp(0, 1)


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(4, outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.GELU(),
    )
