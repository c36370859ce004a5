"""Pictures as bytes: PNG for people, WebP for the wire."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dekag.errors import InvalidInputError

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB
MAX_SIDE = 4096


def to_png(pixels: Pixels) -> bytes:
    """Lossless PNG of pixels (height, width, 3) uint8."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def to_webp(pixels: Pixels, quality: int = 75) -> bytes:
    """Lossy WebP of pixels (height, width, 3) uint8; `quality` 0..100."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def from_bytes(data: bytes) -> Pixels:
    """Pixels (height, width, 3) uint8 of a PNG or WebP.

    Raises:
        InvalidInputError: `data` is no picture of those kinds, or larger than 4096 pixels a side.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            if max(image.size) > MAX_SIDE:
                raise InvalidInputError("image", f"at most {MAX_SIDE} pixels a side", image.size)
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InvalidInputError("image", "a readable PNG or WebP", f"{len(data)} bytes") from error
