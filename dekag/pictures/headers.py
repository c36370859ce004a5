"""How many pixels a picture's file announces, before anything is decoded. Imports no torch.

It is never less than `dekag.pictures.files.read_picture` decodes: PNG, JPEG, BMP and PPM are opened by the
same Python code of Pillow, and headers of WebP and AVIF, which Pillow hands to native libraries, are read
here by what these libraries insist on.
"""

from __future__ import annotations

import io
import re
from itertools import islice

from PIL import Image

from dekag.generation.images import UNREADABLE

_HEADER_BYTES = 2**18
"""Of a file that are searched for its header: Pillow skips what it does not know byte by byte."""
_IN_PYTHON = ("PNG", "JPEG", "BMP", "PPM")
# property of AVIF, width and height of an item; of overlapping ones, each is found
_MOST_ITEMS = 64
_ISPE = re.compile(rb"ispe(?=.{4}(.{4})(.{4}))", re.DOTALL)


def announced_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the picture in a file's bytes, at least what is decoded; None if not clear.

    Example:
        >>> import numpy as np
        >>> from dekag.generation.images import to_png
        >>> announced_size(to_png(np.zeros((100, 300, 3), np.uint8)))
        (300, 100)
    """
    if data[:4] == b"RIFF":
        return _webp_size(data)
    if data[4:8] == b"ftyp":
        return _avif_size(data)
    try:
        with Image.open(begin := io.BytesIO(data[:_HEADER_BYTES]), formats=_IN_PYTHON) as image:
            # a number at the very end may have been cut off
            return image.size if begin.tell() < _HEADER_BYTES else None
    except (*UNREADABLE, Image.DecompressionBombWarning):
        return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """From the first chunk, which says the size of the canvas; a still picture fills it."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return 1 + _little(head[4:7]), 1 + _little(head[7:10])
    if kind == b"VP8L":
        bits = _little(head[1:5])
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    if kind == b"VP8 ":
        return _little(head[6:8]) % 2**14, _little(head[8:10]) % 2**14
    return None


def _avif_size(data: bytes) -> tuple[int, int] | None:
    """The largest of all items, as each has its size; a sequence has tracks instead."""
    found = list(islice(_ISPE.finditer(data), _MOST_ITEMS + 1))
    if not 0 < len(found) <= _MOST_ITEMS or b"moov" in data:
        return None
    sizes = [(int.from_bytes(item[1]), int.from_bytes(item[2])) for item in found]
    return max(sizes, key=lambda size: size[0] * size[1])


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
