"""Time on the air and on the backhaul against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dekag.link.timing import PACKET_BYTES, AirTime, BackhaulTime

AIR = AirTime(bandwidth_hz=1e6, slot_s=1e-3, overhead=0.2)  # 800 channel uses per slot


@pytest.mark.parametrize(
    ("channel_uses", "slots"), [(0, 0), (1, 1), (800, 1), (801, 2), (2_048, 3), (80_000, 100)]
)
def test_a_transmission_takes_whole_slots(channel_uses: int, slots: int) -> None:
    assert AIR.slots(channel_uses) == slots
    assert AIR.seconds(channel_uses) == pytest.approx(slots * 1e-3)


def test_twice_the_band_takes_half_the_time() -> None:
    twice = AirTime(bandwidth_hz=2e6, slot_s=1e-3, overhead=0.2)
    assert twice.seconds(16_000) == pytest.approx(AIR.seconds(16_000) / 2)


def test_a_transfer_takes_its_delay_and_its_bits() -> None:
    hop = BackhaulTime(rate_bit_s=1e6, delay_s=0.01, jitter_s=0.0, loss=0.0)
    rng = np.random.default_rng(0)
    assert hop.seconds(12_500, rng) == pytest.approx(0.01 + 0.1)
    assert hop.exchange_s(12_500, rng) == pytest.approx(0.02 + 0.1)
    assert hop.seconds(0, rng) == hop.exchange_s(0, rng) == 0.0


def test_jitter_adds_its_mean() -> None:
    hop = BackhaulTime(rate_bit_s=1e9, delay_s=0.0, jitter_s=0.002, loss=0.0)
    rng = np.random.default_rng(0)
    times_s = [hop.seconds(1, rng) for _ in range(20_000)]
    assert np.mean(times_s) == pytest.approx(0.002, rel=0.03)


def test_lost_packets_are_sent_again() -> None:
    """Each packet is sent 1 / (1 - loss) times on average, and each round costs two more delays."""
    hop = BackhaulTime(rate_bit_s=1e6, delay_s=0.0, jitter_s=0.0, loss=0.2)
    rng = np.random.default_rng(0)
    packets = 100
    times_s = [hop.seconds(packets * PACKET_BYTES, rng) for _ in range(2_000)]
    once_s = 8 * packets * PACKET_BYTES / 1e6
    assert np.mean(times_s) == pytest.approx(once_s / (1 - 0.2), rel=0.01)
    late = BackhaulTime(rate_bit_s=1e12, delay_s=0.01, jitter_s=0.0, loss=0.2)
    # a single packet: rounds are geometric, of one delay each, and one more for each repetition
    times_s = [late.seconds(100, rng) for _ in range(20_000)]
    assert np.mean(times_s) == pytest.approx(0.01 + 2 * 0.01 * 0.2 / 0.8, rel=0.02)
