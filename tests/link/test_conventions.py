"""Channels of other projects: their power, noise and bit error rates against theory."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from dekag.errors import InvalidInputError
from dekag.link.channel import transmit
from dekag.link.conditions import LinkConditions
from dekag.link.conventions import CONVENTIONS, REAL_DIMENSION_DB
from dekag.link.equalizer import equalize
from dekag.link.sionna_blocks import Mapper

SYMBOLS = 200_000


def qpsk_errors(link: LinkConditions) -> float:
    """Share of wrong bits of QPSK, decided by the signs after zero forcing."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 2, (1, 2 * SYMBOLS), generator=generator).float()
    sent = Mapper("qam", 2, device="cpu")(bits)
    received = equalize(transmit(sent, [link], [3]), "zf").symbols
    signs = [(torch.sign(part(received)) != torch.sign(part(sent))).float().mean() for part in (real, imag)]
    return float(torch.stack(signs).mean())


def real(symbols: torch.Tensor) -> torch.Tensor:
    return symbols.real


def imag(symbols: torch.Tensor) -> torch.Tensor:
    return symbols.imag


@pytest.mark.parametrize("csi", ["perfect", "none"])
@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_magnitudes_have_the_error_rate_of_rayleigh_whatever_the_receiver_knows(
    csi: str, snr_db: float
) -> None:
    snr = 10 ** (snr_db / 10)
    expected = (1 - math.sqrt(snr / (2 + snr))) / 2  # QPSK: Eb/N0 is half of Es/N0
    link = LinkConditions.model_validate({"fading": "rayleigh-magnitude", "snr_db": snr_db, "csi": csi})
    assert qpsk_errors(link) == pytest.approx(expected, abs=5 * math.sqrt(expected / SYMBOLS))


def test_complex_gains_are_useless_to_a_receiver_without_csi() -> None:
    """The contrast to the test above: without a phase reference half of the bits are wrong."""
    generator = torch.Generator().manual_seed(2)
    sent = Mapper("qam", 2, device="cpu")(torch.randint(0, 2, (2000, 32), generator=generator).float())
    link = LinkConditions(fading="rayleigh", snr_db=20, csi="none")
    received = equalize(transmit(sent, [link] * 2000, range(2000)), "zf").symbols
    wrong = (torch.sign(received.real) != torch.sign(sent.real)).float().mean()
    assert wrong.item() == pytest.approx(0.5, abs=0.02)


def test_magnitudes_are_real_independent_and_of_power_one() -> None:
    link = LinkConditions(fading="rayleigh-magnitude", snr_db=40)
    reception = transmit(torch.ones(1, SYMBOLS, dtype=torch.complex64), [link], [5])
    gains = reception.gains[0]
    assert gains.shape == (SYMBOLS,)
    assert torch.equal(gains.imag, torch.zeros(SYMBOLS))
    assert (gains.real > 0).all()
    power = gains.real.square()
    assert power.mean().item() == pytest.approx(1, abs=0.01)
    assert gains.real.mean().item() == pytest.approx(
        math.sqrt(math.pi / 4), abs=0.005
    )  # of a Rayleigh variable
    centred = power - power.mean()
    assert (centred[1:] * centred[:-1]).mean().item() == pytest.approx(0, abs=0.01)


def test_snr_per_real_dimension_is_three_decibels_less() -> None:
    """Noise of variance 1/SNR in each of two dimensions is twice the noise per channel use."""
    snr_db = 7.0
    sent = torch.ones(1, SYMBOLS, dtype=torch.complex64)
    noise = CONVENTIONS["real-dimension"].transmit(sent, snr_db, [9]).symbols - sent
    for part in (noise.real, noise.imag):
        assert part.square().mean().item() == pytest.approx(10 ** (-snr_db / 10), rel=0.02)
    usual = CONVENTIONS["dekag"].transmit(sent, snr_db - REAL_DIMENSION_DB, [9]).symbols - sent
    assert torch.allclose(noise, usual)


def test_power_over_a_batch_leaves_images_their_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 4096, dtype=torch.complex64, generator=generator) * torch.tensor([[1.0], [3.0]])
    shared, single = (CONVENTIONS[name].normalised(batch) for name in ("swinjscc", "dekag"))
    powers = shared.abs().square().mean(dim=1)
    assert powers.mean().item() == pytest.approx(1, abs=1e-5)
    assert (powers[1] / powers[0]).item() == pytest.approx(9, rel=0.1)
    assert torch.allclose(single.abs().square().mean(dim=1), torch.ones(2), atol=1e-5)


def test_the_swinjscc_receiver_knows_nothing_and_needs_nothing() -> None:
    link = CONVENTIONS["swinjscc"].conditions(10, fading="rayleigh")
    assert (link.fading, link.csi, link.snr_db) == ("rayleigh-magnitude", "none", 10)
    assert CONVENTIONS["swinjscc"].conditions(10).fading == "awgn"


@pytest.mark.parametrize(
    "symbols",
    [torch.zeros(1, 8, dtype=torch.complex64), torch.ones(8, dtype=torch.complex64), torch.ones(1, 8)],
)
def test_symbols_without_power_or_shape_are_refused(symbols: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError, match="symbols"):
        CONVENTIONS["swinjscc"].normalised(symbols)


def test_pilots_cannot_estimate_a_gain_for_each_symbol() -> None:
    with pytest.raises(ValidationError, match="perfect or none when fading is rayleigh-magnitude"):
        LinkConditions(fading="rayleigh-magnitude", csi="pilots")
