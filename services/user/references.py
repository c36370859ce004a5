"""Images as they were sent, kept so that a repeated request is compared without decoding them again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dekag.generation.images import Pixels

MAX_BYTES = 32 * 2**20  # 170 images of 256x256 pixels


class References:
    """An LRU cache of decoded latents; deterministic decoding makes a kept image that of a new decoding.

    Args:
        max_bytes: of the pixels that are kept; a larger image is not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[bytes, Pixels] = OrderedDict()

    def get(self, latents: bytes, shape: tuple[int, ...]) -> Pixels | None:
        """The image of these latents (little-endian float32 of that shape) if it is kept."""
        key = _key(latents, shape)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, latents: bytes, shape: tuple[int, ...], pixels: Pixels) -> None:
        """Keep the image of these latents; it can no longer be written to."""
        if pixels.nbytes > self._max_bytes or (key := _key(latents, shape)) in self._kept:
            return
        pixels.flags.writeable = False
        self._kept[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes


def _key(latents: bytes, shape: tuple[int, ...]) -> bytes:
    return hashlib.sha256(f"{shape}".encode() + latents).digest()
