"""The conventional link: uncoded error rates against theory, the coded chain, and its cliff."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link import digital, outage
from dekag.link.calibrate import GRID_DB, mutual_information, threshold_db
from dekag.link.capacity import bytes_within, ergodic_capacity, outage_capacity
from dekag.link.channel import Reception, compose_hops, transmit
from dekag.link.conditions import LinkConditions
from dekag.link.digital import TABLE, DecodingError, DigitalLink, ModulationAndCoding
from dekag.link.equalizer import unbiased_equalize
from dekag.link.harq import send_with_harq, slot_seed
from dekag.link.mcs import SIZES, CodewordLayout, largest_payload

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
    payload = payload_of(500)
    symbols = LINK.modulate(payload, coding)
    needed = (8 * 500 + 24) / coding.efficiency
    assert symbols.shape == (1, LINK.channel_uses(500, coding))
    assert symbols.dtype == torch.complex64
    assert needed <= symbols.shape[1] < needed * 1.01
    assert abs(symbols.abs().square().mean().item() - 1) < 0.1
    assert LINK.demodulate(compose_hops(symbols, []), coding, 500) == payload
    noisy = transmit(symbols, [LinkConditions(snr_db=30, fading="awgn")], [1])
    assert LINK.demodulate(noisy, coding, 500) == payload


@pytest.mark.parametrize("length", [1, 2, 7, 33, 117, 118, 237, 238, 478, 479, 2500])
def test_round_trip_of_other_lengths(length: int) -> None:
    payload = payload_of(length)
    for coding in (TABLE[0], TABLE[3], TABLE[-1]):
        if length > 500 and coding is TABLE[0]:
            continue
        assert LINK.demodulate(compose_hops(LINK.modulate(payload, coding), []), coding, length) == payload


def test_power_does_not_depend_on_the_payload() -> None:
    for payload in (bytes(600), b"\xff" * 600):
        symbols = LINK.modulate(payload, TABLE[11])
        assert abs(symbols.abs().square().mean().item() - 1) < 0.1


def test_codewords_survive_a_lost_block() -> None:
    """One block in deep fade erases an eighth of every codeword, not one codeword."""
    payload = payload_of(1200)
    sent = transmit(LINK.modulate(payload, TABLE[4]), [LinkConditions(snr_db=12, fading="awgn")], [1])
    gains = sent.gains.clone()
    gains[0, 2] = 1e-3
    faded = Reception(sent.symbols * 1, gains, sent.no)
    lost = faded.symbol_gains.abs() < 0.5
    noise = torch.randn(int(lost.sum()), dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    faded.symbols[lost] = noise * sent.no.sqrt()
    assert LINK.demodulate(faded, TABLE[4], 1200) == payload


def test_decoding_works_above_the_threshold_and_fails_below() -> None:
    """A decibel above the threshold it arrives, two below it is lost, and says so."""
    payload = payload_of(600)
    for coding in TABLE[4::5]:
        threshold = threshold_db(coding, 600, LinkConditions(fading="awgn"))
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


@pytest.mark.parametrize(("fading", "tau_rms_s"), [("awgn", 0.0), ("rayleigh", 0.0), ("rayleigh", 1e-6)])
def test_choice_rises_with_snr(fading: str, tau_rms_s: float) -> None:
    def efficiency(snr_db: float) -> float:
        link = {"snr_db": snr_db, "fading": fading, "tau_rms_s": tau_rms_s}
        return LINK.choose(LinkConditions.model_validate(link), 900).efficiency

    chosen = [efficiency(snr_db) for snr_db in range(-20, 41, 4)]
    assert chosen == sorted(chosen)
    assert chosen[0] == TABLE[0].efficiency
    assert chosen[-1] == TABLE[-1].efficiency


def test_fading_and_flatness_make_the_choice_more_careful() -> None:
    def efficiency(fading: str, tau_rms_s: float, snr_db: float) -> float:
        link = {"snr_db": snr_db, "fading": fading, "tau_rms_s": tau_rms_s}
        return LINK.choose(LinkConditions.model_validate(link), 900).efficiency

    for snr_db in (6.0, 15.0, 22.0):
        awgn, selective, flat = (
            efficiency(fading, tau, snr_db)
            for fading, tau in (("awgn", 0.0), ("rayleigh", 1e-6), ("rayleigh", 0.0))
        )
        assert awgn > selective > flat


def test_sender_adapts_to_what_it_was_told() -> None:
    told = LinkConditions(snr_db=0, fading="awgn", reported_snr_db=20)
    assert LINK.choose(told, 900) == LINK.choose(LinkConditions(snr_db=20, fading="awgn"), 900)


def test_table_is_the_calibrated_one_and_obeys_shannon() -> None:
    rows = outage.calibration()["rows"]
    assert [ModulationAndCoding(*list(row.values())[:3]) for row in rows] == list(TABLE)
    assert [coding.efficiency for coding in TABLE] == sorted(coding.efficiency for coding in TABLE)
    for coding in TABLE:
        gap_db = outage.codeword_threshold(coding, 1900).mean_db - 10 * math.log10(2**coding.efficiency - 1)
        assert 0.3 < gap_db < 2.6


def test_flat_rayleigh_costs_what_theory_says() -> None:
    """A share of 10 % of flat Rayleigh slots is 9.77 dB or more below the mean."""
    coding = TABLE[5]
    awgn = threshold_db(coding, 200, LinkConditions(fading="awgn"))
    flat = threshold_db(coding, 200, LinkConditions(fading="rayleigh", tau_rms_s=0.0))
    assert abs(flat - awgn - 9.77) < 0.8


def test_payloads_take_the_next_longer_code_and_fill_it() -> None:
    for coding in (TABLE[0], TABLE[9], TABLE[-1]):
        for length in range(1, 600):
            layout = CodewordLayout.of(length, coding)
            assert layout.size in SIZES
            assert 0.83 * layout.size < layout.used_bits <= layout.size
            assert layout.codewords * layout.used_bits >= 8 * length + layout.crc_bits


@pytest.mark.parametrize("channel_uses", [1, 40, 64, 512, 5000])
def test_largest_payload_fits_and_one_byte_more_does_not(channel_uses: int) -> None:
    for coding in TABLE:
        most = largest_payload(channel_uses, coding)
        assert not most or CodewordLayout.of(most, coding).channel_uses <= channel_uses
        assert CodewordLayout.of(most + 1, coding).channel_uses > channel_uses


def test_mutual_information_is_that_of_bpsk() -> None:
    """At 0 dB each bit of 4-QAM is BPSK whose amplitude is the noise's deviation: 0.486 bit."""
    information = mutual_information(2, seed=1, symbols=5000)
    assert information[0] < 0.01
    assert information[-1] > 0.999
    assert abs(np.interp(0.0, GRID_DB, information) - 0.486) < 0.015


