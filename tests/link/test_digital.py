"""The conventional link: uncoded error rates against theory, the coded chain, and its cliff."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link import digital
from dekag.link.calibrate import mutual_information_curve
from dekag.link.channel import Reception, received, transmit
from dekag.link.conditions import LinkConditions
from dekag.link.digital import TABLE, DecodingError, DigitalLink, ModulationAndCoding
from dekag.link.equalizer import unbiased_equalize

LINK = DigitalLink()


def payload_of(length: int, seed: int = 0) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return bytes(torch.randint(0, 256, (length,), generator=generator).tolist())


def q(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


def bit_error_rate(bits_per_symbol: int, link: LinkConditions, items: int, symbols: int) -> float:
    mapper, demapper = digital._constellation(bits_per_symbol)
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 2, (items, symbols * bits_per_symbol), generator=generator).float()
    equalized = unbiased_equalize(transmit(mapper(bits), [link] * items, range(items)))
    wrong = (demapper(equalized.symbols, equalized.no) > 0) != bits
    return float(wrong.float().mean())


@pytest.mark.parametrize("snr_db", [0.0, 4.0, 8.0])
def test_uncoded_4qam_on_awgn(snr_db: float) -> None:
    count = 400_000
    theory = q(math.sqrt(10 ** (snr_db / 10)))
    measured = bit_error_rate(2, LinkConditions(snr_db=snr_db, fading="awgn"), 4, count // 8)
    assert abs(measured - theory) < 4 * math.sqrt(theory * (1 - theory) / count)


@pytest.mark.parametrize("snr_db", [6.0, 12.0])
def test_uncoded_16qam_on_awgn(snr_db: float) -> None:
    count = 400_000
    argument = math.sqrt(10 ** (snr_db / 10) / 5)
    theory = (3 * q(argument) + 2 * q(3 * argument) - q(5 * argument)) / 4
    measured = bit_error_rate(4, LinkConditions(snr_db=snr_db, fading="awgn"), 4, count // 16)
    assert abs(measured - theory) < 4 * math.sqrt(theory * (1 - theory) / count)


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_uncoded_4qam_on_rayleigh(snr_db: float) -> None:
    items = 2000  # 8 nearly independent blocks each, one symbol a block
    per_bit = 10 ** (snr_db / 10) / 2
    theory = 0.5 * (1 - math.sqrt(per_bit / (1 + per_bit)))
    measured = bit_error_rate(2, LinkConditions(snr_db=snr_db, tau_rms_s=1e-4), items, 8)
    assert abs(measured - theory) < 4 * math.sqrt(theory * (1 - theory) / (items * 8 * 2)) * math.sqrt(2)


@pytest.mark.parametrize("coding", TABLE, ids=lambda c: f"{2**c.bits_per_symbol}qam-{c.efficiency:.2f}")
def test_round_trip_is_exact_and_as_long_as_the_rate_says(coding: ModulationAndCoding) -> None:
    payload = payload_of(1200)
    symbols = LINK.modulate(payload, coding)
    needed = (8 * 1200 + 24) / coding.efficiency
    assert symbols.shape == (1, LINK.channel_uses(1200, coding))
    assert symbols.dtype == torch.complex64
    assert needed <= symbols.shape[1] < needed * 1.01
    assert abs(symbols.abs().square().mean().item() - 1) < 0.05
    assert LINK.demodulate(received(symbols, []), coding, 1200) == payload
    noisy = transmit(symbols, [LinkConditions(snr_db=30, fading="awgn")], [1])
    assert LINK.demodulate(noisy, coding, 1200) == payload


@pytest.mark.parametrize("length", [1, 117, 118, 240, 2500])
def test_round_trip_of_other_lengths(length: int) -> None:
    payload = payload_of(length)
    for coding in (TABLE[3], TABLE[-1]):
        assert LINK.demodulate(received(LINK.modulate(payload, coding), []), coding, length) == payload


def test_power_does_not_depend_on_the_payload() -> None:
    for payload in (bytes(600), b"\xff" * 600):
        symbols = LINK.modulate(payload, TABLE[8])
        assert abs(symbols.abs().square().mean().item() - 1) < 0.1


def test_codewords_survive_a_lost_block() -> None:
    """One block in deep fade erases an eighth of every codeword, not one codeword."""
    payload = payload_of(1200)
    sent = transmit(LINK.modulate(payload, TABLE[2]), [LinkConditions(snr_db=12, fading="awgn")], [1])
    gains = sent.gains.clone()
    gains[0, 2] = 1e-3
    faded = Reception(sent.symbols * 1, gains, sent.no)
    lost = faded.symbol_gains.abs() < 0.5
    noise = torch.randn(int(lost.sum()), dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    faded.symbols[lost] = noise * sent.no.sqrt()
    assert LINK.demodulate(faded, TABLE[2], 1200) == payload


def test_cliff() -> None:
    """A decibel above the threshold it arrives, two below it is lost, and says so."""
    payload = payload_of(600)
    for coding, threshold in list(zip(TABLE, digital._thresholds("awgn", 0.0), strict=True))[2::3]:
        symbols = LINK.modulate(payload, coding)
        above = transmit(symbols, [LinkConditions(snr_db=threshold + 1, fading="awgn")], [1])
        assert LINK.demodulate(above, coding, 600) == payload
        below = transmit(symbols, [LinkConditions(snr_db=threshold - 2, fading="awgn")], [1])
        with pytest.raises(DecodingError, match="CRC"):
            LINK.demodulate(below, coding, 600)


def test_sending_and_receiving_are_deterministic() -> None:
    payload = payload_of(300)
    first, second = (LINK.modulate(payload, TABLE[4]) for _ in range(2))
    assert torch.equal(first, second)
    digital._interleaver.cache_clear()
    assert torch.equal(first, LINK.modulate(payload, TABLE[4]))


@pytest.mark.parametrize("fading", ["awgn", "rayleigh"])
@pytest.mark.parametrize("tau_rms_s", [0.0, 7e-8, 1e-4])
def test_choice_rises_with_snr(fading: str, tau_rms_s: float) -> None:
    chosen = [
        LINK.choose(
            LinkConditions.model_validate({"snr_db": snr_db, "fading": fading, "tau_rms_s": tau_rms_s})
        ).efficiency
        for snr_db in range(-20, 41)
    ]
    assert chosen == sorted(chosen)
    assert chosen[0] == TABLE[0].efficiency
    assert chosen[-1] > TABLE[5].efficiency


def test_fading_and_flatness_make_the_choice_more_careful() -> None:
    def efficiency(fading: str, tau_rms_s: float, snr_db: float) -> float:
        link = {"snr_db": snr_db, "fading": fading, "tau_rms_s": tau_rms_s}
        return LINK.choose(LinkConditions.model_validate(link)).efficiency

    for snr_db in (6.0, 15.0, 22.0):
        awgn, selective, flat = (
            efficiency(fading, tau, snr_db)
            for fading, tau in (("awgn", 0.0), ("rayleigh", 1e-6), ("rayleigh", 0.0))
        )
        assert awgn > selective > flat


def test_table_is_the_calibrated_one_and_obeys_shannon() -> None:
    rows = digital._calibration()["rows"]
    assert [ModulationAndCoding(*list(row.values())[:3]) for row in rows] == list(TABLE)
    awgn = digital._thresholds("awgn", 0.0)
    assert awgn == sorted(awgn)
    for coding, threshold in zip(TABLE, awgn, strict=True):
        gap_db = threshold - 10 * math.log10(2**coding.efficiency - 1)
        assert 0.3 < gap_db < 4
    for row in rows:
        # Rates near 1 cannot spare a block, so a little selectivity hurts them before diversity helps.
        assert row["rayleigh_db"][-1] < row["rayleigh_db"][0]
        # Outage of flat Rayleigh fading: P(|h|^2 < -ln 0.9) = 10 %, 9.77 dB below the mean.
        assert abs(row["rayleigh_db"][0] - row["awgn_db"] - 9.77) < 0.3


def test_mutual_information_is_that_of_bpsk() -> None:
    """At 0 dB each bit of 4-QAM is BPSK whose amplitude is the noise's deviation: 0.486 bit."""
    grid, information = mutual_information_curve(2, seed=1)
    assert information[0] < 0.01
    assert information[-1] > 0.999
    assert abs(np.interp(0.0, grid, information) - 0.486) < 0.01


def test_validation_names_field_and_range() -> None:
    coding = TABLE[0]
    with pytest.raises(InvalidInputError, match="payload_bytes must be between 1 and 65536"):
        LINK.modulate(b"", coding)
    with pytest.raises(InvalidInputError, match="payload_bytes"):
        LINK.channel_uses(65537, coding)
    with pytest.raises(InvalidInputError, match="coding"):
        LINK.modulate(b"x", ModulationAndCoding(2, 4000, 1920))
    with pytest.raises(InvalidInputError, match="symbols"):
        LINK.demodulate(received(torch.zeros(1, 10, dtype=torch.complex64), []), coding, 100)
