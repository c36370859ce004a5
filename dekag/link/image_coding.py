"""The image's side of the conventional delivery: the best image that fits a number of bytes.

A sender that has few bytes may do more than lower the quality:

* *scale*: send the image at a half, a quarter or an eighth of its size; the receiver enlarges it;
* *bare*: leave out of the file whatever the receiver knows anyway. Of a WebP of 100 bytes 27 say that it is
  a WebP, and how large; of an AVIF 290 bytes are boxes, of an HEVC 420; of a JPEG 600 are standard tables.
  A bare image is one byte for format and scale, one more for the quality of a JPEG or HEVC, and the coded
  image; the receiver, who knows the size that was asked for, puts the file together again, byte for byte.
  Of a JPEG XL only the two bytes of its signature can be left out.

Imports no torch.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from dekag.errors import InvalidInputError
from dekag.generation.images import (
    FILE_FORMATS,
    FileFormat,
    Pixels,
    from_bytes,
    from_compared,
    to_format,
    to_plain_jpeg,
)
from dekag.metrics.image import psnr_db

SCALES = (1, 2, 4, 8)
QUALITIES = (0, 1, 2, 3, 5, 7, 10, 13, 17, 22, 28, 35, 43, 52, 62, 73, 85, 95)

_LOWEST = {"webp": 0, "avif": 0, "jpeg": 1, "hevc": 0, "jxl": 0}  # quality
# AVIF of quality 100 has another sequence header; JPEG XL of quality 100 is lossless
_HIGHEST = {"webp": 100, "avif": 99, "jpeg": 100, "hevc": 100, "jxl": 99}
_JXL_SIGNATURE = b"\xff\x0a"
_FRAME_OBU = 6


@dataclass(frozen=True)
class EncodedImage:
    """An image as it would be sent.

    Attributes:
        data: what is sent.
        image_format: of FILE_FORMATS.
        quality: the encoder's, 0..100.
        scale: by how much the image was made smaller.
        psnr_db: of what the receiver shows against the original.
    """

    data: bytes
    image_format: FileFormat
    quality: int
    scale: int
    psnr_db: float


def encode(
    pixels: Pixels, image_format: FileFormat, quality: int, *, scale: int = 1, headerless: bool = False
) -> bytes:
    """Pixels (height, width, 3) uint8 as they are sent; `scale` of SCALES."""
    small = _resized(pixels, *_small(pixels.shape[1], pixels.shape[0], scale))
    quality = min(max(quality, _LOWEST[image_format]), _HIGHEST[image_format])
    if not headerless:
        return to_format(small, image_format, quality)
    if image_format == "jpeg":
        return _strip_header(to_plain_jpeg(small, quality), image_format, quality, scale)
    return _strip_header(to_format(small, image_format, quality), image_format, quality, scale)


def decode(data: bytes, width: int, height: int, *, headerless: bool = False) -> Pixels:
    """Pixels (height, width, 3) uint8 of what `encode` made of an image of that size.

    Raises:
        InvalidInputError: the data are not an image, or a larger one.
    """
    file = _restore_header(data, width, height) if headerless else data
    compared = file.startswith(_JXL_SIGNATURE) or file[4:11] == b"ftyphei"
    shown = (from_compared if compared else from_bytes)(file, max_side=max(width, height))
    return _resized(shown, width, height)


def ladders(
    pixels: Pixels, image_format: FileFormat, settings: Sequence[tuple[int, int]] | None = None
) -> tuple[list[EncodedImage], list[EncodedImage]]:
    """The Pareto frontiers of `candidates` in size and PSNR, for whole files and for headerless ones.

    Each is sorted by ascending size and PSNR.

    Args:
        pixels: (height, width, 3) uint8.
        image_format: of FILE_FORMATS.
        settings: qualities and scales to try; all of QUALITIES and SCALES if left out.
    """
    whole, headerless = candidates(pixels, image_format, settings)
    return frontier(whole), frontier(headerless)


def candidates(
    pixels: Pixels, image_format: FileFormat, settings: Sequence[tuple[int, int]] | None = None
) -> tuple[list[EncodedImage], list[EncodedImage]]:
    """An image at every quality and scale, as whole files and as headerless ones, which show the same.

    Args:
        pixels: (height, width, 3) uint8.
        image_format: of FILE_FORMATS.
        settings: qualities and scales; all of QUALITIES and SCALES if left out.
    """
    whole, headerless = [], []
    for quality, scale in itertools.product(QUALITIES, SCALES) if settings is None else settings:
        first = _encode_and_measure(pixels, image_format, quality, scale, False)
        if image_format == "jpeg":
            data = encode(pixels, image_format, quality, scale=scale, headerless=True)
        else:  # reuse the file, as encoding is expensive
            data = _strip_header(first.data, image_format, first.quality, scale)
        whole.append(first)
        headerless.append(replace(first, data=data))  # decodes to exactly the same image
    return whole, headerless


def frontier(images: Sequence[EncodedImage]) -> list[EncodedImage]:
    """The images that no other beats in PSNR at the same or a smaller size, sorted by size."""
    best: list[EncodedImage] = []
    for each in sorted(images, key=lambda c: (len(c.data), -c.psnr_db)):
        if not best or each.psnr_db > best[-1].psnr_db:
            best.append(each)
    return best


def _encode_and_measure(
    pixels: Pixels, image_format: FileFormat, quality: int, scale: int, headerless: bool
) -> EncodedImage:
    quality = min(max(quality, _LOWEST[image_format]), _HIGHEST[image_format])
    data = encode(pixels, image_format, quality, scale=scale, headerless=headerless)
    shown = decode(data, pixels.shape[1], pixels.shape[0], headerless=headerless)
    return EncodedImage(data, image_format, quality, scale, psnr_db(shown, pixels))


def _strip_header(file: bytes, image_format: FileFormat, quality: int, scale: int) -> bytes:
    tag = bytes([FILE_FORMATS.index(image_format) * len(SCALES) + SCALES.index(scale)])
    if image_format == "webp":
        return tag + _strip_webp(file)
    if image_format == "avif":
        return tag + _strip_avif(file)
    if image_format == "jxl":
        return tag + file[len(_JXL_SIGNATURE) :]
    return tag + bytes([quality]) + (_strip_hevc if image_format == "hevc" else _strip_jpeg)(file)


def _small(width: int, height: int, scale: int) -> tuple[int, int]:
    return max(1, width // scale), max(1, height // scale)


def _resized(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    smaller = width < pixels.shape[1]
    filter_ = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize((width, height), filter_))


def _restore_header(data: bytes, width: int, height: int) -> bytes:
    """The file that a bare image was taken from."""
    if len(data) < 2 or data[0] >= len(FILE_FORMATS) * len(SCALES):
        raise InvalidInputError("image", "an image without a header", f"{len(data)} bytes")
    image_format = FILE_FORMATS[data[0] // len(SCALES)]
    size = _small(width, height, SCALES[data[0] % len(SCALES)])
    if image_format == "webp":
        return _whole_webp(data[1:], *size)
    if image_format == "avif":
        return _whole_avif(data[1:], *size)
    if image_format == "jxl":
        return _JXL_SIGNATURE + data[1:]
    if image_format == "hevc":
        return _whole_hevc(data[1], data[2:], *size)
    return _jpeg_head(data[1], *size) + data[2:] + b"\xff\xd9"


# WebP: RIFF header, chunk header, VP8 key frame: 3 bytes of its own, a start code, the size (RFC 6386).


def _strip_webp(file: bytes) -> bytes:
    if file[12:16] != b"VP8 ":
        raise ValueError("a lossy WebP without extensions is needed")
    length = int.from_bytes(file[16:20], "little")
    return file[20:23] + file[30 : 20 + length]


def _whole_webp(headerless: bytes, width: int, height: int) -> bytes:
    frame = headerless[:3] + b"\x9d\x01\x2a" + struct.pack("<HH", width, height) + headerless[3:]
    chunk = b"VP8 " + struct.pack("<I", len(frame)) + frame + b"\0" * (len(frame) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


# AVIF: boxes, of which the last, mdat, holds AV1 data units: delimiter, sequence header, then one frame. All
# but the frame and three lengths are the same for every image of a size.


def _strip_avif(file: bytes) -> bytes:
    start = file.index(b"mdat") + 4
    frame = start + _frame_offset(file[start:])
    _, header = _leb128(file, frame + 1)
    return file[header:]


def _whole_avif(headerless: bytes, width: int, height: int) -> bytes:
    boxes, before = _avif_head(width, height)
    units = before + bytes([_FRAME_OBU << 3 | 2]) + _to_leb128(len(headerless)) + headerless
    file = bytearray(boxes + units)
    extent = file.index(b"iloc") + 22
    file[extent : extent + 4] = struct.pack(">I", len(units))
    file[len(boxes) - 8 : len(boxes) - 4] = struct.pack(">I", len(units) + 8)
    return bytes(file)


@cache
def _avif_head(width: int, height: int) -> tuple[bytes, bytes]:
    """Boxes up to mdat's content, and the data units before the frame, of any AVIF of that size."""
    file = to_format(np.zeros((height, width, 3), np.uint8), "avif", 0)
    start = file.index(b"mdat") + 4
    return file[:start], file[start : start + _frame_offset(file[start:])]


