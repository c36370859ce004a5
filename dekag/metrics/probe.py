"""The attribute probe: classifies subject, colour, setting and style of an image, for evaluation only.

Trained on rendered scenes, never on the output of a generator, and not used to train generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from dekag.stickers.scene import ATTRIBUTES

JUDGED = ("subject", "colour", "setting", "style")


def _layer(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return [convolution, nn.GroupNorm(4, outputs), nn.GELU()]


class ResidualBlock(nn.Module):
    """Two convolutions, whose output is added to their input (batch, channels, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.GroupNorm(4, channels)
        nn.init.zeros_(norm.weight)  # at first, the block passes its input on
        second = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = nn.Sequential(*_layer(channels, channels), second, norm)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """State of the same shape."""
        return F.gelu(state + self.layers(state))


class AttributeProbe(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A small convolutional classifier with one head for each judged attribute.

    forward: images (batch, 3, h, w) in [-1, 1] of any size -> logits by attribute, each (batch, words).

    Args:
        width: channels of the first layer.
        blocks: residual blocks after each halving but the first.
        sees: side to which it reduces images, pixels.
        words: of every judged attribute; those of `dekag.stickers` if left out.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, width: int = 32, blocks: int = 0, sees: int = 64, words: dict[str, list[str]] | None = None
    ) -> None:
        super().__init__()
        self.words = {name: list((words or ATTRIBUTES)[name]) for name in JUDGED}
        halvings = (sees // 4).bit_length() - 1
        widths = [width, 2 * width] + [4 * width] * (halvings - 2)
        layers: list[nn.Module] = []
        inputs = 3
        for level, outputs in enumerate(widths):
            layers += _layer(inputs, outputs, stride=2)
            layers += [ResidualBlock(outputs) for _ in range(blocks if level else 0)]
            inputs = outputs
        self.body = nn.Sequential(*layers, nn.Conv2d(inputs, inputs, 3, padding=1), nn.GELU())
        # mean over the image for what fills it, maximum for what stands somewhere in it
        self.heads = nn.ModuleDict({name: nn.Linear(2 * inputs, len(self.words[name])) for name in JUDGED})

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every judged attribute."""
        features = self.body(self._reduced(images))
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}

    def _reduced(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, h, w) as (batch, 3, sees, sees), where possible by means of whole squares."""
        side, (height, width) = self.config.sees, images.shape[2:]
        if height == width and width % side == 0:
            return F.avg_pool2d(images, width // side)
        return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)

    @torch.inference_mode()
    def read(self, pixels: npt.NDArray[np.uint8]) -> list[dict[str, str]]:
        """The most likely word of every judged attribute, for each of (batch, h, w, 3) uint8 images."""
        images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        indices = {name: logits.argmax(1).tolist() for name, logits in self(images).items()}
        return [{name: self.words[name][indices[name][i]] for name in JUDGED} for i in range(len(pixels))]

    def correct(self, pixels: npt.NDArray[np.uint8], scenes: Sequence[Any]) -> list[dict[str, bool]]:
        """Whether each image shows its scene's attributes; only those that its style leaves visible."""
        return [
            {name: read[name] == getattr(scene, name) for name in scene.visible_attributes()}
            for read, scene in zip(self.read(pixels), scenes, strict=True)
        ]
