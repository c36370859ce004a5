"""Predicts the loss of conventional deliveries from one measurement per modulation and code.

`dekag.link.calibrate` measured the SNR threshold of a codeword on AWGN, for every row of the table and
several codeword lengths: mean and standard deviation over noise, modelled as a normal distribution. A fading
slot is equivalent to the AWGN channel on which the bits of the constellation carry the same average mutual
information (the payload is interleaved over the whole slot): its *effective SNR*. In fading slots, the
thresholds in effective SNR were found to equal those on AWGN to within 0.14 dB. A payload arrives if all its
codewords do. Losses at a mean SNR are averages over seeded draws of fading.

Without CSI the receiver takes every gain as 1. Gains that turn the phase leave it nothing to decide by. Real
gains (`rayleigh-magnitude`, some plug-ins) only scale the soft bits of QPSK, and the decoder tolerates a
wrong scale: the information of its bits is that at the best common scale. In larger constellations they move
points across decision levels, and a payload counts as lost.

The predictions are checked against real decoding by `dekag.link.calibrate` and by the studies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dekag.documents import parse_json
from dekag.link.conditions import Csi, EqualizerKind, LinkConditions
from dekag.link.mcs import TABLE, CodewordLayout, ModulationAndCoding
from dekag.link.registry import MIMO

if TYPE_CHECKING:
    from dekag.link.channel import Reception

Array = npt.NDArray[np.float64]

FADING_DRAWS = 1000
_SYMBOLS = 64  # of a slot in which neighbouring symbols share a gain: more of them change nothing
_MOST_SYMBOLS = 512  # of one in which every symbol has its own gain: more of them change less than 0.3 dB
_NOTHING_DB = -100.0
_SHARED_GAINS = ("awgn", "rayleigh", "rician", *MIMO)
_QPSK_BITS = 2
_SCALES = np.geomspace(1e-3, 1.0, 31)  # of soft bits
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
    snrs = slot_snrs_db(coding.bits_per_symbol, conditions, channel_uses=layout.channel_uses)
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


def slot_snrs_db(
    bits_per_symbol: int, conditions: LinkConditions, *, channel_uses: int = _SYMBOLS, transmissions: int = 1
) -> Array:
    """(draws,) effective SNRs of seeded slots, dB, as expected by the sender.

    Args:
        bits_per_symbol: QAM order is 2**bits_per_symbol.
        conditions: of the link.
        channel_uses: symbols of a transmission. It matters where every symbol has its own gain: long
            transmissions average over more of them.
        transmissions: of the same payload, each in another slot, which the receiver combines.
    """
    return _slot_snrs_db(bits_per_symbol, conditions, _samples(conditions, channel_uses), transmissions)


@lru_cache(maxsize=256)
def _slot_snrs_db(
    bits_per_symbol: int, conditions: LinkConditions, symbols: int, transmissions: int
) -> Array:
    snr_db = conditions.sender_snr_db
    gains = _blind_gains(conditions, symbols)
    if gains is not None:
        mean = np.mean([_other_slots(gains, attempt) for attempt in range(transmissions)], axis=0)
        return _blind_snrs_db(bits_per_symbol, snr_db + 10 * math.log10(transmissions), mean)
    powers = powers_db(conditions, channel_uses=symbols)
    if transmissions > 1:
        slots = [_other_slots(10 ** (powers / 10), attempt) for attempt in range(transmissions)]
        powers = 10 * np.log10(np.sum(slots, axis=0))
    return effective_snr_db(bits_per_symbol, snr_db, powers)


def _other_slots(slots: Array, attempt: int) -> Array:
    """The slots that further attempts meet: any other of the draws."""
    return np.roll(slots, 7 * attempt, axis=0)


def _samples(conditions: LinkConditions, channel_uses: int) -> int:
    """How many symbols of a slot are drawn: a power of two, so that few sets of draws serve all payloads."""
    if _drawn_fading(conditions) in _SHARED_GAINS:
        return _SYMBOLS
    longest = min(max(channel_uses, _SYMBOLS), _MOST_SYMBOLS)
    return int(2 ** math.ceil(math.log2(longest)))


def _drawn_fading(conditions: LinkConditions) -> str:
    """The fading that the sender expects: it cannot know a trace, and assumes Rayleigh fading."""
    return "rayleigh" if conditions.fading == "trace" else conditions.fading


def powers_db(conditions: LinkConditions, *, channel_uses: int = _SYMBOLS) -> Array:
    """(draws, J) powers |h_j|^2 of seeded slots, dB, mean power 1, as expected by the sender.

    Errors of estimated gains count as noise and reduce the power. Without CSI, gains that turn the phase are
    useless; real gains have their power, but to make use of it needs a code for unknown magnitudes: what
    QPSK makes of them is in `slot_snrs_db`. The sender cannot know a trace and assumes Rayleigh fading.

    Args:
        conditions: of the link.
        channel_uses: symbols of a transmission, as of `slot_snrs_db`.
    """
    symbols = _samples(conditions, channel_uses)
    if conditions.fading == "awgn" and conditions.csi != "pilots":
        return np.zeros((1, 1))
    if conditions.csi == "none":
        gains = _blind_gains(conditions, symbols)
        return np.full((1, 1), _NOTHING_DB) if gains is None else 20 * np.log10(gains.clip(1e-6))
    fading = _drawn_fading(conditions)
    # perfectly known gains do not depend on the SNR, but for those behind a detector of several antennas
    snr_db = conditions.sender_snr_db if conditions.csi == "pilots" or fading in MIMO else 0.0
    equalizer = conditions.equalizer if fading in MIMO else "mmse"  # no other gains depend on it
    return _powers_db(_drawn(conditions, snr_db=snr_db, csi=conditions.csi, equalizer=equalizer), symbols)


def _drawn(
    conditions: LinkConditions, *, snr_db: float, csi: Csi, equalizer: EqualizerKind = "mmse"
) -> LinkConditions:
    """The conditions with what the fading depends on, and defaults for the rest, so that draws are shared."""
    return LinkConditions(
        snr_db=snr_db,
        fading=_drawn_fading(conditions),
        tau_rms_s=conditions.tau_rms_s,
        rician_k_db=conditions.rician_k_db,
        speed_m_s=conditions.speed_m_s,
        csi=csi,
        equalizer=equalizer,
    )


@lru_cache(maxsize=16)
def _powers_db(conditions: LinkConditions, symbols: int) -> Array:
    return np.asarray(10 * torch.log10(useful_powers(_slots(conditions, symbols))))


def useful_powers(reception: Reception) -> torch.Tensor:
    """(B, J) float64 powers |h_j|^2 that a receiver can use: errors of estimated gains count as noise."""
    errors = 0.0 if reception.gain_errors is None else reception.gain_errors
    no = reception.no[:, None]
    powers = reception.gains.abs().square() * no / (no + errors)
    return powers.double().clamp_min(1e-12)


def _slots(conditions: LinkConditions, symbols: int) -> Reception:
    """Seeded slots of that many symbols."""
    from dekag.link.channel import transmit

    sent = torch.ones(FADING_DRAWS, symbols, dtype=torch.complex64)
    return transmit(sent, [conditions] * FADING_DRAWS, range(_SEED, _SEED + FADING_DRAWS))


def _blind_gains(conditions: LinkConditions, symbols: int) -> Array | None:
    """(draws, J) gains that a receiver without CSI can do without; None if it knows them, or they turn."""
    if conditions.csi != "none" or conditions.fading == "awgn":
        return None
    return _real_gains(_drawn(conditions, snr_db=0.0, csi="perfect"), symbols)


@lru_cache(maxsize=8)
def _real_gains(conditions: LinkConditions, symbols: int) -> Array | None:
    gains = _slots(conditions, symbols).gains
    if (gains.imag != 0).any() or (gains.real < 0).any():
        return None
    return np.asarray(gains.real.double())


def _blind_snrs_db(bits_per_symbol: int, snr_db: float, gains: Array) -> Array:
    """(slots,) effective SNRs, dB, of real gains (slots, J) that the receiver takes as 1.

    A soft bit of QPSK, times the sign of its bit, is then normally distributed with mean 2 g SNR and variance
    4 SNR.
    """
    if bits_per_symbol != _QPSK_BITS:
        return np.full(len(gains), _NOTHING_DB)
    snr = 10 ** (snr_db / 10)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)

    def information(gain: Array, scale: float) -> Array:
        soft = scale * (2 * snr * gain[:, None] + 2 * math.sqrt(snr) * nodes)
        losses = np.logaddexp(0, -soft) @ weights / weights.sum()
        return np.asarray(1 - losses / math.log(2))

    typical = np.quantile(gains, (np.arange(64) + 0.5) / 64)
    scale = max(_SCALES.tolist(), key=lambda each: float(information(typical, each).mean()))
    grid = np.linspace(0, gains.max(), 256)
    mean = np.interp(gains, grid, information(grid, scale)).mean(axis=-1)
    snrs, of_awgn = _information(bits_per_symbol)
    return np.asarray(np.interp(mean, of_awgn, snrs))


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
