"""DINO- and CLIP-score: cosine similarity of image features, received image against cloud image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from dekag.generation.loading import folder_hash

CLIP_SIZE = 64  # input side of the shipped encoders, pixels


def reduce_images(images: torch.Tensor, size: int = CLIP_SIZE) -> torch.Tensor:
    """Images (batch, 3, h, w) reduced to (batch, 3, size, size)."""
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


class ImageScorer:
    """CLIP- and DINO-features of images and their similarity.

    Args:
        clip: a CLIPModel.
        dino: a Dinov2Model.
        clip_processor, dino_processor: the models' own image processors. A model without one, such as the
            shipped encoders, reads images that are reduced to its input size, in [-1, 1].
        model_hash: hash of both models.
    """

    def __init__(
        self,
        clip: Any,
        dino: Any,
        *,
        clip_processor: Any = None,
        dino_processor: Any = None,
        model_hash: str = "",
    ) -> None:
        self.model_hash = model_hash
        self.clip = clip.eval()
        self.dino = dino.eval()
        self._clip_processor, self._dino_processor = clip_processor, dino_processor

    @classmethod
    def load(cls, clip: Path | str, dino: Path | str) -> Self:
        """Load a CLIPModel and a Dinov2Model (any folder or hub name) with their image processors.

        They run in single precision, whatever their stored precision: in half precision, scores would depend
        on the processor.
        """
        from transformers import AutoModel

        single = {"dtype": torch.float32, "use_safetensors": True}
        return cls(
            AutoModel.from_pretrained(clip, **single),
            AutoModel.from_pretrained(dino, **single),
            clip_processor=_processor(clip),
            dino_processor=_processor(dino),
            model_hash=folder_hash(clip) + folder_hash(dino),
        )

    @torch.inference_mode()
    def features(self, pixels: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Unit-length features of (batch, h, w, 3) uint8 images: "clip" (batch, c), "dino" (batch, d)."""
        clip = self.clip.visual_projection(self.clip.vision_model(self.clip_pixels(pixels)).pooler_output)
        dino = self.dino(self.dino_pixels(pixels)).pooler_output
        return {"clip": F.normalize(clip, dim=1), "dino": F.normalize(dino, dim=1)}

    def clip_pixels(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Images (batch, h, w, 3) uint8 as the CLIP model reads them, (batch, 3, its height, its width)."""
        return _prepared(pixels, self._clip_processor, self.clip.config.vision_config.image_size)

    def dino_pixels(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """The same for the DINOv2 model."""
        return _prepared(pixels, self._dino_processor, self.dino.config.image_size)

    def scores(self, images: npt.NDArray[np.uint8], references: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """CLIP- and DINO-score of each image against its reference: arrays (batch,), at most 1."""
        ours, theirs = self.features(images), self.features(references)
        return {name: (ours[name] * theirs[name]).sum(1).numpy() for name in ours}


def _processor(path: Path | str) -> Any:
    """The image processor of a model, None if it has none."""
    from transformers import AutoImageProcessor
    from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

    if cached_file(path, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is None:
        return None
    return AutoImageProcessor.from_pretrained(path)


def _prepared(pixels: npt.NDArray[np.uint8], processor: Any, size: int) -> torch.Tensor:
    """Images (batch, h, w, 3) uint8 as a model reads them, (batch, 3, its height, its width)."""
    if processor is not None:
        prepared: torch.Tensor = processor(images=list(pixels), return_tensors="pt")["pixel_values"]
        return prepared
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return reduce_images(images, size)
