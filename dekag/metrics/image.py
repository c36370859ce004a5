"""Pixel-based similarity of images, and `Metric`, the base class of plug-in metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dekag.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

BEST_PSNR_DB = 100.0  # reported for identical images

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of Wang et al. (2003), finest scale first
_WINDOW = 11  # pixels

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

    def check(self) -> None:  # noqa: B027  most metrics need nothing
        """Raise a DekagError if the metric cannot score here; sweeps ask before they measure anything."""

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
    """Structural similarity (Wang et al., 2004), at most 1: mean over positions of the window and colours.

    The window is Gaussian, 11x11 with a deviation of 1.5 pixels, and lies within the image everywhere.
    """

    name = "ssim"
    smallest_side = _WINDOW

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,).

        Raises:
            InvalidInputError: a side is shorter than the window.
        """
        check_side(images, self)
        similarity, _ = _similarities(as_torch(images), as_torch(references))
        return as_numpy(similarity.mean(dim=1))


class MsSsim(Metric):
    """Structural similarity over five scales (Wang et al., 2003), at most 1.

    Images with a side of 160 pixels or less have four scales, and need at least 88 pixels a side.
    """

    name = "ms_ssim"
    smallest_side = 8 * _WINDOW  # of four scales

    def score(self, images: Pixels, references: Pixels) -> Scores:
        """(n,).

        Raises:
            InvalidInputError: a side is too short for four scales.
        """
        from torch.nn.functional import avg_pool2d

        check_side(images, self)
        weights: tuple[float, ...] = _MS_SSIM_WEIGHTS
        if min(images.shape[1:3]) <= 160:
            weights = tuple(weight / sum(weights[:4]) for weight in weights[:4])
        ours, theirs = as_torch(images), as_torch(references)
        product = ours.new_ones(())
        for scale, weight in enumerate(weights):
            if scale:  # halve both, with a border of zeros on odd sides as pytorch-msssim has it
                odd = [side % 2 for side in ours.shape[2:]]
                ours, theirs = (avg_pool2d(each, 2, padding=odd) for each in (ours, theirs))
            similarity, contrast = _similarities(ours, theirs)
            factor = similarity if scale == len(weights) - 1 else contrast
            product = product * factor.clamp_min(0) ** weight
        return as_numpy(product.mean(dim=1))


def check_side(images: Pixels, metric: Metric) -> None:
    """Raises InvalidInputError if a side of images (n, height, width, 3) is too short for a metric."""
    if min(images.shape[1:3]) < metric.smallest_side:
        allowed = f"images of at least {metric.smallest_side} pixels a side for {metric.name}"
        raise InvalidInputError("images", allowed, f"{images.shape[2]}x{images.shape[1]}")


def _similarities(images: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM of each colour, and the same without brightness: (n, 3) each, of (n, 3, h, w) in [0, 1]."""
    import torch
    from torch.nn.functional import conv2d

    places = torch.arange(_WINDOW) - _WINDOW // 2
    line = torch.exp(-(places**2) / (2 * 1.5**2))
    line = (line / line.sum()).expand(images.shape[1], 1, 1, -1)

    def windowed(values: torch.Tensor) -> torch.Tensor:
        groups = values.shape[1]
        return conv2d(conv2d(values, line, groups=groups), line.transpose(2, 3), groups=groups)

    x, y = windowed(images), windowed(references)
    variances = windowed(images**2) - x**2 + windowed(references**2) - y**2
    covariance = windowed(images * references) - x * y
    contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    brightness = (2 * x * y + 0.01**2) / (x**2 + y**2 + 0.01**2)
    return (brightness * contrast).mean(dim=(2, 3)), contrast.mean(dim=(2, 3))


def as_torch(images: Pixels) -> torch.Tensor:
    """Images (n, height, width, 3) uint8 as (n, 3, height, width) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def as_numpy(scores: object) -> Scores:
    """Scores of a metric as (n,) float64."""
    return np.atleast_1d(np.asarray(scores, dtype=np.float64))


METRICS: dict[str, Metric] = {each.name: each for each in (Psnr(), Ssim(), MsSsim())}
"""By name; plug-ins are added."""
