"""Linear equalisation of unit-power symbols with the gains known to the receiver.

An estimated gain g has an error of known variance e, which acts like noise of power e on a symbol of power 1:
both equalisers use the noise power e + no. Without an estimate, the receiver assumes g = 1 and e = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dekag.link.channel import Reception
from dekag.link.conditions import EqualizerKind


@dataclass(frozen=True)
class Equalized:
    """Equalised symbols, at the sender's scale.

    Attributes:
        symbols: (B, K) complex64.
        no: (B, K) float32, effective noise power of each symbol; see the function that made it.
    """

    symbols: torch.Tensor
    no: torch.Tensor


def equalize(reception: Reception, kind: EqualizerKind) -> Equalized:
    """Equalise with the chosen kind: "mmse" is `mmse_equalize`, "zf" is `unbiased_equalize`."""
    return mmse_equalize(reception) if kind == "mmse" else unbiased_equalize(reception)


def mmse_equalize(reception: Reception) -> Equalized:
    """s = conj(g) y / (|g|^2 + e + no): the linear minimum mean squared error estimate.

    It shrinks faded symbols towards zero instead of amplifying their noise. Its `no` is the mean squared
    error against the sent symbol, (e + no) / (|g|^2 + e + no), between 0 (perfect) and 1 (nothing received).
    """
    gains, no = reception.symbol_gains, reception.symbol_no
    total = (gains.abs().square() + no).clamp_min(torch.finfo(torch.float32).tiny)
    return Equalized(reception.symbols * gains.conj() / total, no / total)


def unbiased_equalize(reception: Reception) -> Equalized:
    """s = y / g, zero forcing: the MMSE estimate without its shrinkage, for soft demapping.

    Its `no` is the variance of the error around the sent symbol, (e + no) / |g|^2; Gaussian if e is 0.
    """
    gains = reception.symbol_gains
    power = gains.abs().square().clamp_min(torch.finfo(torch.float32).tiny)
    return Equalized(reception.symbols * gains.conj() / power, reception.symbol_no / power)
