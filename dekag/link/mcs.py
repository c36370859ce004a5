"""The table of modulation and coding schemes, and the split of a payload into codewords. Imports no torch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction

from dekag.api.limits import MAX_PAYLOAD_BYTES
from dekag.errors import InvalidInputError

INFORMATION_BITS = 1920  # longer codewords take more time, without a lower SNR for as many iterations
MOTHER_RATE = Fraction(1, 5)  # the lowest rate that 5G codes; below it, coded bits are repeated
SIZES = tuple(round(INFORMATION_BITS * 2 ** (-step / 4)) for step in reversed(range(26)))
"""k of the codes in use, 25 to 1920: a payload uses the next longer one, which is partly empty. This limits
the number of codes to set up."""

_SHORT_CRC_UP_TO = 3824  # payload bits: up to here 5G uses CRC16, beyond it CRC24A


@dataclass(frozen=True)
class ModulationAndCoding:
    """One row of the modulation-and-coding table.

    Attributes:
        bits_per_symbol: QAM order is 2**bits_per_symbol.
        codeword_bits: n of the longest LDPC codeword; shorter payloads use shorter ones of the same rate.
        information_bits: k of that codeword.
    """

    bits_per_symbol: int
    codeword_bits: int
    information_bits: int

    @property
    def rate(self) -> Fraction:
        """Code rate k/n."""
        return Fraction(self.information_bits, self.codeword_bits)

    @property
    def efficiency(self) -> float:
        """Information bits per channel use."""
        return self.bits_per_symbol * self.information_bits / self.codeword_bits


def _row(bits_per_symbol: int, numerator: int, denominator: int) -> ModulationAndCoding:
    codeword_bits = INFORMATION_BITS * denominator // numerator
    return ModulationAndCoding(bits_per_symbol, codeword_bits, INFORMATION_BITS)


TABLE = (
    _row(2, 1, 20),
    _row(2, 1, 10),
    _row(2, 1, 5),
    _row(2, 1, 3),
    _row(2, 1, 2),
    _row(2, 2, 3),
    _row(4, 2, 5),
    _row(4, 1, 2),
    _row(4, 2, 3),
    _row(6, 1, 2),
    _row(4, 5, 6),
    _row(6, 3, 5),
    _row(6, 2, 3),
    _row(6, 3, 4),
    _row(8, 3, 5),
    _row(6, 5, 6),
    _row(8, 2, 3),
    _row(8, 3, 4),
    _row(8, 5, 6),
    _row(8, 8, 9),
)
"""All schemes, in ascending order of efficiency: 0.1 to 7.1 information bits per channel use."""


@dataclass(frozen=True)
class CodewordLayout:
    """The split of a payload into codewords.

    Attributes:
        codewords: number of codewords, all of the same length.
        used_bits: bits of payload and CRC in each.
        size: k of the code, one of SIZES; the remaining bits are known zeros, which are not sent.
        mother_bits: n of that code.
        sent_bits: coded bits of each codeword that are sent, including repetitions.
        channel_uses: channel uses of all codewords.
        crc: name of the CRC in 5G.
        crc_bits: length of the CRC.
    """

    codewords: int
    used_bits: int
    size: int
    mother_bits: int
    sent_bits: int
    channel_uses: int
    crc: str
    crc_bits: int

    @staticmethod
    def of(payload_bytes: int, coding: ModulationAndCoding) -> CodewordLayout:
        """The layout of a payload.

        Raises:
            InvalidInputError: the length is not 1 to 2**20 bytes, or the coding is not in TABLE.
        """
        if coding not in TABLE:
            raise InvalidInputError("coding", "a row of the modulation-and-coding table", coding)
        if not 1 <= payload_bytes <= MAX_PAYLOAD_BYTES:
            raise InvalidInputError("payload_bytes", f"between 1 and {MAX_PAYLOAD_BYTES}", payload_bytes)
        short = 8 * payload_bytes <= _SHORT_CRC_UP_TO
        crc, crc_bits = ("CRC16", 16) if short else ("CRC24A", 24)
        total = 8 * payload_bytes + crc_bits
        codewords = -(-total // INFORMATION_BITS)
        used = -(-total // codewords)
        size = SIZES[bisect_left(SIZES, used)]
        mother = int(size / max(coding.rate, MOTHER_RATE))
        sent = -(-used * coding.codeword_bits // coding.information_bits)
        uses = -(-codewords * sent // coding.bits_per_symbol)
        return CodewordLayout(codewords, used, size, mother, sent, uses, crc, crc_bits)


def largest_payload(channel_uses: int, coding: ModulationAndCoding) -> int:
    """The largest payload, bytes, of `coding` in `channel_uses` channel uses; 0 if none fits."""
    low, high = 0, min(MAX_PAYLOAD_BYTES, int(channel_uses * coding.efficiency) // 8)
    while low < high:
        middle = (low + high + 1) // 2
        if CodewordLayout.of(middle, coding).channel_uses <= channel_uses:
            low = middle
        else:
            high = middle - 1
    return low
