"""Shannon's bounds: what any modulation and code could carry at most. Bits per complex channel use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dekag.link.conditions import LinkConditions

Array = npt.NDArray[np.float64]


def slot_capacities(conditions: LinkConditions) -> Array:
    """(draws,) capacity of seeded slots whose J blocks the receiver knows: mean_j log2(1 + |h_j|^2 SNR)."""
    from dekag.link.outage import powers_db

    snr = 10 ** ((conditions.snr_db + powers_db(conditions)) / 10)
    return np.asarray(np.log2(1 + snr).mean(axis=-1))


def ergodic_capacity(conditions: LinkConditions) -> float:
    """What a code over infinitely many slots could carry; no single slot's code reaches it safely."""
    return float(slot_capacities(conditions).mean())


def outage_capacity(conditions: LinkConditions, outage: float = 0.1) -> float:
    """The highest rate of a sender that does not know the fades, at which a share `outage` of slots fails."""
    return float(np.quantile(slot_capacities(conditions), outage))


def bytes_within(channel_uses: int, bits_per_use: float) -> int:
    """Whole bytes that so many channel uses carry."""
    return int(channel_uses * bits_per_use / 8)
