"""The conventional baseline: bytes -> CRC -> 5G LDPC -> interleaving -> QAM, and back.

The sender does the following:

1. Append the CRC of 5G to the payload: CRC16 up to 3824 bits, else CRC24A. 2. Split it into the fewest equal
parts of at most 1920 bits. Each is LDPC-encoded with the next longer code of
   `mcs.SIZES`; unused information bits are known zeros that are not sent, and parity bits are punctured in
   proportion, so that the rate is k/n for every payload length. Below rate 1/5, coded bits are repeated.
3. Scramble and interleave all coded bits together, so that every codeword is spread over all fading blocks
   and constellation points are equally likely for every payload.
4. Map them to Gray-coded QAM points of mean power 1 (over the constellation).

The receiver equalises, demaps with the noise variance of every symbol, and runs belief propagation on each
codeword until it fulfils all parity checks, for at most 50 iterations. It tests the CRC after every fifth
iteration. If it never matches, the payload is lost.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from dekag.errors import DekagError, InvalidInputError
from dekag.link.channel import Reception
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import unbiased_equalize
from dekag.link.ldpc import LLR_LIMIT, LdpcDecoder
from dekag.link.mcs import TABLE, CodewordLayout, ModulationAndCoding

__all__ = ["TABLE", "DecodingError", "DigitalLink", "ModulationAndCoding", "warm_up"]

ITERATIONS = 50

_MIN_NO = 1e-6  # an ideal reception has no noise, and no finite likelihood ratio
_SEED = 38212  # seed of interleaver and scrambler, known to both sides
_TYPICAL_BYTES = 2500  # a WebP of the sticker world


class DecodingError(DekagError):
    """The CRC does not match after decoding: the payload is lost."""


class DigitalLink:
    """Conventional transmission of bytes. Stateless and thread-safe."""

    def choose(
        self, conditions: LinkConditions, payload_bytes: int, *, outage: float = 0.1
    ) -> ModulationAndCoding:
        """The most efficient scheme with an expected loss of at most `outage` for such payloads.

        The sender knows the conditions, at the last reported SNR, but not the fades of the slot. If no scheme
        is that reliable, the one with the smallest loss is used, and decoding often fails. Losses are
        predicted by `dekag.link.outage` from the measurements of `dekag.link.calibrate`.
        """
        from dekag.link.outage import loss_probability

        losses = {row: loss_probability(row, payload_bytes, conditions) for row in TABLE}
        safe = [row for row, loss in losses.items() if loss <= outage]
        return safe[-1] if safe else min(TABLE, key=lambda row: losses[row])

    def channel_uses(self, payload_bytes: int, coding: ModulationAndCoding) -> int:
        """K, the number of complex symbols for `payload_bytes` bytes."""
        return CodewordLayout.of(payload_bytes, coding).channel_uses

    def modulate(self, payload: bytes, coding: ModulationAndCoding) -> torch.Tensor:
        """Symbols (1, K) complex64 of mean power 1 for 1 to 2**20 bytes.

        Raises:
            InvalidInputError: the length is out of range, or the coding is not in TABLE.
        """
        layout = CodewordLayout.of(len(payload), coding)
        blocks = torch.zeros(layout.codewords, layout.size)
        blocks[:, : layout.used_bits] = information_bits(payload, layout)
        encoder, _ = code_of(layout.size, layout.mother_bits)
        coded = encoder(blocks)[:, _sent_bits(layout)].flatten()
        order, mask = _interleaver(layout.channel_uses * coding.bits_per_symbol)
        padded = torch.zeros(order.numel())
        padded[: coded.numel()] = coded
        mapper, _ = _constellation(coding.bits_per_symbol)
        symbols: torch.Tensor = mapper((padded[order] + mask) % 2)[None]
        return symbols

    def demodulate(self, reception: Reception, coding: ModulationAndCoding, payload_bytes: int) -> bytes:
        """The payload of a reception of one item.

        Args:
            reception: B = 1, K = `channel_uses(payload_bytes, coding)`.
            coding: as chosen by the sender.
            payload_bytes: length of the payload.

        Raises:
            DecodingError: the CRC does not match.
            InvalidInputError: K, coding and length do not fit together.
        """
        return self.decode(self.soft_bits(reception, coding, payload_bytes), coding, payload_bytes)

    def soft_bits(
        self, reception: Reception, coding: ModulationAndCoding, payload_bytes: int
    ) -> torch.Tensor:
        """log p(1)/p(0) of the coded bits (codewords, sent bits) in the encoder's order; see `demodulate`."""
        layout = CodewordLayout.of(payload_bytes, coding)
        if reception.symbols.shape != (1, layout.channel_uses):
            allowed = f"(1, {layout.channel_uses}) for {payload_bytes} bytes with this coding"
            raise InvalidInputError("symbols", allowed, tuple(reception.symbols.shape))
        equalized = unbiased_equalize(reception)
        _, demapper = _constellation(coding.bits_per_symbol)
        order, mask = _interleaver(layout.channel_uses * coding.bits_per_symbol)
        llrs = torch.empty(order.numel())
        llrs[order] = demapper(equalized.symbols, equalized.no.clamp_min(_MIN_NO))[0] * (1 - 2 * mask)
        return llrs[: layout.codewords * layout.sent_bits].view(layout.codewords, -1)

    def decode(self, soft_bits: torch.Tensor, coding: ModulationAndCoding, payload_bytes: int) -> bytes:
        """The payload in soft bits, of one transmission or summed over several of the same payload.

        Raises:
            DecodingError: the CRC does not match.
        """
        layout = CodewordLayout.of(payload_bytes, coding)
        if soft_bits.isnan().any():  # each would be decided as 0, and a payload of zeros has the CRC 0
            raise DecodingError(f"the soft bits of {payload_bytes} bytes are not numbers")
        _, decoder = code_of(layout.size, layout.mother_bits)
        for decoded, _ in decoder.decode(whole_codewords(soft_bits, layout), ITERATIONS):
            bits = decoded[:, : layout.used_bits].flatten()
            payload, crc = bits[: 8 * payload_bytes], bits[8 * payload_bytes :][: layout.crc_bits]
            if torch.equal(_crc(payload.float(), layout.crc), crc.float()):
                return np.packbits(payload.numpy()).tobytes()
        raise DecodingError(f"the CRC of {payload_bytes} bytes does not match after LDPC decoding")


