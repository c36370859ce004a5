"""Converts a transmission to a stream of frames and back."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dekag.errors import InvalidInputError
from dekag.link.channel import ChannelState
from dekag.link.iq import BYTES_PER_SYMBOL, bytes_to_iq, iq_to_bytes
from services.common.stages import stage_time
from services.proto.downlink_pb2 import ChannelState as ChannelStateMessage
from services.proto.downlink_pb2 import (
    LatentPreview,
    Reference,
    SymbolBlock,
    SymbolFrame,
    TransmissionHeader,
    TransmissionReport,
)

BLOCK_SYMBOLS = 32_768
MAX_CHANNEL_USES = 2**22
MAX_CHANNELS = 16
MAX_BLOCKS = 1024  # gains in a channel state, unless there is one for every symbol
MAX_CONSTELLATION_SYMBOLS = 512  # symbols in a constellation diagram
_ORDER = ("header", "symbols", "csi", "reference", "report")


class FrameError(Exception):
    """The sender violated the stream's contract; not caused by the client's request."""


@dataclass
class Transmission:
    """The transmission of one image.

    Attributes:
        header: parameters that the receiver needs.
        symbols: (1, K) complex64.
        states: CSI of the channels crossed so far, in that order.
        reference: what the edge sent, if quality is measured.
        report: report of the services before this one.
        received_bytes: serialised size of the received frames, without the reference.
    """

    header: TransmissionHeader
    symbols: torch.Tensor
    states: list[ChannelStateMessage]
    reference: Reference | None
    report: TransmissionReport
    received_bytes: int = 0

    def frames(self) -> Iterator[SymbolFrame]:
        """The frames in the order of the contract."""
        yield SymbolFrame(header=self.header)
        for block in self.symbols[0].split(BLOCK_SYMBOLS):
            yield SymbolFrame(symbols=SymbolBlock(iq=iq_to_bytes(block)))
        for state in self.states:
            yield SymbolFrame(csi=state)
        if self.reference is not None:
            yield SymbolFrame(reference=self.reference)
        yield SymbolFrame(report=self.report)

    def add_stage(self, stage: str, seconds: float) -> None:
        """Records the time of a stage that has just ended, s."""
        self.report.stages.append(stage_time(stage, seconds))


class FrameReader:
    """Reads a stream of frames: first its previews, then its transmission.

    Args:
        frames: the stream.
        most: number of previews that were requested.
    """

    def __init__(self, frames: AsyncIterator[SymbolFrame], most: int) -> None:
        self._frames, self._most = frames, most
        self._first: SymbolFrame | None = None

    async def previews(self) -> AsyncIterator[LatentPreview]:
        """The previews as they arrive, until the transmission begins.

        Raises:
            FrameError: there are more than requested.
        """
        count = 0
        async for frame in self._frames:
            if frame.WhichOneof("part") != "preview":
                self._first = frame
                return
            count += 1
            if count > self._most:
                raise FrameError(f"more than the {self._most} previews requested")
            yield frame.preview

    async def transmission(self) -> Transmission:
        """The transmission, to be read after the previews; raises FrameError as `collect`."""
        return await collect(self._rest())

    async def _rest(self) -> AsyncIterator[SymbolFrame]:
        if self._first is not None:
            yield self._first
        async for frame in self._frames:
            yield frame


async def collect(frames: AsyncIterator[SymbolFrame]) -> Transmission:
    """The transmission that ``frames`` carry.

    Raises:
        FrameError: a frame is missing, out of order, repeated, of a wrong size, or not finite.
    """
    header: TransmissionHeader | None = None
    report: TransmissionReport | None = None
    reference: Reference | None = None
    blocks: list[bytes] = []
    states: list[ChannelStateMessage] = []
    position = received = symbol_bytes = 0
    async for frame in frames:
        part = frame.WhichOneof("part")
        if part not in _ORDER or _ORDER.index(part) < position or report is not None:
            raise FrameError(f"frame {part} after {_ORDER[position]}")
        position = _ORDER.index(part)
        if header is None:
            if part != "header":
                raise FrameError(f"the first frame is {part}, not the header")
            header = frame.header
            if not 0 < header.channel_uses <= MAX_CHANNEL_USES:
                raise FrameError(f"{header.channel_uses} channel uses announced")
        elif part == "header":
            raise FrameError("two headers")
        elif part == "symbols":
            blocks.append(frame.symbols.iq)
            if not 0 < len(blocks[-1]) <= BLOCK_SYMBOLS * BYTES_PER_SYMBOL:
                raise FrameError(f"a block of {len(blocks[-1])} bytes")
            symbol_bytes += len(blocks[-1])
            if symbol_bytes > header.channel_uses * BYTES_PER_SYMBOL:
                raise FrameError(f"more than the {header.channel_uses} symbols announced")
        elif part == "csi":
            states.append(frame.csi)
            if len(states) > MAX_CHANNELS:
                raise FrameError(f"more than {MAX_CHANNELS} channels crossed")
        elif part == "reference":
            if reference is not None:
                raise FrameError("two references")
            reference = frame.reference
            continue
        else:
            report = frame.report
            qualities = [report.expected_psnr_db, report.picture.autoencoder_psnr_db]
            numbers = [*qualities, *(each.seconds for each in report.stages)]
            if not all(map(math.isfinite, numbers)):
                raise FrameError("a report with a number that is not finite")
        received += frame.ByteSize()
    if header is None or report is None:
        raise FrameError(f"the stream ended without its {'report' if header else 'header'}")
    try:
        symbols = bytes_to_iq(b"".join(blocks), count=header.channel_uses)
    except InvalidInputError as error:
        raise FrameError(str(error)) from error
    return Transmission(header, symbols[None], states, reference, report, received)


def channel_state(
    gains: torch.Tensor, no: float, gain_errors: torch.Tensor | None = None, pilot_uses: int = 0
) -> ChannelStateMessage:
    """The message with the state of a channel as the receiver knows it.

    Args:
        gains: (J,) complex64.
        no: noise power.
        gain_errors: (J,) float32; not sent if all are 0.
        pilot_uses: channel uses spent on pilots.
    """
    state = ChannelStateMessage(gains=iq_to_bytes(gains), no=no, pilot_uses=pilot_uses)
    if gain_errors is not None and gain_errors.any():
        state.gain_errors = gain_errors.numpy().astype("<f4").tobytes()
    return state


def channel_states(states: list[ChannelStateMessage], channel_uses: int) -> list[ChannelState]:
    """The state of each channel, B = 1, for ``dekag.link.channel.compose_hops``.

    Args:
        states: messages as received.
        channel_uses: K of the transmission; more gains than that are refused.

    Raises:
        FrameError: a state has no gains, too many, or a value that is not finite.
    """
    return [_state(state, max(channel_uses, MAX_BLOCKS)) for state in states]


def _state(state: ChannelStateMessage, most: int) -> ChannelState:
    count = len(state.gains) // BYTES_PER_SYMBOL
    if not 0 < count <= most or not 0 <= state.no < math.inf:
        raise FrameError(f"channel state must have 1 to {most} gains and a noise power of at least 0")
    errors = None
    if state.gain_errors:
        if len(state.gain_errors) != 4 * count:
            raise FrameError(f"channel state must have a gain error for each of its {count} gains")
        errors = torch.from_numpy(np.frombuffer(state.gain_errors, "<f4").astype(np.float32))[None]
        if not (torch.isfinite(errors) & (errors >= 0)).all():
            raise FrameError("channel state with a gain error that is negative or not finite")
    if state.pilot_uses > MAX_CHANNEL_USES:
        raise FrameError(f"channel state with {state.pilot_uses} pilots")
    try:
        gains = bytes_to_iq(state.gains)[None]
    except InvalidInputError as error:
        raise FrameError(str(error)) from error
    return ChannelState(gains, torch.tensor([state.no]), errors, (state.pilot_uses,))
