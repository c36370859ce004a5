"""Linear equalisation with perfect CSI, for unit-power symbols."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dekag.link.channel import Reception


@dataclass(frozen=True)
class Equalized:
    """Symbols brought back to the sender's scale.

    Attributes:
        symbols: (B, K) complex64.
        no: (B, K) float32, effective noise power of each symbol; see the function that made it.
    """

    symbols: torch.Tensor
    no: torch.Tensor


def mmse_equalize(reception: Reception) -> Equalized:
    """s = conj(h) y / (|h|^2 + no): the linear estimate of least mean squared error.

    It shrinks faded symbols towards zero instead of blowing their noise up. Its `no` is the mean squared
    error against the sent symbol, no / (|h|^2 + no), between 0 (perfect) and 1 (nothing received).
    """
    gains, no = reception.symbol_gains, reception.no[:, None]
    total = (gains.abs().square() + no).clamp_min(torch.finfo(torch.float32).tiny)
    return Equalized(reception.symbols * gains.conj() / total, no / total)


def unbiased_equalize(reception: Reception) -> Equalized:
    """s = y / h, the MMSE estimate without its shrinkage, for soft demapping.

    Its `no` is the variance of the Gaussian error around the sent symbol, no / |h|^2.
    """
    gains = reception.symbol_gains
    power = gains.abs().square().clamp_min(torch.finfo(torch.float32).tiny)
    return Equalized(reception.symbols * gains.conj() / power, reception.no[:, None] / power)
