"""Hybrid ARQ with chase combining: what is lost is sent again, and the receiver adds up what it heard.

Each transmission meets a fading slot and a noise of its own; soft bits of the same coded bits add. A one-bit
answer after each transmission says whether the CRC holds; it is taken to be free and never wrong.
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
    """How one payload fared.

    Attributes:
        payload: None if it was lost after the last transmission.
        transmissions: that were made.
        channel_uses: of all of them together, pilots included.
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
    """Send `payload` up to `max_transmissions` times; 1 is delivery without HARQ.

    Args:
        payload: 1 to 65536 bytes.
        coding: the same for every transmission.
        conditions: of the channel; fading slots are independent of one another.
        seed: of fading and noise. The first transmission meets what `transmit` gives for it.
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