def _frame_offset(units: bytes) -> int:
    offset = 0
    while units[offset] >> 3 & 15 != _FRAME_OBU:
        length, content = _leb128(units, offset + 1)
        offset = content + length
    return offset


def _leb128(data: bytes, offset: int) -> tuple[int, int]:
    """The number that starts there, seven bits a byte from the lowest, and where the next thing starts."""
    value = shift = 0
    while True:
        value |= (data[offset] & 127) << shift
        offset, shift = offset + 1, shift + 7
        if data[offset - 1] < 128:
            return value, offset


def _to_leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# HEVC: boxes with the parameter sets, which size and chroma format fix, then mdat: the length of a slice and
# the slice.


def _strip_hevc(file: bytes) -> bytes:
    return file[file.index(b"mdat") + 8 :]


def _whole_hevc(quality: int, headerless: bytes, width: int, height: int) -> bytes:
    if not 0 <= quality <= 100:
        raise InvalidInputError("image", "an HEVC quality of 0 to 100", quality)
    file = bytearray(_hevc_head(quality, width, height) + headerless)
    extent = file.index(b"iloc") + 26
    file[extent : extent + 4] = struct.pack(">I", len(headerless) + 4)
    data = file.index(b"mdat")
    file[data - 4 : data] = struct.pack(">I", len(headerless) + 12)
    file[data + 4 : data + 8] = struct.pack(">I", len(headerless))
    return bytes(file)


@cache
def _hevc_head(quality: int, width: int, height: int) -> bytes:
    """Boxes up to mdat's content, and the length of the slice, of any HEVC of that size and quality."""
    file = to_format(np.zeros((height, width, 3), np.uint8), "hevc", quality)
    return file[: file.index(b"mdat") + 8]


# JPEG: tables that the quality fixes, or the standard, then the scan and an end marker.


def _strip_jpeg(file: bytes) -> bytes:
    return file[_scan_start(file) : -2]


@cache
def _jpeg_head(quality: int, width: int, height: int) -> bytes:
    if not 1 <= quality <= 100:
        raise InvalidInputError("image", "a JPEG quality of 1 to 100", quality)
    file = to_plain_jpeg(np.zeros((height, width, 3), np.uint8), quality)
    return file[: _scan_start(file)]


def _scan_start(file: bytes) -> int:
    marker = file.index(b"\xff\xda")
    return marker + 2 + int.from_bytes(file[marker + 2 : marker + 4], "big")
