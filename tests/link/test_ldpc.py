"""The LDPC decoder against Sionna's: the same bits for the same soft bits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from dekag.errors import NumericalError
from dekag.link import ldpc
from dekag.link.calibrate import threshold_db
from dekag.link.channel import Reception, transmit
from dekag.link.conditions import LinkConditions
from dekag.link.digital import (
    ITERATIONS,
    TABLE,
    DecodingError,
    DigitalLink,
    _constellation,
    code_of,
    information_bits,
    whole_codewords,
)
from dekag.link.harq import slot_seed
from dekag.link.mcs import CodewordLayout, ModulationAndCoding
from dekag.link.sionna_blocks import Demapper, LDPC5GDecoder
from dekag.pipeline import DigitalReceiver

LINK = DigitalLink()
CODES = ((34, 170, -6.3), (240, 720, -4.4), (404, 606, 0.0), (1920, 3200, -1.0), (960, 1080, 3.0))
"""k, n and an Es/N0 of BPSK, dB, at which some codewords are lost; both base graphs."""


def received(k: int, n: int, snr_db: float, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Information bits, and soft bits of their codewords sent as BPSK over AWGN."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, k), generator=generator).float()
    coded, _ = code_of(k, n)
    deviation = math.sqrt(0.5 * 10 ** (-snr_db / 10))
    symbols = 2 * coded(bits) - 1 + deviation * torch.randn(count, n, generator=generator)
    return bits, 2 * symbols / deviation**2


def decode(
    decoder: ldpc.LdpcDecoder, soft_bits: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits, and which codewords are valid, after all iterations."""
    *_, last = decoder.decode(soft_bits, iterations, step=1)
    return last


def sionna(k: int, n: int, soft_bits: torch.Tensor, iterations: int) -> torch.Tensor:
    encoder, _ = code_of(k, n)
    decoder = LDPC5GDecoder(encoder, num_iter=iterations, device="cpu", precision="single")
    bits: torch.Tensor = decoder(soft_bits).to(torch.uint8)
    return bits


@pytest.mark.parametrize(("k", "n", "snr_db"), CODES)
def test_bits_are_those_of_sionna_after_each_number_of_iterations(k: int, n: int, snr_db: float) -> None:
    _, soft_bits = received(k, n, snr_db, 20)
    _, decoder = code_of(k, n)
    for iterations in (2, 5, 12):  # after the first, bits that are not sent are mere rounding
        bits, valid = decode(decoder, soft_bits, iterations)
        theirs = sionna(k, n, soft_bits, iterations)
        assert torch.equal(bits[valid], theirs[valid])
        assert (bits != theirs).float().mean() < 1e-4  # an undecided bit may be rounded otherwise


@pytest.mark.parametrize(("k", "n", "snr_db"), CODES)
def test_a_codeword_that_leaves_early_has_the_bits_of_all_iterations(k: int, n: int, snr_db: float) -> None:
    sent, soft_bits = received(k, n, snr_db, 40)
    _, decoder = code_of(k, n)
    bits, valid = decode(decoder, soft_bits, ITERATIONS)
    early, valid_early = decode(decoder, soft_bits, 25)
    assert 0 < valid_early.sum() <= valid.sum() < 40, "some are decoded early and some are lost"
    assert torch.equal(early[valid_early], bits[valid_early])
    theirs = sionna(k, n, soft_bits, ITERATIONS)
    assert torch.equal(bits[valid], theirs[valid])
    right = (theirs == sent).all(1)
    assert torch.equal((bits == sent).all(1), right)


def test_valid_are_those_whose_codeword_fulfils_the_checks() -> None:
    k, n, snr_db = CODES[1]
    sent, soft_bits = received(k, n, snr_db, 40)
    encoder, decoder = code_of(k, n)
    bits, valid = decode(decoder, soft_bits, ITERATIONS)
    assert (bits[valid] == sent[valid]).all(), "wrong bits that fulfil all checks are far rarer than this"
    again, valid_again = decode(decoder, 20 * (2 * encoder(bits.float()) - 1), 1)
    assert valid_again.all()
    assert torch.equal(again, bits)
    flipped = 20 * (2 * encoder(sent[:1]) - 1)
    flipped[:, ::3] *= -1
    assert not decode(decoder, flipped, ITERATIONS)[1].any()


