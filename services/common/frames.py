"""A transmission as frames on a stream, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import torch

from dekag.errors import InvalidInputError
from dekag.link.iq import BYTES_PER_SYMBOL, bytes_to_iq, iq_to_bytes
from services.proto.downlink_pb2 import (
    ChannelState,
    Reference,
    StageTime,
    SymbolBlock,
    SymbolFrame,
    TransmissionHeader,
    TransmissionReport,
)

BLOCK_SYMBOLS = 32_768
MAX_CHANNEL_USES = 2**22
MAX_CHANNELS = 16
_ORDER = ("header", "symbols", "csi", "reference", "report")


class FrameError(Exception):
    """The sender broke the contract of the stream; no fault of the client's request."""


@dataclass
class Transmission:
    """One image on its way.

    Attributes:
        header: what the receiver must know.
        symbols: (1, K) complex64.
        states: CSI of the channels crossed, the first crossed first.
        reference: what the edge meant to deliver, if that is measured.
        report: what the services before this one did.
        received_bytes: serialised size of the frames that came, without the reference.
    """

    header: TransmissionHeader
    symbols: torch.Tensor
    states: list[ChannelState]
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
        """Notes in the report what a stage took, s."""
        self.report.stages.append(StageTime(stage=stage, seconds=seconds))


async def collect(frames: AsyncIterator[SymbolFrame]) -> Transmission:
    """The transmission that ``frames`` carry.

    Raises:
        FrameError: a frame is missing, out of order, too many, of a wrong size or holds a value not finite.
    """
    header: TransmissionHeader | None = None
    report: TransmissionReport | None = None
    reference: Reference | None = None
    blocks: list[bytes] = []
    states: list[ChannelState] = []
    position = received = symbol_bytes = 0
    async for frame in frames:
        part = frame.WhichOneof("part")
        if part is None or _ORDER.index(part) < position or report is not None:
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
        received += frame.ByteSize()
    if header is None or report is None:
        raise FrameError(f"the stream ended without its {'report' if header else 'header'}")
    try:
        symbols = bytes_to_iq(b"".join(blocks), count=header.channel_uses)
    except InvalidInputError as error:
        raise FrameError(str(error)) from error
    return Transmission(header, symbols[None], states, reference, report, received)


def channel_state(gains: torch.Tensor, no: float) -> ChannelState:
    """The message of block gains (J,) complex64 and noise power ``no``."""
    return ChannelState(gains=iq_to_bytes(gains), no=no)


def channel_states(states: list[ChannelState]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Gains (1, J) complex64 and no (1,) float32 of each channel, for ``dekag.link.channel.received``.

    Raises:
        FrameError: a state holds no gains, too many, or a value that is not finite.
    """
    try:
        found = [(bytes_to_iq(state.gains)[None], torch.tensor([state.no])) for state in states]
    except InvalidInputError as error:
        raise FrameError(str(error)) from error
    if any(not 0 < gains.shape[1] <= 1024 or not torch.isfinite(no).all() or no < 0 for gains, no in found):
        raise FrameError("channel state without 1 to 1024 gains and a noise power of at least 0")
    return found
