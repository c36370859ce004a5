"""Predicts the loss of conventional deliveries from one measurement per modulation and code.

`dekag.link.calibrate` measured the SNR threshold of a codeword on AWGN, for every row of the table and
several codeword lengths: mean and standard deviation over noise, modelled as a normal distribution. A fading
slot is equivalent to the AWGN channel on which the bits of the constellation carry the same average mutual
information (the payload is interleaved over the whole slot): its *effective SNR*. In fading slots, the
thresholds in effective SNR were found to equal those on AWGN to within 0.14 dB. A payload arrives if all its
codewords do. Losses at a mean SNR are averages over seeded draws of fading.

The predictions are checked against real decoding by `dekag.link.calibrate` and by the studies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dekag.documents import parse_json
from dekag.link.conditions import LinkConditions
from dekag.link.mcs import TABLE, CodewordLayout, ModulationAndCoding
from dekag.link.registry import MIMO

Array = npt.NDArray[np.float64]

FADING_DRAWS = 1000
_SYMBOLS = 64  # samples of a slot in which every symbol has its own gain
_NOTHING_DB = -100.0
_SEED = 20506  # first seed of the fading that senders average over


@dataclass(frozen=True)
class SnrThreshold:
    """SNR threshold of a codeword with `size` information bits on AWGN, dB: a normal distribution."""

    size: int
    mean_db: float
    deviation_db: float


def loss_probability(coding: ModulationAndCoding, payload_bytes: int, conditions: LinkConditions) -> float:
    """Probability that such a payload is lost, 0 to 1, for the conditions as known to the sender."""
    layout = CodewordLayout.of(payload_bytes, coding)
    snrs = _sender_snrs_db(coding.bits_per_symbol, conditions)
    return float(1 - success(coding, layout, snrs).mean())


def success(coding: ModulationAndCoding, layout: CodewordLayout, effective_snr_db: Array) -> Array:
    """Probability that a payload arrives at each effective SNR, dB; of the same, arbitrary shape."""
    need = codeword_threshold(coding, layout.used_bits)
    margin = (effective_snr_db - need.mean_db) / need.deviation_db
    single: Array = torch.special.ndtr(torch.from_numpy(np.asarray(margin))).numpy()
    return np.asarray(single**layout.codewords)


def codeword_threshold(coding: ModulationAndCoding, information_bits: int) -> SnrThreshold:
    """Threshold of a codeword with that many information bits, interpolated between calibrated lengths."""
    thresholds = _thresholds()[coding]
    # the gap of a finite-length code to its limit falls with the square root of its length
    position = 1 / math.sqrt(information_bits)
    positions = [1 / math.sqrt(threshold.size) for threshold in thresholds]  # descending
    mean = np.interp(position, positions[::-1], [threshold.mean_db for threshold in thresholds][::-1])
    deviation = np.interp(position, positions[::-1], [each.deviation_db for each in thresholds][::-1])
    return SnrThreshold(information_bits, float(mean), float(deviation))


def effective_snr_db(bits_per_symbol: int, snr_db: float, powers_db: Array) -> Array:
    """AWGN SNR, dB, with the same mutual information per bit as the average over the blocks of a slot.

    Args:
        bits_per_symbol: QAM order is 2**bits_per_symbol.
        snr_db: mean SNR, dB.
        powers_db: (slots, J) block powers |h_j|^2, dB.

    Returns:
        (slots,) dB.
    """
    grid, information = _information(bits_per_symbol)
    mean = np.interp(snr_db + powers_db, grid, information).mean(axis=-1)
    return np.asarray(np.interp(mean, information, grid))


@lru_cache(maxsize=256)
def _sender_snrs_db(bits_per_symbol: int, conditions: LinkConditions) -> Array:
    return effective_snr_db(bits_per_symbol, conditions.sender_snr_db, powers_db(conditions))


def powers_db(conditions: LinkConditions) -> Array:
    """(draws, J) powers |h_j|^2 of seeded slots, dB, mean power 1, as expected by the sender.

    Errors of estimated gains count as noise and reduce the power. Without CSI, faded symbols have no phase
    reference and are useless. The sender cannot know a trace and assumes Rayleigh fading.
    """
    if conditions.fading == "awgn" and conditions.csi != "pilots":
        return np.zeros((1, 1))
    if conditions.csi == "none":
        return np.full((1, 1), _NOTHING_DB)
    fading = "rayleigh" if conditions.fading == "trace" else conditions.fading
    # perfectly known gains do not depend on the SNR, but for those behind a detector of several antennas
    snr_db = conditions.sender_snr_db if conditions.csi == "pilots" or fading in MIMO else 0.0
    return _powers_db(
        LinkConditions(
            snr_db=snr_db,
            fading=fading,
            tau_rms_s=conditions.tau_rms_s,
            rician_k_db=conditions.rician_k_db,
            speed_m_s=conditions.speed_m_s,
            csi=conditions.csi,
            equalizer=conditions.equalizer if fading in MIMO else "mmse",  # no other gains depend on it
        )
    )


@lru_cache(maxsize=32)
def _powers_db(conditions: LinkConditions) -> Array:
    from dekag.link.channel import transmit

    symbols = torch.ones(FADING_DRAWS, _SYMBOLS, dtype=torch.complex64)
    seeds = range(_SEED, _SEED + FADING_DRAWS)
    reception = transmit(symbols, [conditions] * FADING_DRAWS, seeds)
    errors = 0.0 if reception.gain_errors is None else reception.gain_errors
    no = reception.no[:, None]
    powers = reception.gains.abs().square() * no / (no + errors)
    return np.asarray(10 * torch.log10(powers.double().clamp_min(1e-12)))


@cache
def calibration() -> dict[str, Any]:
    """The table written by `dekag.link.calibrate`."""
    table: dict[str, Any] = parse_json((files("dekag.link") / "mcs.json").read_bytes(), "mcs.json")
    return table


@cache
def _thresholds() -> dict[ModulationAndCoding, list[SnrThreshold]]:
    thresholds = {}
    for row in calibration()["rows"]:
        coding = ModulationAndCoding(row["bits_per_symbol"], row["codeword_bits"], row["information_bits"])
        thresholds[coding] = [SnrThreshold(*values) for values in row["needs_db"]]
    return {coding: thresholds[coding] for coding in TABLE}


@cache
def _information(bits_per_symbol: int) -> tuple[Array, Array]:
    curve = calibration()["mutual_information"]
    grid = np.asarray(curve["snr_db"], dtype=float)
    information = np.asarray(curve[str(bits_per_symbol)], dtype=float)
    # made strictly increasing, so that it can be inverted
    return grid, information + 1e-9 * np.arange(len(grid))
