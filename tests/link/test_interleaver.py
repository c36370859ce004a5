"""The order of symbols: complete, reversible, and spread over the sub-bands."""

from __future__ import annotations

import pytest
import torch

from dekag.link.conditions import BLOCKS
from dekag.link.interleaver import deinterleaved, interleaved, interleaver


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64, 341, 683, 2048])
def test_every_symbol_is_sent_once_and_comes_back(count: int) -> None:
    assert sorted(interleaver(count).tolist()) == list(range(count))
    symbols = torch.randn(2, count, dtype=torch.complex64)
    assert torch.equal(deinterleaved(interleaved(symbols)), symbols)


@pytest.mark.parametrize("count", [256, 341, 512, 1024, 2048])
def test_any_run_of_symbols_crosses_all_sub_bands_alike(count: int) -> None:
    place = interleaver(count).argsort()
    blocks = place * BLOCKS // count
    for start in range(0, count - 64, 64):
        hits = blocks[start : start + 64].bincount(minlength=BLOCKS)
        assert hits.min() >= 6
        assert hits.max() <= 10
