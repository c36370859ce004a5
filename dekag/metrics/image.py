"""How alike two pictures are, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BEST_PSNR_DB = 100.0  # reported for identical pictures


def psnr_db(image: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> float:
    """PSNR (dB) of `image` against `reference`, both (height, width, 3) uint8; 100 when identical.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != reference.shape:
        raise ValueError(f"pictures of shapes {image.shape} and {reference.shape} cannot be compared")
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)) / 255**2
    return BEST_PSNR_DB if error == 0 else -10 * math.log10(error)
