"""The physics of the channel, against theory."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from dekag.errors import InvalidInputError
from dekag.link.channel import (
    ChannelState,
    Reception,
    block_correlation,
    block_of_symbol,
    compose_hops,
    instantaneous_snr_db,
    transmit,
)
from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.equalizer import mmse_equalize, unbiased_equalize

DRAWS = 2000


def qpsk(*shape: int, seed: int = 0) -> torch.Tensor:
    bits = torch.randint(0, 2, (*shape, 2), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return torch.view_as_complex(bits / math.sqrt(2))


def gains_of(tau_rms_s: float, draws: int = DRAWS) -> torch.Tensor:
    """(draws, J) gains, every one drawn as an item of its own."""
    conditions = [LinkConditions(tau_rms_s=tau_rms_s)] * draws
    return transmit(qpsk(draws, BLOCKS), conditions, range(draws)).gains


@pytest.fixture(scope="module")
def gains() -> torch.Tensor:
    return gains_of(1e-7)


def test_mean_fading_power_is_one(gains: torch.Tensor) -> None:
    # |h|^2 is exponential of variance 1; blocks are correlated, so each is tested by itself (4 sigma).
    power = gains.abs().square().mean(dim=0)
    assert (power - 1).abs().max() < 4 / math.sqrt(DRAWS)
    assert gains.mean(dim=0).abs().max() < 4 / math.sqrt(DRAWS)


def test_items_keep_their_deep_fades(gains: torch.Tensor) -> None:
    """|h|^2 of one block over single-item draws is exponential: Kolmogorov-Smirnov at 0.1 %."""
    power = gains[:, 3].abs().square().sort().values
    theory = 1 - torch.exp(-power)
    empirical = torch.arange(1, DRAWS + 1) / DRAWS
    assert (theory - empirical).abs().max() < 1.95 / math.sqrt(DRAWS)
    assert 10 * torch.log10(power[0]) < -22


@pytest.mark.parametrize("tau_rms_s", [0.0, 1e-8, 1e-7, 1e-6])
def test_block_correlation_matches_the_formula(tau_rms_s: float) -> None:
    h = gains_of(tau_rms_s)
    measured = torch.einsum("ni,nj->ij", h, h.conj()) / DRAWS
    spacing = 10e6 / BLOCKS
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            expected = 1 / (1 + 2j * math.pi * (i - j) * spacing * tau_rms_s)
            assert abs(measured[i, j].item() - expected) < 4.5 / math.sqrt(DRAWS)


def test_correlation_decays_with_distance_and_delay() -> None:
    row = block_correlation(1e-7)[0].abs()
    assert (row.diff() < 0).all()
    assert block_correlation(1e-6)[0, 1].abs() < row[1]


def test_no_delay_spread_fades_all_blocks_alike() -> None:
    h = gains_of(0.0, 8)
    torch.testing.assert_close(h, h[:, :1].expand_as(h), rtol=0, atol=1e-4)


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 13.7, 40.0])
@pytest.mark.parametrize("fading", ["awgn", "rayleigh"])
def test_measured_snr_is_the_asked_snr(snr_db: float, fading: str) -> None:
    """Noise belongs to signal power 1: neither what was sent nor the fade scales it."""
    symbols = qpsk(4, 50_000)
    conditions = [LinkConditions.model_validate({"snr_db": snr_db, "fading": fading})] * 4
    reception = transmit(symbols, conditions, range(4))
    noise = reception.symbols - reception.symbol_gains * symbols
    measured = -10 * torch.log10(noise.abs().square().mean())
    assert abs(measured.item() - snr_db) < 0.1
    assert abs(noise.real.square().mean() / noise.imag.square().mean() - 1) < 0.05
    torch.testing.assert_close(reception.no, torch.full((4,), 10 ** (-snr_db / 10)))


def test_awgn_gains_are_exactly_one() -> None:
    reception = transmit(qpsk(2, 64), [LinkConditions(fading="awgn")] * 2, [1, 2])
    assert (reception.gains == 1).all()


def test_items_do_not_depend_on_their_batch() -> None:
    symbols = qpsk(5, 131)
    conditions = [
        LinkConditions(snr_db=0),
        LinkConditions(snr_db=20, tau_rms_s=0),
        LinkConditions(fading="awgn"),
        LinkConditions(snr_db=-7.5, tau_rms_s=3e-7),
        LinkConditions(snr_db=0),
    ]
    seeds = [7, 2**64 - 1, 0, 7, 8]
    whole = transmit(symbols, conditions, seeds)
    backwards = transmit(symbols.flip(0), conditions[::-1], seeds[::-1])
    for i in range(5):
        alone = transmit(symbols[i : i + 1], conditions[i : i + 1], seeds[i : i + 1])
        for other, j in ((alone, 0), (backwards, 4 - i)):
            assert torch.equal(whole.symbols[i], other.symbols[j])
            assert torch.equal(whole.gains[i], other.gains[j])
            assert torch.equal(whole.no[i], other.no[j])


def test_draws_ignore_and_leave_alone_the_global_generator() -> None:
    symbols, conditions = qpsk(1, 64), [LinkConditions()]
    torch.manual_seed(1)
    first = transmit(symbols, conditions, [3])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first.symbols, transmit(symbols, conditions, [3]).symbols)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_streams_differ_by_seed_hop_and_from_the_latents() -> None:
    symbols, conditions = torch.zeros(1, 512, dtype=torch.complex64), [LinkConditions(snr_db=0)]
    noise = [
        transmit(symbols, conditions, [seed], hop=hop).symbols[0]
        for seed, hop in ((5, 0), (6, 0), (5 + 2**32, 0), (5, 1))
    ]
    noise.append(torch.complex(*torch.randn(2, 512, generator=torch.Generator().manual_seed(5))))
    for i, a in enumerate(noise):
        for b in noise[:i]:
            assert (a * b.conj()).mean().abs() / (a.abs() * b.abs()).mean() < 0.25


def test_fading_is_the_same_at_every_rate_and_snr() -> None:
    few = transmit(qpsk(1, 64), [LinkConditions(snr_db=0)], [9])
    many = transmit(qpsk(1, 512), [LinkConditions(snr_db=20)], [9])
    assert torch.equal(few.gains, many.gains)


@pytest.mark.parametrize("channel_uses", [1, 8, 13, 64, 511])
def test_blocks_are_even_runs(channel_uses: int) -> None:
    blocks = block_of_symbol(channel_uses)
    sizes = blocks.bincount(minlength=BLOCKS)
    assert (blocks.diff() >= 0).all()
    assert sizes.sum() == channel_uses
    assert sizes.max() - sizes.min() <= 1
    if channel_uses % BLOCKS == 0:
        assert torch.equal(blocks, torch.arange(BLOCKS).repeat_interleave(channel_uses // BLOCKS))


def test_no_channel_is_ideal() -> None:
    symbols = qpsk(2, 64)
    reception = compose_hops(symbols, [])
    assert instantaneous_snr_db(reception.gains, reception.no).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(mmse_equalize(reception).symbols, symbols)
    assert (mmse_equalize(reception).no == 0).all()


def test_one_channel_is_received_as_it_was_transmitted() -> None:
    sent = transmit(qpsk(2, 64), [LinkConditions()] * 2, [1, 2])
    reception = compose_hops(sent.symbols, [(sent.gains, sent.no)])
    assert torch.equal(reception.symbols, sent.symbols)
    assert torch.equal(reception.gains, sent.gains)
    assert torch.equal(reception.no, sent.no)


def test_two_hops_are_one_equivalent_channel() -> None:
    symbols = qpsk(1, 80_000)
    first = transmit(symbols, [LinkConditions(snr_db=10)], [1])
    second = transmit(first.symbols, [LinkConditions(snr_db=7)], [1], hop=1)
    reception = compose_hops(second.symbols, [(first.gains, first.no), (second.gains, second.no)])
    noise = (reception.symbols - reception.symbol_gains * symbols).abs().square().view(BLOCKS, -1)
    torch.testing.assert_close(noise.mean(dim=1), reception.no.expand(BLOCKS), rtol=0.05, atol=0)
    torch.testing.assert_close(reception.no, torch.tensor([10**-1.0 + 10**-0.7]))
    by_hand = (first.gains * second.gains).abs().square() / (
        second.gains.abs().square() * first.no[:, None] + second.no[:, None]
    )
    torch.testing.assert_close(reception.gains.abs().square() / reception.no[:, None], by_hand)
    expected = 10 * torch.log10(by_hand.mean(dim=1))
    torch.testing.assert_close(instantaneous_snr_db(reception.gains, reception.no), expected)


def test_mmse_minimises_the_squared_error_it_reports() -> None:
    symbols = qpsk(1, 80_000)
    reception = transmit(symbols, [LinkConditions(snr_db=3, tau_rms_s=1e-6)], [4])
    equalized, unbiased = mmse_equalize(reception), unbiased_equalize(reception)

    def error(estimate: torch.Tensor) -> torch.Tensor:
        return (estimate - symbols).abs().square().view(BLOCKS, -1).mean(dim=1)

    per_block = slice(0, None, 80_000 // BLOCKS)
    torch.testing.assert_close(error(equalized.symbols), equalized.no[0, per_block], rtol=0.05, atol=0)
    torch.testing.assert_close(error(unbiased.symbols), unbiased.no[0, per_block], rtol=0.05, atol=0)
    assert (error(equalized.symbols) < error(unbiased.symbols)).all()
    for scale in (0.95, 1.05):
        assert (error(equalized.symbols * scale) > error(equalized.symbols)).all()
    assert (equalized.no > 0).all()
    assert (equalized.no < 1).all()


def test_a_block_that_is_lost_stays_finite() -> None:
    gains = torch.ones(1, BLOCKS, dtype=torch.complex64)
    gains[0, 0] = 0
    for no in (0.0, 0.1):
        reception = Reception(qpsk(1, 64), gains, torch.tensor([no]))
        for equalized in (mmse_equalize(reception), unbiased_equalize(reception)):
            assert torch.isfinite(torch.view_as_real(equalized.symbols)).all()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("snr_db", -20.1, "-20"),
        ("snr_db", 40.1, "40"),
        ("snr_db", math.nan, "finite"),
        ("tau_rms_s", -1e-9, "0"),
        ("tau_rms_s", 1.1e-4, "0.0001"),
        ("fading", "fog", "rayleigh"),
        ("rician_k_db", 41, "40"),
        ("speed_m_s", -1, "0"),
        ("speed_m_s", 151, "150"),
        ("trace", "walk", "unless fading is trace"),
        ("trace_start_s", -1, "0"),
        ("csi", "guessed", "pilots"),
        ("equalizer", "mf", "zf"),
        ("reported_snr_db", 41, "40"),
        ("rician_k", 3, "Extra"),
    ],
)
def test_conditions_name_field_and_range(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LinkConditions.model_validate({field: value})
    (error,) = caught.value.errors()
    assert error["loc"] == (field,)
    assert allowed in error["msg"]


@pytest.mark.parametrize(
    ("trace", "allowed"),
    [(None, "name"), ("../walk", "pattern"), ("a.csv", "pattern"), ("A", "pattern"), ("a\n", "pattern")],
)
def test_a_trace_is_a_name(trace: str | None, allowed: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LinkConditions(fading="trace", trace=trace)
    (error,) = caught.value.errors()
    assert error["loc"] == ("trace",)
    assert allowed in error["msg"]


def test_the_sender_believes_what_it_was_told() -> None:
    assert LinkConditions(snr_db=3).sender_snr_db == 3
    told = LinkConditions(snr_db=3, reported_snr_db=0)
    assert (told.sender_snr_db, told.no) == (0, 10**-0.3)


def test_transmit_names_what_is_wrong() -> None:
    symbols, conditions = qpsk(2, 8), [LinkConditions()] * 2
    broken = symbols.clone()
    broken[0, 0] = math.nan
    for field, arguments in {
        "symbols": (symbols[0], conditions, [1, 2]),
        "conditions": (symbols, conditions[:1], [1, 2]),
        "seeds": (symbols, conditions, [1]),
        "seed": (symbols, conditions, [1, 2**64]),
    }.items():
        with pytest.raises(InvalidInputError) as caught:
            transmit(*arguments)
        assert caught.value.field == field
    with pytest.raises(InvalidInputError, match="finite"):
        transmit(broken, conditions, [1, 2])


def test_received_refuses_states_that_do_not_fit() -> None:
    symbols, gains, no = qpsk(1, 64), torch.ones(1, BLOCKS, dtype=torch.complex64), torch.ones(1)
    for states, field in (
        ([(gains[:, :0], no)], "csi.gains"),
        ([(gains, no), (gains[:, :4], no)], "csi.gains"),
        ([(gains, -no)], "csi.no"),
        ([(gains, torch.ones(2))], "csi.no"),
        ([ChannelState(gains, no, -torch.ones(1, BLOCKS))], "csi.gain_errors"),
        ([ChannelState(gains, no, torch.ones(1, 4))], "csi.gain_errors"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            compose_hops(symbols, states)
        assert caught.value.field == field
