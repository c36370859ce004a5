"""Image files: PNG for display; WebP, AVIF and JPEG for transmission; HEVC and JPEG XL for comparison."""

from __future__ import annotations

import importlib
import io
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from dekag.errors import InvalidInputError

Pixels = npt.NDArray[np.uint8]  # (height, width, 3), RGB
ImageFormat = Literal["webp", "avif", "jpeg"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("webp", "avif", "jpeg")
"""Formats that the services deliver."""
FileFormat = Literal["webp", "avif", "jpeg", "hevc", "jxl"]
FILE_FORMATS: tuple[FileFormat, ...] = (*IMAGE_FORMATS, "hevc", "jxl")
"""Formats that can be compared; the last two need the extra `photos`."""
MAX_SIDE = 4096
_NOTE = "Comment"
_FULL_CHROMA_FROM = 40  # quality of HEVC
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


def to_png(pixels: Pixels, note: str = "") -> bytes:
    """Lossless PNG of pixels (height, width, 3) uint8; `note` is in it for `png_note`."""
    notes = PngImagePlugin.PngInfo()
    if note:
        notes.add_text(_NOTE, note)
    return _saved(pixels, "PNG", pnginfo=notes)


def png_note(path: Path) -> str:
    """The note that `to_png` put into a file; empty if there is no such file, or no note in it."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return str(image.info.get(_NOTE, ""))
    except UNREADABLE:
        return ""


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


def to_hevc(pixels: Pixels, quality: int = 50) -> bytes:
    """HEVC intra frame in a HEIF file, of pixels (height, width, 3) uint8; `quality` 0..100.

    This is what BPG codes: one intra frame of x265, here tuned for PSNR, at CRF (100 - quality) / 2. Chroma
    is 4:2:0 below quality 40 and 4:4:4 from there on, where that gives more PSNR for the bytes. The bits may
    depend on the version of x265, and on whether the machine has one core or more.

    Raises:
        ModuleNotFoundError: the extra `photos` is not installed.
    """
    _register_compared()
    chroma = 420 if quality < _FULL_CHROMA_FROM else 444
    return _saved(pixels, "HEIF", quality=quality, chroma=chroma, enc_params={"tune": "psnr"})


def to_jxl(pixels: Pixels, quality: int = 50) -> bytes:
    """JPEG XL codestream of pixels (height, width, 3) uint8; `quality` 0..99.

    Raises:
        ModuleNotFoundError: the extra `photos` is not installed.
    """
    _register_compared()
    return _saved(pixels, "JXL", quality=quality, num_threads=1)


@cache
def _register_compared() -> None:
    """Make Pillow read and write HEVC and JPEG XL."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    importlib.import_module("pillow_jxl")  # registers itself


DELIVERED_QUALITY: dict[FileFormat, int] = {"webp": 75, "avif": 50, "jpeg": 75}
"""Settings of similar quality: 36 to 39 dB on images of the sticker world."""


def to_format(pixels: Pixels, image_format: FileFormat, quality: int | None = None) -> bytes:
    """Pixels (height, width, 3) uint8 in one of FILE_FORMATS.

    The quality is that of DELIVERED_QUALITY if left out, or 50 for a format that is not delivered.
    """
    encoders = {"webp": to_webp, "avif": to_avif, "jpeg": to_jpeg, "hevc": to_hevc, "jxl": to_jxl}
    return encoders[image_format](
        pixels, DELIVERED_QUALITY.get(image_format, 50) if quality is None else quality
    )


def from_bytes(data: bytes, *, max_side: int = MAX_SIDE) -> Pixels:
    """Pixels (height, width, 3) uint8 of a PNG, WebP, AVIF or JPEG; the format is detected.

    Raises:
        InvalidInputError: `data` is not such an image, or a side exceeds `max_side` pixels.
    """
    return _opened(data, ("PNG", "WEBP", "AVIF", "JPEG"), "a readable PNG, WebP, AVIF or JPEG", max_side)


def from_compared(data: bytes, *, max_side: int = MAX_SIDE) -> Pixels:
    """Pixels (height, width, 3) uint8 of an HEVC or JPEG XL file; errors as those of `from_bytes`.

    Raises:
        ModuleNotFoundError: the extra `photos` is not installed.
    """
    _register_compared()
    return _opened(data, ("HEIF", "JXL"), "a readable HEVC or JPEG XL", max_side)


def _opened(data: bytes, formats: tuple[str, ...], allowed: str, max_side: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if max(image.size) > max_side:
                raise InvalidInputError("image", f"at most {max_side} pixels a side", image.size)
            return np.array(image.convert("RGB"))
    except UNREADABLE as error:
        raise InvalidInputError("image", allowed, f"{len(data)} bytes") from error


def _saved(pixels: Pixels, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    if kind == "JPEG":
        options["subsampling"] = "4:2:0"
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()
