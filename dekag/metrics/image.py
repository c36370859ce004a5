"""Pixel-based similarity of images, and `Metric`, the base class of plug-in metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

BEST_PSNR_DB = 100.0  # reported for identical images

# The usual weights of the four finest scales, made to sum to 1: the fifth does not exist at 128 pixels.
_MS_SSIM_SCALES = (0.0517, 0.3295, 0.3462, 0.2726)

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]


class Metric(ABC):
    """A quality metric of received images.

    Attributes:
        name: its name in reports: lower-case letters, digits, - and _.
        smallest_side: of the images that it can score, pixels.
    """

    name: str
    smallest_side: int = 1

    @abstractmethod
    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,) float64: scores of `images` against their `references`, both (n, height, width, 3) uint8."""


def psnr_db(image: Pixels, reference: Pixels) -> float:
    """PSNR (dB) of `image` against `reference`, both (height, width, 3) uint8; 100 when identical.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(f"images of shapes {image.shape} and {reference.shape} cannot be compared")
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)) / 255**2
    return BEST_PSNR_DB if error == 0 else -10 * math.log10(error)


def ssim(image: Pixels, reference: Pixels) -> float | None:
    """SSIM of `image` against `reference`, both (height, width, 3) uint8; None below 11 pixels a side."""
    if min(reference.shape[:2]) < Ssim.smallest_side:
        return None
    return float(Ssim().score(image[None], reference[None])[0])


class Psnr(Metric):
    """PSNR, dB."""

    name = "psnr_db"

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,) dB."""
        return np.array([psnr_db(*pair) for pair in zip(images, references, strict=True)])


class Ssim(Metric):
    """Structural similarity, at most 1."""

    name = "ssim"
    smallest_side = 11  # of its window

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,)."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        ours, theirs = _as_torch(images), _as_torch(references)
        return _as_numpy(structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none"))


class MsSsim(Metric):
    """Structural similarity over four scales, at most 1; images of at least 96 pixels a side."""

    name = "ms_ssim"
    smallest_side = 96

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,)."""
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

        ours, theirs = _as_torch(images), _as_torch(references)
        return _as_numpy(
            ms_ssim(ours, theirs, data_range=1.0, reduction="none", betas=_MS_SSIM_SCALES, normalize="relu")
        )


def _as_torch(images: Pixels) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def _as_numpy(scores: object) -> Scores:
    return np.atleast_1d(np.asarray(scores, dtype=np.float64))


METRICS: dict[str, Metric] = {each.name: each for each in (Psnr(), Ssim(), MsSsim())}
"""By name; plug-ins are added."""
