"""The order in which symbols are sent, so that a fade of one sub-band hits all parts of the image alike."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this fraction of a circle spread points more evenly than any other (Weyl's sequence)."""


@lru_cache(maxsize=32)  # up to a megabyte each
def interleaver(count: int) -> torch.Tensor:
    """(count,) int64: which symbol is sent at each place; its own inverse is `argsort`.

    Neighbours are sent about 0.62 of the transmission apart, in steps that are coprime to `count`.

    Example:
        >>> from dekag.link.interleaver import interleaver
        >>> interleaver(8)
        tensor([0, 5, 2, 7, 4, 1, 6, 3])
    """
    step = next(s for s in range(max(1, round(GOLDEN * count)), count + 2) if math.gcd(s, count) == 1)
    return torch.arange(count) * step % count


def interleaved(symbols: torch.Tensor) -> torch.Tensor:
    """Symbols (batch, K) in the order in which they are sent."""
    return symbols[:, interleaver(symbols.shape[1])]


def deinterleaved(symbols: torch.Tensor) -> torch.Tensor:
    """The inverse of `interleaved`."""
    return symbols[:, interleaver(symbols.shape[1]).argsort()]
