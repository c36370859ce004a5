"""Shannon bounds for any modulation and code, in bits per complex channel use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dekag.link.conditions import LinkConditions

Array = npt.NDArray[np.float64]


def slot_capacities(conditions: LinkConditions, *, channel_uses: int) -> Array:
    """(draws,) capacity of seeded slots with J blocks known to the receiver: mean_j log2(1 + |h_j|^2 SNR).

    Args:
        conditions: of the link.
        channel_uses: symbols of a slot. Where each has its own gain, a long slot averages over more of them,
            up to the 512 that are drawn; where blocks share their gains, it makes no difference.
    """
    from dekag.link.outage import powers_db

    snr = 10 ** ((conditions.snr_db + powers_db(conditions, channel_uses=channel_uses)) / 10)
    return np.asarray(np.log2(1 + snr).mean(axis=-1))


def ergodic_capacity(conditions: LinkConditions, *, channel_uses: int) -> float:
    """Capacity of a code over infinitely many slots; not reachable reliably within a single slot."""
    return float(slot_capacities(conditions, channel_uses=channel_uses).mean())


def outage_capacity(conditions: LinkConditions, outage: float = 0.1, *, channel_uses: int) -> float:
    """The highest rate at which a fraction `outage` of slots fails; the sender does not know the fades."""
    return float(np.quantile(slot_capacities(conditions, channel_uses=channel_uses), outage))


def bytes_within(channel_uses: int, bits_per_use: float) -> int:
    """Whole bytes in that many channel uses."""
    return int(channel_uses * bits_per_use / 8)
