"""The batched channel of training is, in distribution, the channel that `transmit` simulates."""

from __future__ import annotations

import pytest
import torch

from dekag.link.batch import draw_channels, pass_through
from dekag.link.channel import block_correlation
from dekag.link.conditions import BLOCKS

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
    assert gains.mean().abs() == pytest.approx(direct**0.5, abs=0.02)


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


def test_estimated_and_unknown_gains() -> None:
    pilots = torch.full((MANY,), 4.0)
    channels = _channels(0.0, 1e-6, pilots=pilots)
    error = (channels.believed - channels.gains).abs().square().mean()
    assert error == pytest.approx(0.1 / 4, rel=0.05)
    blind = _channels(0.0, 1e-6, no_csi=torch.ones(MANY))
    assert torch.equal(blind.believed, torch.ones(MANY, BLOCKS, dtype=torch.complex64))
