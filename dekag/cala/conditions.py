"""The normalised condition vector c, the input of the gates.

The features are our choice. They are physical quantities rather than names of channels, so that they also
describe channels outside the training set: a TDL profile is a line-of-sight power fraction and a correlation
between sub-bands, like Rayleigh and Rician fading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from dekag import plugins
from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS, LinkConditions
from dekag.link.mimo import stream_snr_db
from dekag.link.registry import Channel

Numbers = npt.NDArray[np.float64]

RATE_CENTRES = (0.0, 1.0, 2.0, 3.0)
"""Centres of the hat functions of the rate: log2 of the CBR over 1/768."""

SNR_CENTRES_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
"""Centres of the hat functions of the SNR, dB."""

LOWEST_CBR = 1 / 768

CONDITION_FEATURES = 1 + len(RATE_CENTRES) + 1 + len(SNR_CENTRES_DB) + 3 + 3 + 1 + BLOCKS
"""C: length of a condition vector."""

_MIDDLE_DB, _HALF_RANGE_DB = 7.5, 12.5  # of the SNRs in training


def _hats(x: Numbers, centres: Sequence[float]) -> Numbers:
    """(batch,) -> (batch, centres): weights of linear interpolation, constant beyond the outer centres."""
    points = np.asarray(centres)
    inside = np.clip(x, points[0], points[-1])
    hats: Numbers = np.maximum(1 - np.abs(inside[:, None] - points) / (points[1] - points[0]), 0)
    return hats


def _normalised_db(snr_db: Numbers) -> Numbers:
    return np.clip((snr_db - _MIDDLE_DB) / _HALF_RANGE_DB, -2, 2)


def band_correlation(tau_rms_s: Numbers, blocks_apart: int) -> Numbers:
    """|C| between the gains of sub-bands that far apart, for RMS delay spreads (batch,) in s."""
    apart_hz = blocks_apart * BANDWIDTH_HZ / BLOCKS
    return 1 / np.sqrt(1 + (2 * math.pi * apart_hz * tau_rms_s) ** 2)


def condition_features(
    *,
    cbr: npt.ArrayLike,
    snr_db: npt.ArrayLike,
    los_fraction: npt.ArrayLike,
    tau_rms_s: npt.ArrayLike,
    pilots: npt.ArrayLike,
    no_csi: npt.ArrayLike,
    zero_forcing: npt.ArrayLike,
    block_snr_db: npt.ArrayLike | None = None,
) -> torch.Tensor:
    """The condition vectors (batch, C) float32 of a batch; computed in NumPy, which is faster here.

    Args:
        cbr: (batch,) rates.
        snr_db: (batch,) mean SNR, dB.
        los_fraction: (batch,) fraction of the mean power on the line-of-sight path: 1 without fading, 0 for
            Rayleigh.
        tau_rms_s: (batch,) RMS delay spread, s; 0 without fading.
        pilots: (batch,) 1 where the gains are estimated.
        no_csi: (batch,) 1 where they are unknown.
        zero_forcing: (batch,) 1 where the equaliser is ZF, not MMSE.
        block_snr_db: (batch, J) SNR of each block as the receiver sees it, dB; left out, every block has the
            mean SNR.
    """
    snr, tau = np.asarray(snr_db, dtype=np.float64), np.asarray(tau_rms_s, dtype=np.float64)
    rate = np.log2(np.maximum(np.asarray(cbr), 1e-9) / LOWEST_CBR)
    count, at = len(snr), 0
    features = np.empty((count, CONDITION_FEATURES), dtype=np.float32)

    def put(*columns: npt.ArrayLike) -> None:
        nonlocal at
        for column in columns:
            block = np.asarray(column).reshape(count, -1)
            features[:, at : at + block.shape[1]] = block
            at += block.shape[1]

    put(np.clip(rate / 1.5 - 1, -2, 2), _hats(rate, RATE_CENTRES))
    put(_normalised_db(snr), _hats(snr, SNR_CENTRES_DB))
    put(los_fraction, band_correlation(tau, 1), band_correlation(tau, BLOCKS - 1))
    put(pilots, no_csi, zero_forcing)
    # clipped 10 dB beyond the trained range; below that, the depth of a fade makes no difference
    blocks = np.repeat(snr[:, None], BLOCKS, 1) if block_snr_db is None else np.asarray(block_snr_db)
    blocks = _normalised_db(blocks)
    put(blocks.mean(1), blocks)
    return torch.from_numpy(features)


def rate_and_snr_db(condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch,) CBR and mean SNR, dB, recovered from condition vectors (batch, C).

    Exact to a thousandth for a CBR of 1/2172 to 1/34 and an SNR of -17.5 to 32.5 dB, otherwise clipped to
    these ranges.
    """
    snr_at = 1 + len(RATE_CENTRES)
    cbr = LOWEST_CBR * torch.exp2((condition[:, 0] + 1) * 1.5)
    return cbr, (condition[:, snr_at] * _HALF_RANGE_DB + _MIDDLE_DB).round(decimals=3)


def los_power_fraction(conditions: LinkConditions) -> float:
    """Fraction of the mean power on the line-of-sight path: 1 without fading, 0 for Rayleigh."""
    return _channel(conditions).los_power_fraction(conditions)


def delay_spread_s(conditions: LinkConditions) -> float:
    """RMS delay spread of the channel, s; 0 without fading."""
    return _channel(conditions).tau_rms_s(conditions)


def _channel(conditions: LinkConditions) -> Channel:
    channel: Channel = plugins.get("channel", conditions.fading)
    return channel


def condition_vector(
    cbr: float,
    conditions: LinkConditions,
    *,
    at: Literal["sender", "receiver"],
    block_snr_db: torch.Tensor | None = None,
) -> torch.Tensor:
    """The condition vector (C,) float32 of one transmission, as the sender or the receiver knows it.

    Args:
        cbr: rate of the transmission.
        conditions: its channel. The sender uses the last reported SNR, the receiver the true one.
        at: the end of the link.
        block_snr_db: (J,) SNR of each block from the receiver's CSI (`block_snr_db` of a reception), dB; for
            the receiver only. Left out, only the mean SNR is known.
    """
    sender = at == "sender"
    return condition_features(
        cbr=[cbr],
        snr_db=[stream_snr_db(conditions.sender_snr_db if sender else conditions.snr_db, conditions)],
        los_fraction=[los_power_fraction(conditions)],
        tau_rms_s=[delay_spread_s(conditions)],
        pilots=[conditions.csi == "pilots"],
        no_csi=[conditions.csi == "none"],
        zero_forcing=[conditions.equalizer == "zf"],
        block_snr_db=None if sender or block_snr_db is None else block_snr_db[None],
    )[0]


def block_snr_db(
    gains: torch.Tensor, no: torch.Tensor, gain_errors: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, 8) SNR of each eighth of a transmission, dB, from the receiver's CSI.

    Args:
        gains: (B, J) complex64, as estimated by the receiver; if J is not a multiple of 8, the parts overlap.
        no: (B,) float32, noise power per channel use.
        gain_errors: (B, J) float32, variances of the gains around their estimates, which count as noise.
    """
    noise = no[:, None] if gain_errors is None else no[:, None] + gain_errors
    ratio = gains.abs().square().float() / noise.clamp_min(1e-12)
    if ratio.shape[1] != BLOCKS:
        ratio = F.adaptive_avg_pool1d(ratio[:, None], BLOCKS)[:, 0]
    return 10 * torch.log10(ratio.clamp_min(1e-12))