def warm_up() -> None:
    """Imports Sionna and sets up shared objects, so that the first delivery need not wait for them.

    Codes are set up on first use, which takes some hundredths of a second each.
    """
    link, coding = DigitalLink(), TABLE[len(TABLE) // 2]
    link.choose(LinkConditions(), _TYPICAL_BYTES)
    symbols = link.modulate(bytes(_TYPICAL_BYTES), coding)
    gains = torch.ones(1, 1, dtype=torch.complex64)
    link.demodulate(Reception(symbols, gains, torch.zeros(1)), coding, _TYPICAL_BYTES)


def _sent_bits(layout: CodewordLayout) -> torch.Tensor:
    """(sent_bits,) int64: positions of the sent bits within n; the others are known zeros or punctured."""
    encoder, _ = code_of(layout.size, layout.mother_bits)
    systematic = torch.arange(layout.used_bits - 2 * encoder.z)
    parity = torch.arange(layout.size - 2 * encoder.z, layout.mother_bits)
    whole = torch.cat([systematic, parity])
    return whole.repeat(-(-layout.sent_bits // whole.numel()))[: layout.sent_bits]


def information_bits(payload: bytes, layout: CodewordLayout) -> torch.Tensor:
    """(codewords, used bits) float32: payload and CRC, filled up with zeros."""
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(payload, np.uint8))).float()
    information = torch.zeros(layout.codewords * layout.used_bits)
    information[: bits.numel()] = bits
    information[bits.numel() : bits.numel() + layout.crc_bits] = _crc(bits, layout.crc)
    return information.view(layout.codewords, layout.used_bits)


def whole_codewords(soft_bits: torch.Tensor, layout: CodewordLayout) -> torch.Tensor:
    """(codewords, n) soft bits of the whole code: repeated ones are added, and unused ones known to be 0."""
    codewords = torch.zeros(len(soft_bits), layout.mother_bits)
    codewords.index_add_(1, _sent_bits(layout), soft_bits)
    encoder, _ = code_of(layout.size, layout.mother_bits)
    unsent = 2 * encoder.z
    codewords[:, layout.used_bits - unsent : layout.size - unsent] = -LLR_LIMIT
    return codewords


@lru_cache(maxsize=128)
def code_of(k: int, n: int) -> tuple[Any, LdpcDecoder]:
    """Sionna's encoder of k information bits into n, and the decoder."""
    from dekag.link.sionna_blocks import LDPC5GEncoder

    encoder = LDPC5GEncoder(k, n, device="cpu", precision="single", check_input=False)
    return encoder, LdpcDecoder(encoder)


@cache
def _constellation(bits_per_symbol: int) -> tuple[Any, _Demapper]:
    from dekag.link.sionna_blocks import Mapper

    return Mapper("qam", bits_per_symbol, device="cpu", precision="single"), _Demapper(bits_per_symbol)


class _Demapper:
    """Sionna's `Demapper("app", "qam")`, with the real and the imaginary parts demapped separately.

    In 5G's QAM (TS 38.211, section 5.1) every second bit decides the real part, and the others the imaginary
    part, so that 2 * sqrt(M) distances give the same soft bits as M do.
    """

    def __init__(self, bits_per_symbol: int) -> None:
        from dekag.link.sionna_blocks import SymbolLogits2LLRs, pam

        self._levels = torch.from_numpy(pam(bits_per_symbol // 2, precision="single").real) / math.sqrt(2)
        self._soft_bits = SymbolLogits2LLRs("app", bits_per_symbol // 2, device="cpu", precision="single")

    def __call__(self, symbols: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        """log p(1)/p(0) (..., K * bits) of symbols (..., K) with noise of power `no` (..., K)."""
        distances = torch.view_as_real(symbols)[..., None] - self._levels
        parts = self._soft_bits(-distances.square() / no[..., None, None])  # (..., K, 2, bits / 2)
        soft_bits: torch.Tensor = parts.transpose(-1, -2).flatten(-3)
        return soft_bits


def _crc(bits: torch.Tensor, name: str) -> torch.Tensor:
    """(16,) or (24,) CRC of bits (N,)."""
    # Leading zeros do not change these CRCs, so payloads share the generator matrix of the next power of two.
    length = max(1 << 12, 1 << (bits.numel() - 1).bit_length())
    padded = torch.nn.functional.pad(bits, (length - bits.numel(), 0))
    parity: torch.Tensor = _crc_encoder(name, length)(padded[None])[0, length:]
    return parity


@cache
def _crc_encoder(name: str, length: int) -> Any:
    from dekag.link.sionna_blocks import CRCEncoder

    return CRCEncoder(name, k=length, device="cpu", precision="single")


@lru_cache(maxsize=64)
def _interleaver(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Permutation (bits,) int64 and scrambling mask (bits,) float32 of 0 and 1."""
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(bits, generator=generator)
    return order, torch.randint(0, 2, (bits,), generator=generator).float()