@pytest.mark.parametrize(
    ("row", "length", "conditions"),
    [
        (7, 30, {"fading": "rayleigh", "tau_rms_s": 1e-6, "snr_db": 8.0}),
        (3, 30, {"fading": "rayleigh-magnitude", "csi": "none", "snr_db": 0.7}),
        (2, 237, {"fading": "tdl-a", "csi": "pilots", "snr_db": -1.5}),  # 4,780 symbols, each with its gain
    ],
)
def test_predicted_losses_are_met(row: int, length: int, conditions: dict[str, object]) -> None:
    """Really decoded at a predicted loss of a half: within 3.5 deviations of a binomial."""
    coding, count = TABLE[row], 60
    link = LinkConditions.model_validate(conditions)
    expected = outage.loss_probability(coding, length, link)
    assert 0.2 < expected < 0.8
    payload = payload_of(length)
    lost = sum(
        send_with_harq(payload, coding, link, seed, max_transmissions=1).payload is None
        for seed in range(count)
    )
    assert abs(lost - count * expected) < 3.5 * math.sqrt(count * expected * (1 - expected))


def test_long_payloads_average_over_fades_of_their_own_for_each_symbol() -> None:
    """2,868 symbols meet the mean of all fades; 64 would not, and a quarter of such slots would lose them."""
    coding, link = TABLE[3], LinkConditions(fading="rayleigh-magnitude", snr_db=-0.2)
    layout = CodewordLayout.of(237, coding)
    few = outage.success(coding, layout, outage.slot_snrs_db(coding.bits_per_symbol, link, channel_uses=64))
    assert 1 - few.mean() > 0.2
    assert outage.loss_probability(coding, 237, link) < 0.1
    payload = payload_of(237)
    lost = sum(
        send_with_harq(payload, coding, link, seed, max_transmissions=1).payload is None for seed in range(20)
    )
    assert lost <= 2


