"""Estimated gains and the equalisers that count their errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dekag.link.channel import ChannelState, Reception, compose_hops, transmit
from dekag.link.conditions import EqualizerKind, LinkConditions
from dekag.link.equalizer import equalize

DRAWS = 800
KINDS: dict[str, dict[str, Any]] = {
    "awgn": {"fading": "awgn"},
    "rayleigh": {"fading": "rayleigh", "tau_rms_s": 1e-7},
    "flat": {"fading": "rayleigh", "tau_rms_s": 0.0},
    "rician": {"fading": "rician", "tau_rms_s": 1e-7, "rician_k_db": 3},
    "tdl-a": {"fading": "tdl-a", "tau_rms_s": 1e-6, "speed_m_s": 50},
    "tdl-d": {"fading": "tdl-d", "tau_rms_s": 1e-7, "speed_m_s": 50},
}


def qpsk(*shape: int, seed: int = 0) -> torch.Tensor:
    bits = torch.randint(0, 2, (*shape, 2), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return torch.view_as_complex(bits / math.sqrt(2))


def pair(kind: str, symbols: torch.Tensor, **more: Any) -> tuple[Reception, Reception]:
    """The same transmissions with perfect CSI and with pilots."""
    asked = [
        LinkConditions.model_validate(KINDS[kind] | more | {"csi": csi}) for csi in ("perfect", "pilots")
    ]
    perfect, pilots = (transmit(symbols, [each] * len(symbols), range(len(symbols))) for each in asked)
    return perfect, pilots


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("snr_db", [-5.0, 15.0])
def test_errors_are_as_large_as_the_receiver_thinks(kind: str, snr_db: float) -> None:
    perfect, pilots = pair(kind, qpsk(DRAWS, 64), snr_db=snr_db)
    assert pilots.gain_errors is not None
    off = pilots.gains - perfect.gains
    # Errors of one transmission are correlated: its mean is one sample (4.5 sigma).
    ratio = (off.abs().square() / pilots.gain_errors).mean(dim=1)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(DRAWS)
    # What makes it the best linear estimate: the error is orthogonal to it.
    leftover = (off * pilots.gains.conj()).real.mean(dim=1)
    if kind != "awgn":  # there the gain is always 1, which the receiver does not know
        assert abs(leftover.mean()) < 4.5 * leftover.std() / math.sqrt(DRAWS)
    assert (pilots.gain_errors < 1).all()


def test_sixteen_pilots_share_one_gain_on_a_flat_channel() -> None:
    """One unknown gain of power 1 and 16 looks at it: error no / (16 + no)."""
    for kind in ("flat", "awgn"):
        _, pilots = pair(kind, qpsk(1, 64), snr_db=0)
        torch.testing.assert_close(pilots.gain_errors, torch.full((1, 8), 1 / 17), rtol=1e-4, atol=0)


def test_two_pilots_for_each_of_independent_blocks() -> None:
    _, pilots = pair("rayleigh", qpsk(1, 64), snr_db=0, tau_rms_s=1e-4)
    torch.testing.assert_close(pilots.gain_errors, torch.full((1, 8), 1 / 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("kind", "channel_uses", "expected"),
    [("rayleigh", 512, 16), ("rayleigh", 64, 16), ("awgn", 512, 16), ("tdl-a", 512, 48), ("tdl-a", 64, 16)],
)
def test_pilots_cost_channel_uses(kind: str, channel_uses: int, expected: int) -> None:
    perfect, pilots = pair(kind, qpsk(2, channel_uses))
    assert pilots.pilot_uses == (expected, expected)
    assert perfect.pilot_uses == (0, 0)


def test_no_csi_is_a_gain_of_one_that_is_not_doubted() -> None:
    blind = transmit(qpsk(2, 64), [LinkConditions(csi="none")] * 2, [1, 2])
    assert (blind.gains == 1).all()
    assert (blind.symbol_no == blind.no[:, None]).all()
    assert blind.pilot_uses == (0, 0)


@pytest.mark.parametrize("kind", ["rayleigh", "flat", "tdl-a"])
def test_mmse_counts_the_error_of_the_estimate(kind: str) -> None:
    """Of Gaussian gains, whose errors are independent of the estimates and not only orthogonal to them."""
    symbols = qpsk(DRAWS, 64)
    _, reception = pair(kind, symbols, snr_db=0)

    def error(reception: Reception, kind: EqualizerKind) -> torch.Tensor:
        return (equalize(reception, kind).symbols - symbols).abs().square().mean(dim=1)

    counted = error(reception, "mmse")
    gap = counted - equalize(reception, "mmse").no.mean(dim=1)
    assert abs(gap.mean()) < 4.5 * gap.std() / math.sqrt(DRAWS)
    assert counted.mean() < error(replace(reception, gain_errors=None), "mmse").mean()
    assert counted.mean() < error(reception, "zf").mean()


def test_better_knowledge_is_worth_something() -> None:
    symbols = qpsk(200, 64)
    errors = []
    for csi in ("perfect", "pilots", "none"):
        asked = LinkConditions.model_validate({"snr_db": 10, "tau_rms_s": 1e-7, "csi": csi})
        reception = transmit(symbols, [asked] * 200, range(200))
        errors.append((equalize(reception, "mmse").symbols - symbols).abs().square().mean().item())
    perfect, pilots, none = errors
    assert perfect < pilots < 0.5 < none


def test_zero_forcing_undoes_the_gain() -> None:
    symbols = qpsk(1, 64)
    reception = replace(transmit(symbols, [LinkConditions(snr_db=40)], [3]), no=torch.zeros(1))
    clean = replace(reception, symbols=symbols * reception.symbol_gains)
    torch.testing.assert_close(equalize(clean, "zf").symbols, symbols)


@pytest.mark.parametrize("kind", ["rayleigh", "tdl-a"])
def test_errors_of_two_hops_add_up(kind: str) -> None:
    """What is left when the believed gain is taken out is the noise and the error that is reported."""
    symbols = qpsk(DRAWS, 64)
    asked = [LinkConditions.model_validate(KINDS[kind] | {"snr_db": 5, "csi": "pilots"})] * DRAWS
    first = transmit(symbols, asked, range(DRAWS))
    second = transmit(first.symbols, asked, range(DRAWS), hop=1)
    hops = [ChannelState(each.gains, each.no, each.gain_errors, each.pilot_uses) for each in (first, second)]
    reception = compose_hops(second.symbols, hops)
    left = (reception.symbols - reception.symbol_gains * symbols).abs().square()
    ratio = (left / reception.symbol_no).mean(dim=1)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(DRAWS)
    assert reception.pilot_uses == tuple(2 * uses for uses in first.pilot_uses)


def test_two_hops_without_csi() -> None:
    first = transmit(qpsk(1, 64), [LinkConditions(csi="none", snr_db=3)], [1])
    hops = [ChannelState(first.gains, first.no, first.gain_errors, first.pilot_uses)] * 2
    reception = compose_hops(first.symbols, hops)
    assert torch.equal(reception.symbols, first.symbols)
    torch.testing.assert_close(reception.no, 2 * first.no)
