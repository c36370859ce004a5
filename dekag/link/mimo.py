"""Spatial multiplexing: N antennas at each end send N symbols in every channel use,

    y = H x / sqrt(N) + n.

The entries of H fade independently of each other; over the blocks of a transmission each is correlated as in
`dekag.link.fading`. All antennas together send with power 1, so `snr_db` is the mean SNR at each receiving
antenna. The receiver knows H and separates the N symbols by a linear detector of Sionna, LMMSE or ZF.

What the detector returns, x + e with an error of power v, is scaled to sqrt(no / v) (x + e): a symbol with
gain sqrt(no / v) and noise of power no, as it arrives over one antenna. Equaliser, demapper and decoder need
to know no more; who predicts the quality of a transmission counts with `stream_snr_db`.
"""

from __future__ import annotations

import math

import torch

from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.fading import block_correlator
from dekag.link.registry import MIMO


def send(
    symbols: torch.Tensor, conditions: LinkConditions, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Send symbols over N x N antennas, N neighbouring symbols at once, and detect them.

    Args:
        symbols: (K,) complex64, mean power 1. If N does not divide K, the last channel use is filled up with
            zeros.
        conditions: `fading` is a name in MIMO; `equalizer` chooses the detector.
        generator: source of fading and noise. The fades depend neither on K nor on the SNR.

    Returns:
        The detected symbols (K,) complex64 and their gains (K,) complex64, which are real and positive.

    Example:
        >>> import torch
        >>> from dekag.link import LinkConditions
        >>> from dekag.link.mimo import send
        >>> link = LinkConditions(fading="mimo-2x2", snr_db=20)
        >>> received, gains = send(torch.ones(64, dtype=torch.complex64), link, torch.Generator())
        >>> received.shape, bool((gains.real > 0).all())
        (torch.Size([64]), True)
    """
    from dekag.link.channel import block_of_symbol
    from dekag.link.sionna_blocks import complex_normal, lmmse_equalizer, zf_equalizer

    antennas = MIMO[conditions.fading]
    uses = uses_on_air(len(symbols), conditions)
    independent = complex_normal(
        (antennas, antennas, BLOCKS, 1), precision="double", device="cpu", generator=generator
    )
    noise = complex_normal((uses, antennas), precision="double", device="cpu", generator=generator)
    faded = block_correlator(conditions.tau_rms_s)(independent)[..., 0].permute(2, 0, 1)  # (J, N, N)
    matrices = faded[block_of_symbol(uses)] / math.sqrt(antennas)
    sent = torch.nn.functional.pad(symbols, (0, uses * antennas - len(symbols)))
    vectors = sent.view(uses, antennas).to(matrices.dtype)
    received = (matrices @ vectors[..., None])[..., 0] + math.sqrt(conditions.no) * noise
    covariance = conditions.no * torch.eye(antennas, dtype=matrices.dtype)
    detect = lmmse_equalizer if conditions.equalizer == "mmse" else zf_equalizer
    detected, power = detect(received, matrices, covariance, precision="double")
    gains = (conditions.no / power.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    scaled = (gains * detected).flatten()[: len(symbols)].to(torch.complex64)
    return scaled, gains.flatten()[: len(symbols)].to(torch.complex64)


def uses_on_air(symbols: int, conditions: LinkConditions) -> int:
    """Channel uses in which so many symbols are sent: as many without spatial multiplexing, else an N-th."""
    return math.ceil(symbols / MIMO.get(conditions.fading, 1))


def stream_snr_db(snr_db: float, conditions: LinkConditions) -> float:
    """Mean SNR of each of the streams, dB, where the mean SNR at an antenna is `snr_db`; equal without MIMO.

    A stream has an N-th of the power. Behind the ZF detector its fading is Rayleigh fading with that mean
    (Winters, Salz and Gitlin 1994); behind the LMMSE detector it is better.
    """
    return snr_db - 10 * math.log10(MIMO.get(conditions.fading, 1))
