"""LPIPS and DISTS, by torchmetrics: plug-ins, as their networks are downloaded when they are first used.

Both need the extra `perceptual` and, once, the network: torchvision fetches AlexNet (LPIPS, 233 MB) or VGG-16
(DISTS, 528 MB) into its cache. Load them as every plug-in: ``dekag --plugin dekag.metrics.perceptual:Lpips``.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from typing import Any

import numpy as np

from dekag.errors import NotFoundError
from dekag.metrics.image import Metric, Pixels, Scores, as_numpy, as_torch, check_side

_SIDE = 64  # of images that every network takes, pixels


class _Downloaded(Metric):
    """A metric whose network torchvision downloads."""

    def check(self) -> None:
        """Loads the network, so that hours of work do not end for want of it.

        Raises:
            NotFoundError: the extra is not installed, or the network's weights cannot be downloaded.
        """
        blank = np.zeros((1, _SIDE, _SIDE, 3), np.uint8)
        self.score(blank, blank)

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,), 0 for identical images.

        Raises:
            InvalidInputError: a side is shorter than `smallest_side`.
            NotFoundError: the extra is not installed, or the network's weights cannot be downloaded.
        """
        import torch

        check_side(images, self)
        if importlib.util.find_spec("torchvision") is None:
            raise NotFoundError(f"{self.name} needs torchvision: pip install 'dekag[perceptual]'")
        try:
            with torch.inference_mode():
                return as_numpy(self._distances(as_torch(images), as_torch(references)))
        except OSError as error:
            problem = f"{self.name} needs the weights of its network, which cannot be downloaded: {error}"
            raise NotFoundError(problem) from None

    @abstractmethod
    def _distances(self, images: Any, references: Any) -> Any:
        """(n,) distances of images (n, 3, h, w) in [0, 1]."""


class Lpips(_Downloaded):
    """LPIPS with AlexNet (Zhang et al., 2018); lower is better."""

    name = "lpips"
    smallest_side = 31  # of smaller images, nothing is left for the second pooling of AlexNet

    def _distances(self, images: Any, references: Any) -> Any:
        import torch
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips

        pairs = zip(images.split(1), references.split(1), strict=True)  # it returns the mean of a batch
        return torch.stack([lpips(*pair, net_type="alex", normalize=True) for pair in pairs])


class Dists(_Downloaded):
    """DISTS (Ding et al., 2020); lower is better."""

    name = "dists"

    def _distances(self, images: Any, references: Any) -> Any:
        from torchmetrics.functional.image.dists import deep_image_structure_and_texture_similarity as dists

        return dists(images, references, reduction="none")
