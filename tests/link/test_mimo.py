"""Several antennas at each end, against theory."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from dekag.cala.conditions import condition_vector
from dekag.errors import InvalidInputError
from dekag.link import BLOCKS, LinkConditions
from dekag.link.channel import block_of_symbol, transmit
from dekag.link.equalizer import equalize
from dekag.link.mimo import stream_snr_db, uses_on_air
from dekag.link.outage import powers_db

ITEMS, SYMBOLS = 1500, 32
ANTENNAS = {"mimo-2x2": 2, "mimo-4x4": 4}


def qpsk() -> torch.Tensor:
    bits = torch.randint(0, 2, (ITEMS, SYMBOLS, 2), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return torch.view_as_complex(bits / math.sqrt(2))


def link(fading: str, **more: object) -> LinkConditions:
    return LinkConditions.model_validate({"fading": fading, **more})


@pytest.mark.parametrize("fading", ANTENNAS)
@pytest.mark.parametrize("snr_db", [5.0, 15.0])
def test_zero_forcing_leaves_each_stream_a_rayleigh_channel_of_its_share_of_the_power(
    fading: str, snr_db: float
) -> None:
    """1 / [(H^H H)^-1]_kk of a square matrix is exponential: Winters, Salz and Gitlin 1994."""
    sent, asked = qpsk(), link(fading, snr_db=snr_db, equalizer="zf")
    detected = equalize(transmit(sent, [asked] * ITEMS, range(ITEMS)), "zf").symbols
    wrong = torch.view_as_real(detected).sign() != torch.view_as_real(sent).sign()
    snr = 10 ** (snr_db / 10) / ANTENNAS[fading]
    expected = (1 - math.sqrt(snr / (2 + snr))) / 2  # of QPSK, as Eb/N0 is half of Es/N0
    # symbols of a block share their fade: the sample is that of the items' blocks, not of their symbols
    samples = ITEMS * min(BLOCKS, SYMBOLS // ANTENNAS[fading])
    assert wrong.float().mean().item() == pytest.approx(expected, abs=5 * math.sqrt(expected / samples))


@pytest.mark.parametrize("fading", ANTENNAS)
def test_the_mmse_detector_has_the_error_that_it_states_and_less_than_zero_forcing(fading: str) -> None:
    sent = qpsk()
    found = {}
    for kind in ("mmse", "zf"):
        asked = link(fading, snr_db=8, equalizer=kind)
        detected = equalize(transmit(sent, [asked] * ITEMS, range(ITEMS)), "mmse")
        error = (detected.symbols - sent).abs().square()
        found[kind] = error.mean().item()
        if kind == "mmse":
            assert found[kind] == pytest.approx(detected.no.mean().item(), rel=0.03)
    assert found["mmse"] < 0.9 * found["zf"]


def test_noise_behind_the_detector_has_the_power_of_the_channel() -> None:
    asked = link("mimo-2x2", snr_db=12, equalizer="zf")
    sent = qpsk()
    reception = transmit(sent, [asked] * ITEMS, range(ITEMS))
    noise = (reception.symbols - reception.gains * sent).abs().square()
    assert noise.mean().item() == pytest.approx(asked.no, rel=0.03)
    assert torch.equal(reception.gains.imag, torch.zeros(ITEMS, SYMBOLS))


def test_fades_depend_neither_on_the_rate_nor_on_the_batch() -> None:
    asked = link("mimo-2x2", equalizer="zf", tau_rms_s=1e-6)
    long, short = (
        transmit(torch.ones(1, symbols, dtype=torch.complex64), [asked], [7]).gains[0]
        for symbols in (128, 64)
    )
    of_block = [gains.view(BLOCKS, -1)[:, :2] for gains in (long, short)]
    torch.testing.assert_close(*of_block)
    batch = transmit(torch.ones(3, 64, dtype=torch.complex64), [asked] * 3, [5, 7, 9])
    assert torch.equal(batch.gains[1], short)
    louder = transmit(
        torch.ones(1, 64, dtype=torch.complex64),
        [link("mimo-2x2", equalizer="zf", tau_rms_s=1e-6, snr_db=30)],
        [7],
    )
    torch.testing.assert_close(louder.gains[0], short)


def test_an_odd_number_of_symbols_is_filled_up() -> None:
    asked = link("mimo-4x4", snr_db=40, equalizer="zf")
    sent = qpsk()[:200, :13]
    assert uses_on_air(13, asked) == 4
    assert uses_on_air(13, link("rayleigh")) == 13
    reception = transmit(sent, [asked] * 200, range(200))
    assert reception.symbols.shape == reception.gains.shape == (200, 13)
    error = (equalize(reception, "mmse").symbols - sent).abs().square().mean()
    assert error.item() < 0.02


def test_streams_of_a_block_share_its_fade() -> None:
    asked = link("mimo-2x2", equalizer="zf", tau_rms_s=1e-4)
    gains = transmit(torch.ones(1, 64, dtype=torch.complex64), [asked], [3]).gains[0].view(-1, 2)
    blocks = block_of_symbol(len(gains))
    for block in range(BLOCKS):
        own = gains[blocks == block]
        torch.testing.assert_close(own, own[:1].expand_as(own))
    assert len({round(float(gain.real), 4) for gain in gains.flatten()}) == 2 * BLOCKS


def test_a_stream_has_its_share_of_the_power() -> None:
    asked = link("mimo-4x4", snr_db=8, equalizer="zf")
    assert stream_snr_db(asked.snr_db, asked) == pytest.approx(8 - 6.02, abs=0.01)
    assert stream_snr_db(8, link("rayleigh")) == 8
    at_stream, at_antenna = (
        condition_vector(1 / 96, each, at="sender")
        for each in (asked, link("rayleigh", snr_db=8 - 10 * math.log10(4), equalizer="zf"))
    )
    torch.testing.assert_close(at_stream, at_antenna)


def test_a_second_channel_with_several_antennas_is_refused() -> None:
    sent, asked = qpsk()[:1], link("mimo-2x2")
    with pytest.raises(InvalidInputError, match=r"link\.fading must be a kind with one antenna"):
        transmit(sent, [asked], [1], hop=1)


@pytest.mark.parametrize("csi", ["pilots", "none"])
def test_a_receiver_that_does_not_know_the_matrix_is_refused(csi: str) -> None:
    with pytest.raises(ValidationError, match="must be perfect when fading is mimo-4x4"):
        link("mimo-4x4", csi=csi)


def test_the_sender_expects_more_of_the_mmse_detector() -> None:
    """What rate control and the digital sender expect follows the detector and the SNR."""
    low, high = (powers_db(link("mimo-2x2", snr_db=snr_db, equalizer="mmse")) for snr_db in (-5.0, 30.0))
    forced = powers_db(link("mimo-2x2", snr_db=-5.0, equalizer="zf"))
    assert low.mean() > forced.mean() + 1
    assert low.mean() > high.mean() + 1
