"""DINO- and CLIP-score: cosine similarity of image features, received image against cloud image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch.nn import functional as F

from dekag.checksums import RECORD
from dekag.errors import MismatchError
from dekag.generation.loading import folder_hash, local_folder

KINDS = {"clip": "a CLIPModel", "dino": "a Dinov2Model"}
"""What the evaluators are, by their role."""
HOW_READ = "preprocessor_config.json"


def other_kind(role: str, model_type: str) -> str:
    """What is wrong with a model of this `model_type` as an evaluator; empty if nothing is."""
    fits = model_type == "clip" if role == "clip" else model_type.startswith("dino")
    return "" if fits else f"a model of type {model_type!r}; must be {KINDS[role]}"


def reduce_images(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (batch, 3, h, w) reduced to (batch, 3, size, size)."""
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def encoder_hashes(
    clip: Path | str,
    dino: Path | str,
    clip_revision: str | None = None,
    dino_revision: str | None = None,
) -> dict[str, str]:
    """The hashes of both models by role, of models on a hub that of their commit; loads none.

    Raises:
        NotFoundError: a model is neither a folder nor in the hub's cache.
    """
    return {"clip": folder_hash(clip, clip_revision), "dino": folder_hash(dino, dino_revision)}


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
    def load(
        cls,
        clip: Path | str,
        dino: Path | str,
        *,
        clip_revision: str | None = None,
        dino_revision: str | None = None,
    ) -> Self:
        """Load a CLIPModel and a Dinov2Model (folders, or names in the hub's cache) with their processors.

        They run in single precision, whatever their stored precision: in half precision, scores would depend
        on the processor.

        Raises:
            NotFoundError: a model is neither a folder nor in the hub's cache.
            MismatchError: a folder has no such model in safetensors files, or it does not say how the model
                reads images.
        """
        folders = [
            local_folder(str(path), revision)
            for path, revision in ((clip, clip_revision), (dino, dino_revision))
        ]
        models, processors = zip(*((_model(each), _processor(each)) for each in folders), strict=True)
        for role, model, folder in zip(KINDS, models, folders, strict=True):
            if told := other_kind(role, model.config.model_type):
                raise MismatchError(f"{folder} is {told}")
        return cls(
            *models,
            clip_processor=processors[0],
            dino_processor=processors[1],
            model_hash="".join(encoder_hashes(clip, dino, clip_revision, dino_revision).values()),
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


def _model(folder: str) -> Any:
    from transformers import AutoModel

    single = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    try:
        return AutoModel.from_pretrained(folder, **single)
    except (OSError, ValueError, SafetensorError) as error:
        said = str(error).strip().partition("\n")[0]
        raise MismatchError(f"{folder} holds no model in safetensors files: {said}") from None


def _processor(folder: str) -> Any:
    """The image processor of a model, None for those of this project, which have none.

    Raises:
        MismatchError: a model of others has none: without its mean and deviation, its scores would be wrong.
    """
    from transformers import AutoImageProcessor

    if (Path(folder) / HOW_READ).is_file():
        try:
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            said = str(error).strip().partition("\n")[0]
            raise MismatchError(f"{folder}/{HOW_READ} cannot be read: {said}") from None
    if (Path(folder) / RECORD).is_file():
        return None
    raise MismatchError(f"{folder} has no {HOW_READ}, which says how its model reads images")


def _prepared(pixels: npt.NDArray[np.uint8], processor: Any, size: int) -> torch.Tensor:
    """Images (batch, h, w, 3) uint8 as a model reads them, (batch, 3, its height, its width)."""
    if processor is not None:
        prepared: torch.Tensor = processor(images=list(pixels), return_tensors="pt")["pixel_values"]
        return prepared
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return reduce_images(images, size)
