"""Hybrid ARQ with chase combining: a lost payload is sent again, and the receiver combines all receptions.

Each transmission has its own fading slot and noise; soft bits of the same coded bits are added. The one-bit
feedback after each transmission is assumed to be free and error-free.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from dekag.link.channel import transmit
from dekag.link.conditions import LinkConditions
from dekag.link.digital import DecodingError, DigitalLink
from dekag.link.mcs import ModulationAndCoding

MAX_TRANSMISSIONS = 4


@dataclass(frozen=True)
class HarqResult:
    """Result of sending one payload.

    Attributes:
        payload: the decoded payload; None if it was lost after the last transmission.
        transmissions: number of transmissions.
        channel_uses: channel uses of all transmissions, including pilots.
    """

    payload: bytes | None
    transmissions: int
    channel_uses: int


def send_with_harq(
    payload: bytes,
    coding: ModulationAndCoding,
    conditions: LinkConditions,
    seed: int,
    *,
    max_transmissions: int = MAX_TRANSMISSIONS,
) -> HarqResult:
    """Send `payload` up to `max_transmissions` times; 1 means no HARQ.

    Args:
        payload: 1 to 2**20 bytes.
        coding: used for every transmission.
        conditions: conditions of the channel; fading slots are independent.
        seed: seed of fading and noise; the first transmission is that of `transmit` with this seed.
        max_transmissions: at least 1.
    """
    link = DigitalLink()
    symbols = link.modulate(payload, coding)
    total: torch.Tensor | None = None
    channel_uses = 0
    for attempt in range(max_transmissions):
        reception = transmit(symbols, [conditions], [slot_seed(seed, attempt)])
        channel_uses += symbols.shape[1] + sum(reception.pilot_uses)
        soft_bits = link.soft_bits(reception, coding, len(payload))
        total = soft_bits if total is None else total + soft_bits
        try:
            decoded = link.decode(total, coding, len(payload))
        except DecodingError:
            continue
        return HarqResult(decoded, attempt + 1, channel_uses)
    return HarqResult(None, max_transmissions, channel_uses)


def slot_seed(seed: int, attempt: int) -> int:
    """Seed of the slot of one transmission; the first one's is `seed` itself."""
    if not attempt:
        return seed
    digest = hashlib.sha256(f"dekag.link.harq/{attempt}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