@pytest.mark.parametrize(("k", "n", "snr_db"), CODES)
def test_codewords_together_are_those_one_by_one(k: int, n: int, snr_db: float) -> None:
    count = 2 * ldpc._BATCH + 3
    _, soft_bits = received(k, n, snr_db, count, seed=2)
    _, decoder = code_of(k, n)
    bits, valid = decode(decoder, soft_bits, ITERATIONS)
    for index in range(0, count, 5):
        alone, valid_alone = decode(decoder, soft_bits[index : index + 1], ITERATIONS)
        assert valid_alone.item() == valid[index].item()
        assert not valid_alone or torch.equal(alone[0], bits[index])
    backwards, _ = decode(decoder, soft_bits.flip(0), ITERATIONS)
    assert torch.equal(backwards.flip(0)[valid], bits[valid])


def test_erased_bits_are_recovered_as_by_sionna() -> None:
    """Soft bits of exactly 0 can be divided out of a product of messages."""
    k, n = 404, 1010
    sent, _ = received(k, n, 0.0, 20)
    encoder, decoder = code_of(k, n)
    soft_bits = 6 * (2 * encoder(sent) - 1)
    generator = torch.Generator().manual_seed(5)
    soft_bits[torch.rand(soft_bits.shape, generator=generator) < 0.5] = 0
    bits, valid = decode(decoder, soft_bits, ITERATIONS)
    assert valid.float().mean() > 0.5
    assert torch.equal(bits[valid], sent[valid].to(torch.uint8))
    assert torch.equal((bits == sent).all(1), (sionna(k, n, soft_bits, ITERATIONS) == sent).all(1))


def test_soft_bits_without_limit_are_certain_bits() -> None:
    sent, _ = received(240, 720, 0.0, 4)
    encoder, decoder = code_of(240, 720)
    bits, valid = decode(decoder, (2 * encoder(sent) - 1) * math.inf, ITERATIONS)
    assert valid.all()
    assert torch.equal(bits.float(), sent)


def test_soft_bits_that_say_nothing_are_not_a_codeword() -> None:
    _, decoder = code_of(240, 720)
    _, valid = decode(decoder, torch.zeros(3, 720), ITERATIONS)
    assert not valid.any()
    with pytest.raises(DecodingError, match="CRC of 60 bytes"):
        LINK.decode(torch.zeros(1, CodewordLayout.of(60, TABLE[3]).sent_bits), TABLE[3], 60)


@pytest.mark.parametrize("bits_per_symbol", [2, 4, 6, 8])
def test_demapping_is_that_of_sionna(bits_per_symbol: int) -> None:
    generator = torch.Generator().manual_seed(bits_per_symbol)
    mapper, demapper = _constellation(bits_per_symbol)
    sent = mapper(torch.randint(0, 2, (2, 500 * bits_per_symbol), generator=generator).float())
    no = 10 ** (-4 * torch.rand(sent.shape, generator=generator))
    noise = torch.randn(sent.shape, dtype=torch.complex64, generator=generator) * no.sqrt()
    theirs: Any = Demapper("app", "qam", bits_per_symbol, device="cpu", precision="single")(sent + noise, no)
    torch.testing.assert_close(demapper(sent + noise, no), theirs, rtol=1e-4, atol=1e-4)


def sionna_payload_bits(soft_bits: torch.Tensor, coding: ModulationAndCoding, length: int) -> torch.Tensor:
    layout = CodewordLayout.of(length, coding)
    decoded = sionna(layout.size, layout.mother_bits, whole_codewords(soft_bits, layout), ITERATIONS)
    return decoded[:, : layout.used_bits].flatten()[: 8 * length]


