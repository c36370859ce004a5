"""Uncoded QAM over the channel against theory: bit error rates within the confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from dekag.link.channel import transmit
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import equalize
from dekag.link.sionna_blocks import Demapper, Mapper


def theory(bits_per_symbol: int, mean_erfc: Callable[[float], float]) -> float:
    """Exact BER of Gray-mapped square QAM (Cho and Yoon, IEEE Trans. Commun. 50(7), 2002, eqs. 14 and 16).

    `mean_erfc(a)` is the mean of erfc(sqrt(a snr)) over the channel's SNRs.
    """
    order = 2**bits_per_symbol
    levels, bits = math.isqrt(order), bits_per_symbol // 2
    total = 0.0
    for k in range(1, bits + 1):
        for i in range(int((1 - 2**-k) * levels)):
            sign = (-1) ** (i * 2 ** (k - 1) // levels)
            weight = 2 ** (k - 1) - math.floor(i * 2 ** (k - 1) / levels + 0.5)
            total += sign * weight * mean_erfc((2 * i + 1) ** 2 * 1.5 / (order - 1))
    return total / (levels * bits)


def error_shares(bits_per_symbol: int, link: LinkConditions, items: int, symbols: int) -> torch.Tensor:
    """(items,) share of wrong bits of each item, decided by the nearest point after zero forcing."""
    generator = torch.Generator().manual_seed(bits_per_symbol)
    bits = torch.randint(0, 2, (items, symbols * bits_per_symbol), generator=generator).float()
    sent = Mapper("qam", bits_per_symbol, device="cpu")(bits)
    equalized = equalize(transmit(sent, [link] * items, range(items)), "zf")
    demapper = Demapper("maxlog", "qam", bits_per_symbol, hard_out=True, device="cpu")
    return (demapper(equalized.symbols, torch.ones(())) != bits).float().mean(dim=1)


@pytest.mark.parametrize(("bits_per_symbol", "snr_db"), [(2, 6.0), (4, 12.0), (6, 18.0), (8, 24.0)])
def test_qam_in_awgn(bits_per_symbol: int, snr_db: float) -> None:
    snr = 10 ** (snr_db / 10)
    expected = theory(bits_per_symbol, lambda a: math.erfc(math.sqrt(a * snr)))
    shares = error_shares(bits_per_symbol, LinkConditions(fading="awgn", snr_db=snr_db), 100, 400)
    assert shares.mean().item() == pytest.approx(expected, abs=4 * shares.std().item() / math.sqrt(100))
    assert 1e-3 < expected < 0.1


@pytest.mark.parametrize("bits_per_symbol", [2, 4, 6, 8])
@pytest.mark.parametrize("fading", ["rayleigh", "tdl-a"])
def test_qam_in_rayleigh(bits_per_symbol: int, fading: str) -> None:
    """|h|^2 is exponential, block by block or resource element by resource element."""
    items, snr = 1000, 10**1.5
    expected = theory(bits_per_symbol, lambda a: 1 - math.sqrt(a * snr / (1 + a * snr)))
    link = LinkConditions.model_validate({"fading": fading, "snr_db": 15, "tau_rms_s": 1e-5})
    shares = error_shares(bits_per_symbol, link, items, 32)
    assert shares.mean().item() == pytest.approx(expected, abs=4 * shares.std().item() / math.sqrt(items))
    assert 4 * shares.std().item() / math.sqrt(items) < 0.25 * expected, "the interval says something"
