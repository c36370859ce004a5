"""The batched channel of training is, in distribution, the channel that `transmit` simulates."""

from __future__ import annotations

import math

import pytest
import torch

from dekag.link.channel import transmit
from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.fading import block_correlation
from dekag.link.training_channel import draw_channels, pass_through

MANY = 20_000


def _channels(direct: float, tau_s: float, snr_db: float = 10.0, **csi: torch.Tensor):  # type: ignore[no-untyped-def]
    rows = torch.ones(MANY)
    return draw_channels(snr_db * rows, direct * rows, tau_s * rows, torch.Generator().manual_seed(1), **csi)


@pytest.mark.parametrize("tau_s", [0.0, 1e-7, 1e-5])
def test_rayleigh_blocks_are_correlated_as_the_formula_says(tau_s: float) -> None:
    gains = _channels(0.0, tau_s).gains
    measured = gains.T @ gains.conj() / MANY
    torch.testing.assert_close(measured, block_correlation(tau_s).to(torch.complex64), atol=0.04, rtol=0)


@pytest.mark.parametrize("direct", [0.0, 0.8, 1.0])
def test_mean_power_is_one(direct: float) -> None:
    gains = _channels(direct, 1e-6).gains
    assert gains.abs().square().mean() == pytest.approx(1, abs=0.02)
    assert gains.abs().square().var() == pytest.approx((1 - direct) * (1 + direct), abs=0.05)


def test_noise_has_the_power_that_was_asked_for() -> None:
    channels = _channels(1.0, 0.0, snr_db=3.0)
    symbols = torch.ones(MANY, 16, dtype=torch.complex64)
    out = pass_through(channels, symbols, torch.full((MANY,), 16), torch.Generator().manual_seed(2))
    # MMSE without fading: (s + n) / (1 + no)
    no = 10**-0.3
    assert (out * (1 + no) - 1).abs().square().mean() == pytest.approx(no, rel=0.02)


def test_each_row_sends_its_own_number_of_symbols_over_its_own_blocks() -> None:
    channels = draw_channels(
        torch.full((2,), 60.0), torch.zeros(2), torch.full((2,), 1e-5), torch.Generator().manual_seed(3)
    )
    symbols = torch.ones(2, 64, dtype=torch.complex64)
    out = pass_through(channels, symbols, torch.tensor([64, 16]), torch.Generator().manual_seed(4))
    assert not out[1, 16:].any()
    torch.testing.assert_close(out[1, :16], torch.ones(16, dtype=torch.complex64), atol=0.05, rtol=0)
    torch.testing.assert_close(out[0], torch.ones(64, dtype=torch.complex64), atol=0.05, rtol=0)


@pytest.mark.parametrize(("fading", "direct"), [("awgn", 1.0), ("rayleigh", 0.0), ("rician", 0.8)])
def test_estimates_are_as_good_as_the_links(fading: str, direct: float) -> None:
    """The same error, and the same idea of it, as the estimator that `transmit` uses."""
    k_db = 10 * math.log10(0.8 / 0.2)
    conditions = LinkConditions(snr_db=3, fading=fading, tau_rms_s=1e-7, rician_k_db=k_db, csi="pilots")  # type: ignore[arg-type]
    channels = _channels(direct, 1e-7, snr_db=3.0, pilots=torch.ones(MANY))
    error = (channels.gain_estimate - channels.gains).abs().square().mean(0)
    torch.testing.assert_close(error, channels.error_variance[0], rtol=0.1, atol=1e-3)
    sent = torch.ones(1, 64, dtype=torch.complex64)
    errors = transmit(sent, [conditions], [1]).gain_errors
    assert errors is not None
    torch.testing.assert_close(channels.error_variance[:1], errors, rtol=1e-3, atol=1e-5)


def test_unknown_gains_are_taken_to_be_one() -> None:
    blind = _channels(0.0, 1e-6, no_csi=torch.ones(MANY))
    assert torch.equal(blind.gain_estimate, torch.ones(MANY, BLOCKS, dtype=torch.complex64))


def test_zero_forcing_undoes_the_gain() -> None:
    channels = _channels(0.8, 1e-6, snr_db=60.0)
    symbols = torch.ones(MANY, 16, dtype=torch.complex64)
    uses, generator = torch.full((MANY,), 16), torch.Generator().manual_seed(2)
    out = pass_through(channels, symbols, uses, generator, zero_forcing=torch.ones(MANY))
    assert (out - 1).abs().median() < 0.01
