"""Image files: PNG for display; WebP, AVIF and JPEG for transmission."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from dekag.errors import InvalidInputError

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB
ImageFormat = Literal["webp", "avif", "jpeg"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("webp", "avif", "jpeg")
MAX_SIDE = 4096
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
)
"""Errors of Pillow for damaged files."""


def to_png(pixels: Pixels) -> bytes:
    """Lossless PNG of pixels (height, width, 3) uint8."""
    return _saved(pixels, "PNG")


def to_webp(pixels: Pixels, quality: int = 75) -> bytes:
    """Lossy WebP of pixels (height, width, 3) uint8, with the slowest, best compression; `quality` 0..100."""
    return _saved(pixels, "WEBP", quality=quality, method=6)


def to_avif(pixels: Pixels, quality: int = 50) -> bytes:
    """AVIF of pixels (height, width, 3) uint8, with 4:2:0 chroma subsampling; `quality` 0..100.

    Speed 4: slower settings save 2 % at three times the time. One thread, so that the result is
        deterministic.
    """
    return _saved(pixels, "AVIF", quality=quality, speed=4, subsampling="4:2:0", max_threads=1)


def to_jpeg(pixels: Pixels, quality: int = 75) -> bytes:
    """JPEG of pixels (height, width, 3) uint8, with 4:2:0 chroma subsampling; `quality` 1..100.

    With optimised Huffman tables; progressive if that is smaller.
    """
    kinds = (_saved(pixels, "JPEG", quality=quality, optimize=True, progressive=p) for p in (False, True))
    return min(kinds, key=len)


def to_plain_jpeg(pixels: Pixels, quality: int = 75) -> bytes:
    """Baseline JPEG with standard Huffman tables; otherwise as `to_jpeg`."""
    return _saved(pixels, "JPEG", quality=quality)


DELIVERED_QUALITY: dict[ImageFormat, int] = {"webp": 75, "avif": 50, "jpeg": 75}
"""Settings of similar quality: 36 to 39 dB on images of the sticker world."""


def to_format(pixels: Pixels, image_format: ImageFormat, quality: int | None = None) -> bytes:
    """Pixels (height, width, 3) uint8 in one of IMAGE_FORMATS; quality of DELIVERED_QUALITY if left out."""
    encode = {"webp": to_webp, "avif": to_avif, "jpeg": to_jpeg}[image_format]
    return encode(pixels, DELIVERED_QUALITY[image_format] if quality is None else quality)


def from_bytes(data: bytes, *, max_side: int = MAX_SIDE) -> Pixels:
    """Pixels (height, width, 3) uint8 of a PNG, WebP, AVIF or JPEG; the format is detected.

    Raises:
        InvalidInputError: `data` is not such an image, or a side exceeds `max_side` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "AVIF", "JPEG")) as image:
            if max(image.size) > max_side:
                raise InvalidInputError("image", f"at most {max_side} pixels a side", image.size)
            return np.array(image.convert("RGB"))
    except UNREADABLE as error:
        raise InvalidInputError(
            "image", "a readable PNG, WebP, AVIF or JPEG", f"{len(data)} bytes"
        ) from error


def _saved(pixels: Pixels, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    if kind == "JPEG":
        options["subsampling"] = "4:2:0"
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()
