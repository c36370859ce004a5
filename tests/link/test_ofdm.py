"""The OFDM grid, and tapped delay lines against theory."""

from __future__ import annotations

import math

import pytest
import torch

from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.ofdm import PILOT_SYMBOLS, SYMBOLS, Grid, tdl_correlation, tdl_gains

DRAWS = 1000


def gains_of(grid: Grid, conditions: LinkConditions, draws: int = DRAWS) -> torch.Tensor:
    """(draws, slots, SYMBOLS, BLOCKS, width)"""
    generators = (torch.Generator().manual_seed(seed) for seed in range(draws))
    return torch.stack([tdl_gains(grid, conditions, generator) for generator in generators])


@pytest.mark.parametrize("channel_uses", [1, 7, 64, 128, 512, 6000, 8112, 8113, 30_000])
def test_every_symbol_has_an_element_of_its_own_beside_the_pilots(channel_uses: int) -> None:
    grid = Grid.of(channel_uses)
    elements = torch.arange(math.prod(grid.shape)).view(grid.shape)
    mine = grid.of_symbols(elements, channel_uses)
    assert len(mine.unique()) == channel_uses
    pilots = elements.permute(0, 2, 1, 3)[:, :, grid.pilots].flatten()
    assert len(pilots) == grid.pilot_uses
    assert not torch.isin(mine, pilots).any()
    assert grid.slots == -(-channel_uses // 8112)


def test_512_symbols_fill_their_slot() -> None:
    grid = Grid.of(512)
    assert (grid.slots, grid.width, grid.pilot_uses) == (1, 5, 48)
    assert math.prod(grid.shape) == 512 + 48


def test_symbols_fill_the_slot_frequency_first() -> None:
    grid = Grid.of(512)
    symbol = torch.arange(SYMBOLS).view(1, SYMBOLS, 1, 1).expand(grid.shape)
    order = grid.of_symbols(symbol, 512)
    assert (order.diff() >= 0).all()
    counts = order.bincount()
    assert counts.tolist() == [16 if i in PILOT_SYMBOLS else 40 for i in range(SYMBOLS)]


@pytest.mark.parametrize("fading", ["tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e"])
def test_correlation_over_time_and_frequency_matches_the_formula(fading: str) -> None:
    """Of one slot and sub-band; Doppler is fast and delays are long, so that both show."""
    conditions = LinkConditions.model_validate({"fading": fading, "tau_rms_s": 3e-6, "speed_m_s": 120.0})
    gains = gains_of(Grid(1, 3), conditions)[:, 0, :, 4].flatten(1)
    measured = torch.einsum("ni,nj->ij", gains, gains.conj()) / DRAWS
    expected = tdl_correlation(conditions.fading, 3e-6, 120.0, 3)
    assert (measured - expected).abs().max() < 5 / math.sqrt(DRAWS)
    assert (expected - 1).abs().max() > 0.3, "the formula has something to say"


def test_sub_bands_are_as_far_apart_as_the_blocks() -> None:
    """TDL-A at a delay spread where neighbouring sub-bands are half correlated and far ones are not."""
    conditions = LinkConditions(fading="tdl-a", tau_rms_s=1e-7)
    gains = gains_of(Grid(1, 1), conditions)[:, 0, 0, :, 0]
    measured = torch.einsum("ni,nj->ij", gains, gains.conj()) / DRAWS
    # 1.25 MHz are 83.33 times the 15 kHz that tdl_correlation steps by.
    far = tdl_correlation("tdl-a", 1e-7 * 1.25e6 / 15e3, 0.0, BLOCKS)[:BLOCKS, :BLOCKS]
    assert (measured - far).abs().max() < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("fading", ["tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e"])
def test_the_delay_spread_is_the_asked_one(fading: str) -> None:
    """|R(df)| = 1 - (2 pi df tau_rms)^2 / 2 + ... for any profile of RMS delay spread tau_rms."""
    near = tdl_correlation(LinkConditions.model_validate({"fading": fading}).fading, 1e-7, 0.0, 2)
    curvature = 2 * (1 - near[0, 1].abs().item()) / (2 * math.pi * 15e3) ** 2
    assert math.sqrt(curvature) == pytest.approx(1e-7, rel=0.02)


def test_doppler_is_clarkes() -> None:
    """At 120 m/s and 3.5 GHz the time correlation is J_0(2 pi 1401 Hz dt), below 0 after half a slot."""
    correlation = tdl_correlation("tdl-a", 0.0, 120.0, 1).real[0]
    dt = torch.arange(SYMBOLS, dtype=torch.float64) * 1e-3 / SYMBOLS
    expected = torch.special.bessel_j0(2 * math.pi * 120 / 299_792_458 * 3.5e9 * dt)
    torch.testing.assert_close(correlation, expected, rtol=0, atol=1e-9)
    assert correlation[5] < 0


def test_nobody_moves_at_speed_zero() -> None:
    gains = gains_of(Grid(2, 2), LinkConditions(fading="tdl-c"), 3)
    assert torch.equal(gains, gains[:, :1, :1].expand_as(gains))


def test_no_delay_spread_is_flat() -> None:
    gains = gains_of(Grid(1, 3), LinkConditions(fading="tdl-c", tau_rms_s=0, speed_m_s=30), 3)
    torch.testing.assert_close(gains, gains[..., :1, :1].expand_as(gains))


def test_the_same_seed_meets_the_same_paths_at_every_rate() -> None:
    conditions = LinkConditions(fading="tdl-d", speed_m_s=30)
    narrow, wide, long = (gains_of(grid, conditions, 3) for grid in (Grid(1, 1), Grid(1, 5), Grid(3, 1)))
    torch.testing.assert_close(wide[..., 2], narrow[..., 0])
    torch.testing.assert_close(long[:, :1], narrow)


def test_the_direct_path_of_profile_d_is_as_strong_as_the_table_says() -> None:
    """TR 38.901, table 7.7.2-4: K = 13.3 dB in the first tap, which is 9 dB over all taps."""
    power = (
        gains_of(Grid(1, 1), LinkConditions(fading="tdl-d", tau_rms_s=0), 2000)[:, 0, 0, 0, 0].abs().square()
    )
    # Of Rician fading with K = k: var |h|^2 = (2 k + 1) / (k + 1)^2.
    k = 10 ** (9.0 / 10)
    assert power.var().item() == pytest.approx((2 * k + 1) / (k + 1) ** 2, rel=0.2)