def test_real_gains_without_csi_carry_qpsk_alone() -> None:
    """Their phase is intact, so that QPSK decides as with CSI; points of larger constellations move."""

    def chosen(fading: str, csi: str, snr_db: float) -> ModulationAndCoding:
        link = LinkConditions.model_validate({"fading": fading, "csi": csi, "snr_db": snr_db})
        return LINK.choose(link, 237)

    strong = chosen("rayleigh-magnitude", "none", 30.0)
    assert (strong.bits_per_symbol, strong.rate) == (2, Fraction(2, 3))
    assert chosen("rayleigh-magnitude", "perfect", 30.0).bits_per_symbol > 4
    assert chosen("rayleigh", "none", 30.0) == TABLE[0]  # half of the bits are wrong with any of them
    efficiencies = [chosen("rayleigh-magnitude", "none", snr_db).efficiency for snr_db in range(-20, 41, 10)]
    assert efficiencies == sorted(efficiencies)
    payload = payload_of(237)
    link = LinkConditions(fading="rayleigh-magnitude", csi="none", snr_db=30.0)
    for coding, arrives in ((strong, True), (TABLE[7], False)):
        sent = [send_with_harq(payload, coding, link, seed, max_transmissions=1) for seed in range(4)]
        assert [each.payload is not None for each in sent] == [arrives] * 4


def test_two_receptions_of_real_gains_are_one_with_their_mean() -> None:
    """Soft bits of two slots are added, also without CSI: a little better than one slot of twice the SNR."""
    link = LinkConditions(fading="rayleigh-magnitude", csi="none", snr_db=0.0)
    once, twice = (
        outage.slot_snrs_db(2, link, channel_uses=512, transmissions=count).mean() for count in (1, 2)
    )
    louder = outage.slot_snrs_db(2, link.model_copy(update={"snr_db": 3.01}), channel_uses=512).mean()
    assert once < louder < twice < louder + 1  # means of two gains vary less than one


def test_chase_combining_gains_what_it_repeats() -> None:
    """Two transmissions are one at twice the SNR: 2 dB below the threshold the second one saves it."""
    coding = TABLE[7]
    threshold = threshold_db(coding, 60, LinkConditions(fading="awgn"))
    payload, link = payload_of(60), LinkConditions(snr_db=threshold - 2.0, fading="awgn")
    for seed in range(4):
        once = send_with_harq(payload, coding, link, seed, max_transmissions=1)
        assert (once.payload, once.transmissions) == (None, 1)
        twice = send_with_harq(payload, coding, link, seed)
        assert (twice.payload, twice.transmissions) == (payload, 2)
        assert twice.channel_uses == 2 * once.channel_uses == 2 * LINK.channel_uses(60, coding)


def test_harq_gives_up_and_counts_what_it_spent() -> None:
    spent = send_with_harq(payload_of(20), TABLE[-1], LinkConditions(snr_db=-10, fading="awgn"), 1)
    assert (spent.payload, spent.transmissions) == (None, 4)
    assert spent.channel_uses == 4 * LINK.channel_uses(20, TABLE[-1])


def test_harq_meets_another_fade_each_time() -> None:
    assert len({slot_seed(7, attempt) for attempt in range(4)} | {slot_seed(8, 1)}) == 5
    assert slot_seed(7, 0) == 7


def test_capacities_are_the_known_ones() -> None:
    flat = LinkConditions(snr_db=10, tau_rms_s=0.0)
    # e^(1/SNR) E1(1/SNR) / ln 2 and log2(1 - SNR ln 0.9), for Rayleigh fading at 10 dB
    assert ergodic_capacity(flat, channel_uses=64) == pytest.approx(2.9067, abs=0.2)
    assert outage_capacity(flat, channel_uses=64) == pytest.approx(math.log2(1 - 10 * math.log(0.9)), abs=0.2)
    still = LinkConditions(snr_db=10, fading="awgn")
    assert ergodic_capacity(still, channel_uses=64) == pytest.approx(math.log2(11))
    assert bytes_within(512, 1.0) == 64


def test_validation_names_field_and_range() -> None:
    coding = TABLE[0]
    with pytest.raises(InvalidInputError, match="payload_bytes must be between 1 and 1048576"):
        LINK.modulate(b"", coding)
    with pytest.raises(InvalidInputError, match="payload_bytes"):
        LINK.channel_uses(2**20 + 1, coding)
    with pytest.raises(InvalidInputError, match="coding"):
        LINK.modulate(b"x", ModulationAndCoding(2, 4000, 1920))
    with pytest.raises(InvalidInputError, match="symbols"):
        LINK.demodulate(compose_hops(torch.zeros(1, 10, dtype=torch.complex64), []), coding, 100)
