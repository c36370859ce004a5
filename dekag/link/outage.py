"""How often a conventional delivery is lost, predicted from what was measured once per modulation and code.

`dekag.link.calibrate` measured, for every row of the table and several lengths of codeword, the SNR that a
codeword needs on AWGN: mean and standard deviation over noises, taken as a normal distribution. A fading slot
is as good as the AWGN channel on which the bits of the constellation carry the same mutual information on
average (the payload is interleaved over all of the slot): its *effective SNR*. Codewords of every row were
found to need in fading slots the effective SNR that they need on AWGN, to within 0.14 dB. A payload arrives
if all its codewords do. Losses at a mean SNR are averages over seeded draws of fading.

What is predicted is checked against real decoding by `dekag.link.calibrate` and by the experiments.
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

Array = npt.NDArray[np.float64]

FADING_DRAWS = 1000
_SYMBOLS = 64  # that sample a slot whose every symbol has a gain of its own
_NOTHING_DB = -100.0
_SEED = 20506  # of the fading that senders average over; no request's own


@dataclass(frozen=True)
class SnrThreshold:
    """SNR that a codeword of `size` information bits needs on AWGN, dB: a normal distribution."""

    size: int
    mean_db: float
    deviation_db: float


def loss_probability(coding: ModulationAndCoding, payload_bytes: int, conditions: LinkConditions) -> float:
    """Share of such payloads that are expected to be lost, as the sender sees the conditions; 0 to 1."""
    layout = CodewordLayout.of(payload_bytes, coding)
    snrs = _sender_snrs_db(coding.bits_per_symbol, conditions)
    return float(1 - success(coding, layout, snrs).mean())


def success(coding: ModulationAndCoding, layout: CodewordLayout, effective_snr_db: Array) -> Array:
    """Probability that a payload arrives at each effective SNR, dB; any shape both ways."""
    need = codeword_threshold(coding, layout.used_bits)
    margin = (effective_snr_db - need.mean_db) / need.deviation_db
    single: Array = torch.special.ndtr(torch.from_numpy(np.asarray(margin))).numpy()
    return np.asarray(single**layout.codewords)


def codeword_threshold(coding: ModulationAndCoding, information_bits: int) -> SnrThreshold:
    """What a codeword of that many information bits needs, between the calibrated lengths."""
    needs = _thresholds()[coding]
    # what a code of finite length needs beyond its limit falls with the root of its length
    place = 1 / math.sqrt(information_bits)
    places = [1 / math.sqrt(need.size) for need in needs]  # descending
    mean = np.interp(place, places[::-1], [need.mean_db for need in needs][::-1])
    deviation = np.interp(place, places[::-1], [need.deviation_db for need in needs][::-1])
    return SnrThreshold(information_bits, float(mean), float(deviation))


def effective_snr_db(bits_per_symbol: int, snr_db: float, powers_db: Array) -> Array:
    """AWGN SNR, dB, at which bits of that QAM carry as much as on average over the blocks of a slot.

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
    """(draws, J) powers |h_j|^2 of seeded slots, dB, mean power 1, as the sender of a payload expects them.

    Errors of estimated gains count as noise, hence as less power. Without CSI a faded symbol has no phase
    reference and is worth nothing. What a trace holds the sender cannot know; it prepares for Rayleigh
    fading.
    """
    if conditions.fading == "awgn" and conditions.csi != "pilots":
        return np.zeros((1, 1))
    if conditions.csi == "none":
        return np.full((1, 1), _NOTHING_DB)
    fading = "rayleigh" if conditions.fading == "trace" else conditions.fading
    # perfectly known gains do not depend on the SNR
    snr_db = conditions.sender_snr_db if conditions.csi == "pilots" else 0.0
    return _powers_db(
        LinkConditions(
            snr_db=snr_db,
            fading=fading,
            tau_rms_s=conditions.tau_rms_s,
            rician_k_db=conditions.rician_k_db,
            speed_m_s=conditions.speed_m_s,
            csi=conditions.csi,
        )
    )


@lru_cache(maxsize=32)
def _powers_db(conditions: LinkConditions) -> Array:
    from dekag.link.channel import transmit

    symbols = torch.ones(1, _SYMBOLS, dtype=torch.complex64)
    powers = []
    for seed in range(_SEED, _SEED + FADING_DRAWS):
        reception = transmit(symbols, [conditions], [seed])
        errors = 0.0 if reception.gain_errors is None else reception.gain_errors
        no = reception.no[:, None]
        powers.append(reception.gains.abs().square() * no / (no + errors))
    return np.asarray(10 * torch.log10(torch.cat(powers).double().clamp_min(1e-12)))


@cache
def calibration() -> dict[str, Any]:
    """What `dekag.link.calibrate` wrote."""
    table: dict[str, Any] = parse_json((files("dekag.link") / "mcs.json").read_bytes(), "mcs.json")
    return table


@cache
def _thresholds() -> dict[ModulationAndCoding, list[SnrThreshold]]:
    found = {}
    for row in calibration()["rows"]:
        coding = ModulationAndCoding(row["bits_per_symbol"], row["codeword_bits"], row["information_bits"])
        found[coding] = [SnrThreshold(*need) for need in row["needs_db"]]
    return {coding: found[coding] for coding in TABLE}


@cache
def _information(bits_per_symbol: int) -> tuple[Array, Array]:
    curve = calibration()["mutual_information"]
    grid = np.asarray(curve["snr_db"], dtype=float)
    information = np.asarray(curve[str(bits_per_symbol)], dtype=float)
    # strictly rising, so that it can be inverted where it is flat
    return grid, information + 1e-9 * np.arange(len(grid))