@pytest.mark.parametrize(
    ("coding", "length"), [(TABLE[0], 30), (TABLE[2], 100), (TABLE[6], 300), (TABLE[12], 3), (TABLE[19], 500)]
)
def test_payloads_arrive_if_they_do_with_sionna(coding: ModulationAndCoding, length: int) -> None:
    """Punctured, shortened and repeated bits, near the threshold; over two slots too, as HARQ adds them."""
    payload = bytes(torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(1)).tolist())
    sent_bits = torch.tensor([int(bit) for byte in payload for bit in f"{byte:08b}"], dtype=torch.uint8)
    symbols = LINK.modulate(payload, coding)
    threshold = threshold_db(coding, length, LinkConditions(fading="awgn"))
    arrived = []
    for (offset, slots), seed in itertools.product(((-0.4, 1), (0.1, 1), (-3.2, 2)), range(2)):
        link = LinkConditions(snr_db=threshold + offset, fading="awgn")
        receptions = [transmit(symbols, [link], [slot_seed(seed, slot)]) for slot in range(slots)]
        soft_bits = sum((LINK.soft_bits(each, coding, length) for each in receptions), torch.zeros(()))
        right = torch.equal(sionna_payload_bits(soft_bits, coding, length), sent_bits)
        arrived.append(right)
        if right:
            assert LINK.decode(soft_bits, coding, length) == payload
        else:
            with pytest.raises(DecodingError):
                LINK.decode(soft_bits, coding, length)
    assert any(arrived)


def test_bits_that_are_right_before_all_checks_are_fulfilled_are_taken() -> None:
    """Of very short codewords, information bits may be right for a while and parity bits never."""
    coding, length, count, step = TABLE[3], 4, 200, 5
    layout, link = CodewordLayout.of(length, coding), LinkConditions(snr_db=-1.58, fading="awgn")
    payloads = torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(1)).tolist()
    sent = torch.cat([information_bits(bytes(each), layout) for each in payloads])
    receptions = [
        transmit(LINK.modulate(bytes(each), coding), [link], [seed]) for seed, each in enumerate(payloads)
    ]
    soft_bits = torch.cat([LINK.soft_bits(each, coding, length) for each in receptions])
    codewords = whole_codewords(soft_bits, layout)
    encoder, decoder = code_of(layout.size, layout.mother_bits)
    bits_after = [bits for bits, _ in decoder.decode(codewords, ITERATIONS, step=step)]
    right = torch.stack([(bits[:, : sent.shape[1]] == sent).all(1) for bits in bits_after])
    theirs = LDPC5GDecoder(encoder, num_iter=step, return_state=True, device="cpu", precision="single")
    state, their_right = None, torch.zeros(count, dtype=torch.bool)
    for _ in range(ITERATIONS // step):
        bits, state = theirs(codewords, msg_v2c=state)
        their_right |= (bits[:, : sent.shape[1]] == sent).all(1)
    for_a_while = right.any(0) & ~right[-1]
    assert for_a_while.any()
    assert not (their_right & ~right.any(0)).any()
    for index in for_a_while.nonzero().flatten().tolist():
        assert LINK.decode(soft_bits[index : index + 1], coding, length) == bytes(payloads[index])


def test_a_reception_that_is_not_finite_is_no_payload() -> None:
    coding, length = TABLE[5], 60
    symbols = LINK.modulate(bytes(length), coding)
    gains, no = torch.ones(1, 1, dtype=torch.complex64), torch.full((1,), 0.1)
    for value in (math.nan, math.inf, -math.inf):
        broken = symbols.clone()
        broken[0, 7] = value
        with pytest.raises(NumericalError):
            DigitalReceiver().decode(Reception(broken, gains, no), coding, length, seed=1)


def test_soft_bits_that_are_not_numbers_are_no_payload() -> None:
    coding, length = TABLE[5], 60
    gains, no = torch.ones(1, 1, dtype=torch.complex64), torch.full((1,), 0.1)
    soft_bits = LINK.soft_bits(Reception(LINK.modulate(bytes(length), coding), gains, no), coding, length)
    assert LINK.decode(soft_bits, coding, length) == bytes(length)
    soft_bits[:] = math.nan
    with pytest.raises(DecodingError, match="not numbers"):
        LINK.decode(soft_bits, coding, length)
