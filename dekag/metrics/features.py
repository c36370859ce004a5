"""DINO- and CLIP-score: cosine similarity of image features, received image against cloud image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

CLIP_SIZE = 64  # input side of the embedded encoders, pixels


def reduce_images(images: torch.Tensor, size: int = CLIP_SIZE) -> torch.Tensor:
    """Images (batch, 3, h, w) reduced to (batch, 3, size, size)."""
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


class ImageScorer:
    """CLIP- and DINO-features of images and their similarity."""

    def __init__(self, clip: Any, dino: Any) -> None:
        self.clip = clip.eval()
        self.dino = dino.eval()

    @classmethod
    def load(cls, clip: Path | str, dino: Path | str) -> Self:
        """Load a CLIPModel and a Dinov2Model (any folder or hub name).

        They run in single precision, whatever their stored precision: in half precision, scores would depend
        on the processor.
        """
        from transformers import AutoModel

        single = {"dtype": torch.float32}
        return cls(AutoModel.from_pretrained(clip, **single), AutoModel.from_pretrained(dino, **single))

    @torch.inference_mode()
    def features(self, pixels: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Unit-length features of (batch, h, w, 3) uint8 images: "clip" (batch, c), "dino" (batch, d)."""
        images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        small = reduce_images(images, self.clip.config.vision_config.image_size)
        clip = self.clip.visual_projection(self.clip.vision_model(small).pooler_output)
        small = reduce_images(images, self.dino.config.image_size)
        dino = self.dino(small).pooler_output
        return {"clip": F.normalize(clip, dim=1), "dino": F.normalize(dino, dim=1)}

    def scores(self, images: npt.NDArray[np.uint8], references: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """CLIP- and DINO-score of each image against its reference: arrays (batch,), at most 1."""
        ours, theirs = self.features(images), self.features(references)
        return {name: (ours[name] * theirs[name]).sum(1).numpy() for name in ours}
