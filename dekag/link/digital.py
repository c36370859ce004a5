"""The conventional baseline: bytes -> CRC -> 5G LDPC -> interleaving -> QAM, and back.

One transmission carries one payload:

1. a 24-bit CRC (CRC24A) is appended to the payload;
2. the bits are cut into the fewest equal parts that fit k; each is LDPC-encoded with the same (k, n) code,
   whose unused information bits are known zeros that are not sent, and whose parity is punctured in
   proportion, so that the rate stays k/n however long the payload;
3. all coded bits of the transmission are scrambled and interleaved together, so that every codeword meets
   every fading block and the constellation points are equally likely, whatever the payload;
4. Gray-mapped QAM points of mean power 1 (over the constellation) go out.

The receiver equalises, demaps with the noise variance of every symbol, and runs belief propagation for at
most 20 iterations, stopping as soon as the CRC holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from dekag.errors import DekagError, InvalidInputError
from dekag.link.channel import Reception
from dekag.link.conditions import LinkConditions
from dekag.link.equalizer import unbiased_equalize

MAX_PAYLOAD_BYTES = 1 << 16
INFORMATION_BITS = 1920
ITERATIONS = 20

_CRC_BITS = 24
_ITERATIONS_PER_CHECK = 5
_KNOWN_ZERO_LLR = -20.0  # the decoder's own limit; log p(1)/p(0)
_MIN_NO = 1e-6  # an ideal reception has no noise, and no finite likelihood ratio
_SEED = 38212  # of the interleaver and scrambler, which both sides know


class DecodingError(DekagError):
    """The CRC does not hold after the last iteration: the payload is lost."""


@dataclass(frozen=True)
class ModulationAndCoding:
    """One row of the modulation-and-coding table.

    Attributes:
        bits_per_symbol: QAM order is 2**bits_per_symbol.
        codeword_bits: n of one LDPC codeword.
        information_bits: k of one LDPC codeword.
    """

    bits_per_symbol: int
    codeword_bits: int
    information_bits: int

    @property
    def efficiency(self) -> float:
        """Information bits per channel use."""
        return self.bits_per_symbol * self.information_bits / self.codeword_bits


def _row(bits_per_symbol: int, numerator: int, denominator: int) -> ModulationAndCoding:
    return ModulationAndCoding(bits_per_symbol, INFORMATION_BITS * denominator // numerator, INFORMATION_BITS)


TABLE = (
    _row(2, 1, 5),
    _row(2, 1, 3),
    _row(2, 1, 2),
    _row(2, 2, 3),
    _row(4, 1, 2),
    _row(4, 2, 3),
    _row(4, 5, 6),
    _row(6, 2, 3),
    _row(6, 5, 6),
    _row(8, 3, 4),
    _row(8, 5, 6),
)
"""Every choice there is, by rising efficiency: 0.4 to 6.67 information bits per channel use."""


class DigitalLink:
    """Sends bytes over the link the conventional way. Holds no state: one serves every thread."""

    def choose(self, conditions: LinkConditions) -> ModulationAndCoding:
        """The most efficient row whose threshold is at most `conditions.snr_db`.

        A threshold is the mean SNR at which one image's payload is lost in at most 10 % of transmissions
        (see `dekag.link.calibrate`, which measured them). On Rayleigh it counts the fades, which the sender
        does not know: the row is fixed for the mean SNR and the delay spread; between two calibrated delay
        spreads the more careful one counts. Below every threshold the most robust row is used and decoding
        may fail.
        """
        thresholds = _thresholds(conditions.fading, conditions.tau_rms_s)
        fitting = [
            row for row, threshold in zip(TABLE, thresholds, strict=True) if threshold <= conditions.snr_db
        ]
        return fitting[-1] if fitting else TABLE[0]

    def channel_uses(self, payload_bytes: int, coding: ModulationAndCoding) -> int:
        """K, complex symbols that carry `payload_bytes` bytes."""
        return _Layout.of(payload_bytes, coding).channel_uses

    def modulate(self, payload: bytes, coding: ModulationAndCoding) -> torch.Tensor:
        """Symbols (1, K) complex64 of mean power 1 for 1 to 65536 bytes.

        Raises:
            InvalidInputError: on another length, or a coding that is not in TABLE.
        """
        layout = _Layout.of(len(payload), coding)
        bits = torch.from_numpy(np.unpackbits(np.frombuffer(payload, np.uint8))).float()
        information = torch.zeros(layout.codewords * layout.used_bits)
        information[: bits.numel()] = bits
        information[bits.numel() : bits.numel() + _CRC_BITS] = _crc(bits)
        blocks = torch.zeros(layout.codewords, coding.information_bits)
        blocks[:, : layout.used_bits] = information.view(layout.codewords, layout.used_bits)
        encoder, _ = _code(coding.information_bits, coding.codeword_bits)
        coded = encoder(blocks)[:, _sent_bits(layout.used_bits, layout.sent_bits, coding)].flatten()
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
            DecodingError: if the CRC does not hold.
            InvalidInputError: if K, the coding or the length do not fit.
        """
        layout = _Layout.of(payload_bytes, coding)
        if reception.symbols.shape != (1, layout.channel_uses):
            allowed = f"(1, {layout.channel_uses}) for {payload_bytes} bytes with this coding"
            raise InvalidInputError("symbols", allowed, tuple(reception.symbols.shape))
        equalized = unbiased_equalize(reception)
        _, demapper = _constellation(coding.bits_per_symbol)
        order, mask = _interleaver(layout.channel_uses * coding.bits_per_symbol)
        llrs = torch.empty(order.numel())
        llrs[order] = demapper(equalized.symbols, equalized.no.clamp_min(_MIN_NO))[0] * (1 - 2 * mask)
        codewords = torch.zeros(layout.codewords, coding.codeword_bits)
        encoder, decoder = _code(coding.information_bits, coding.codeword_bits)
        unsent = 2 * encoder.z
        codewords[:, layout.used_bits - unsent : coding.information_bits - unsent] = _KNOWN_ZERO_LLR
        sent = _sent_bits(layout.used_bits, layout.sent_bits, coding)
        codewords[:, sent] = llrs[: layout.codewords * layout.sent_bits].view(layout.codewords, -1)
        state = None
        for _ in range(ITERATIONS // _ITERATIONS_PER_CHECK):
            decoded, state = decoder(codewords, num_iter=_ITERATIONS_PER_CHECK, msg_v2c=state)
            bits = decoded[:, : layout.used_bits].flatten()
            payload, crc = bits[: 8 * payload_bytes], bits[8 * payload_bytes :][:_CRC_BITS]
            if torch.equal(_crc(payload), crc):
                return np.packbits(payload.numpy().astype(np.uint8)).tobytes()
        raise DecodingError(f"the CRC of {payload_bytes} bytes does not hold after {ITERATIONS} iterations")


@dataclass(frozen=True)
class _Layout:
    """How one payload is cut: codewords, information and sent bits of each, channel uses of all."""

    codewords: int
    used_bits: int
    sent_bits: int
    channel_uses: int

    @staticmethod
    def of(payload_bytes: int, coding: ModulationAndCoding) -> _Layout:
        if coding not in TABLE:
            raise InvalidInputError("coding", "a row of the modulation-and-coding table", coding)
        if not 1 <= payload_bytes <= MAX_PAYLOAD_BYTES:
            raise InvalidInputError("payload_bytes", f"between 1 and {MAX_PAYLOAD_BYTES}", payload_bytes)
        k, n = coding.information_bits, coding.codeword_bits
        total = 8 * payload_bytes + _CRC_BITS
        codewords = -(-total // k)
        # Below half of k the punctured code is too short to recover the 2z bits that 5G never sends.
        used = max(-(-total // codewords), k // 2)
        sent = -(-used * n // k)
        return _Layout(codewords, used, sent, -(-codewords * sent // coding.bits_per_symbol))


def _sent_bits(used: int, sent: int, coding: ModulationAndCoding) -> torch.Tensor:
    """(sent,) int64: positions within n of what is sent; the others are known zeros or punctured."""
    encoder, _ = _code(coding.information_bits, coding.codeword_bits)
    systematic = used - 2 * encoder.z
    parity = coding.information_bits - 2 * encoder.z
    return torch.cat([torch.arange(systematic), torch.arange(parity, parity + sent - systematic)])


@cache
def _code(k: int, n: int) -> tuple[Any, Any]:
    from dekag.link.phy import LDPC5GDecoder, LDPC5GEncoder

    encoder = LDPC5GEncoder(k, n, device="cpu", precision="single", check_input=False)
    decoder = LDPC5GDecoder(
        encoder, num_iter=_ITERATIONS_PER_CHECK, return_state=True, device="cpu", precision="single"
    )
    return encoder, decoder


@cache
def _constellation(bits_per_symbol: int) -> tuple[Any, Any]:
    from dekag.link.phy import Demapper, Mapper

    mapper = Mapper("qam", bits_per_symbol, device="cpu", precision="single")
    demapper = Demapper("app", "qam", bits_per_symbol, device="cpu", precision="single")
    return mapper, demapper


def _crc(bits: torch.Tensor) -> torch.Tensor:
    """(24,) CRC24A of bits (N,)."""
    # Leading zeros do not change this CRC, so payloads share the generator matrix of the next power of two.
    length = max(1 << 14, 1 << (bits.numel() - 1).bit_length())
    padded = torch.nn.functional.pad(bits, (length - bits.numel(), 0))
    parity: torch.Tensor = _crc_encoder(length)(padded[None])[0, length:]
    return parity


@cache
def _crc_encoder(length: int) -> Any:
    from dekag.link.phy import CRCEncoder

    return CRCEncoder("CRC24A", k=length, device="cpu", precision="single")


@lru_cache(maxsize=64)
def _interleaver(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Permutation (bits,) int64 and scrambling mask (bits,) float32 of 0 and 1."""
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(bits, generator=generator)
    return order, torch.randint(0, 2, (bits,), generator=generator).float()


@cache
def _calibration() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("dekag.link") / "mcs.json").read_text())
    return table


def _thresholds(fading: str, tau_rms_s: float) -> list[float]:
    """Mean SNR, dB, that each row of TABLE needs."""
    rows = _calibration()["rows"]
    if fading == "awgn":
        return [row["awgn_db"] for row in rows]
    taus = _calibration()["tau_rms_s"]
    below = sum(tau <= tau_rms_s for tau in taus) - 1
    above = below if taus[below] == tau_rms_s else min(below + 1, len(taus) - 1)
    return [max(row["rayleigh_db"][below : above + 1]) for row in rows]
