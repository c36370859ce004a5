"""Time on the air and on the backhaul: channel uses and bytes become seconds.

Nothing here delays anything: these are models of time, for link reports and for the simulation of a city.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PACKET_BYTES = 1500
"""Size of a packet on the backhaul, headers included: the usual Ethernet payload."""
MAX_ROUNDS = 100
"""Rounds of retransmission after which the packets that remain count as delivered."""


@dataclass(frozen=True)
class AirTime:
    """How long channel uses take on the air.

    The band is divided into slots. A transmission takes whole slots, one after another.

    Attributes:
        bandwidth_hz: bandwidth, Hz; one channel use per second and Hz, less the overhead.
        slot_s: duration of a slot, s.
        overhead: fraction of the channel uses of a slot that carry no data: control channels, cyclic
            prefixes, reference signals of the cell. Pilots of a transmission are among its channel uses.

    Example:
        >>> from dekag.link.timing import AirTime
        >>> air = AirTime(bandwidth_hz=1e6, slot_s=1e-3, overhead=0.2)  # 800 channel uses per slot
        >>> air.seconds(2_048)
        0.003
    """

    bandwidth_hz: float = 1e6
    slot_s: float = 1e-3
    overhead: float = 0.2

    @property
    def uses_per_s(self) -> float:
        """Channel uses per second that carry data."""
        return self.bandwidth_hz * (1 - self.overhead)

    def slots(self, channel_uses: int) -> int:
        """Slots that so many channel uses take; 0 for none."""
        per_slot = self.uses_per_s * self.slot_s
        return math.ceil(channel_uses / per_slot * (1 - 1e-12))  # an exact multiple may round up

    def seconds(self, channel_uses: int) -> float:
        """Time on the air, s, of so many channel uses, pilots included."""
        return self.slots(channel_uses) * self.slot_s


@dataclass(frozen=True)
class BackhaulTime:
    """How long messages take over one hop of the backhaul.

    A message is sent in packets of `PACKET_BYTES`. Lost packets are sent again after one round trip, as often
    as necessary. The delay of each round is the fixed delay plus exponentially distributed jitter.

    Attributes:
        rate_bit_s: rate, bit/s.
        delay_s: delay in one direction, s.
        jitter_s: mean of the additional random delay, s.
        loss: probability that a packet is lost.

    Example:
        >>> import numpy as np
        >>> from dekag.link.timing import BackhaulTime
        >>> hop = BackhaulTime(rate_bit_s=1e9, delay_s=0.005, jitter_s=0.0, loss=0.0)
        >>> f"{hop.seconds(125_000, np.random.default_rng(0)):.4f} s"
        '0.0060 s'
    """

    rate_bit_s: float = 1e9
    delay_s: float = 0.005
    jitter_s: float = 0.001
    loss: float = 0.0

    def seconds(self, sent_bytes: int, rng: np.random.Generator) -> float:
        """Time, s, from the first bit sent until the last one has arrived; 0 for nothing."""
        remaining = sent_bytes
        total_s = 0.0
        for _ in range(MAX_ROUNDS):
            if remaining <= 0:
                break
            total_s += self.delay_s + 8 * remaining / self.rate_bit_s
            if self.jitter_s > 0:
                total_s += float(rng.exponential(self.jitter_s))
            lost = int(rng.binomial(math.ceil(remaining / PACKET_BYTES), self.loss)) if self.loss else 0
            remaining = min(remaining, lost * PACKET_BYTES)
            if remaining:
                total_s += self.delay_s  # until the sender knows of the loss
        return total_s

    def exchange_s(self, sent_bytes: int, rng: np.random.Generator) -> float:
        """Time, s, of a request and its response, `sent_bytes` in both directions together; 0 for nothing."""
        if sent_bytes <= 0:
            return 0.0
        request_s = self.delay_s + (float(rng.exponential(self.jitter_s)) if self.jitter_s > 0 else 0.0)
        return request_s + self.seconds(sent_bytes, rng)
