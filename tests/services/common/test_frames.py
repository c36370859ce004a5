"""The stream contract, from the receiver's side."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch

from services.common.frames import (
    BLOCK_SYMBOLS,
    FrameError,
    Transmission,
    channel_state,
    channel_states,
    collect,
)
from services.proto.downlink_pb2 import (
    ChannelState,
    Reference,
    StageTime,
    SymbolBlock,
    SymbolFrame,
    TransmissionHeader,
    TransmissionReport,
)

HEADER = SymbolFrame(header=TransmissionHeader(channel_uses=2))
SYMBOLS = SymbolFrame(symbols=SymbolBlock(iq=bytes(16)))
CSI = SymbolFrame(csi=channel_state(torch.ones(8, dtype=torch.complex64), 0.1))
REFERENCE = SymbolFrame(reference=Reference(latents=b"1234"))
REPORT = SymbolFrame(report=TransmissionReport())


def _report(**content: Any) -> SymbolFrame:
    return SymbolFrame(report=TransmissionReport(**content))


async def _stream(frames: Sequence[SymbolFrame]) -> AsyncIterator[SymbolFrame]:
    for frame in frames:
        yield frame


async def test_round_trip_over_several_blocks() -> None:
    symbols = torch.randn(1, 2 * BLOCK_SYMBOLS + 5, dtype=torch.complex64)
    sent = Transmission(
        TransmissionHeader(channel_uses=symbols.shape[1]),
        symbols,
        [CSI.csi, CSI.csi],
        Reference(latents=b"1234"),
        TransmissionReport(cached=True),
    )
    sent.add_stage("edge.encode", 0.5)
    frames = list(sent.frames())
    found = await collect(_stream(frames))
    assert torch.equal(found.symbols, symbols)
    assert (found.header, found.states, found.reference, found.report) == (
        sent.header,
        sent.states,
        sent.reference,
        sent.report,
    )
    assert [len(f.symbols.iq) // 8 for f in frames if f.HasField("symbols")] == [
        BLOCK_SYMBOLS,
        BLOCK_SYMBOLS,
        5,
    ]
    assert found.received_bytes == sum(
        len(f.SerializeToString()) for f in frames if not f.HasField("reference")
    )


def _block(*values: float) -> SymbolFrame:
    return SymbolFrame(symbols=SymbolBlock(iq=struct.pack(f"<{len(values)}f", *values)))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [HEADER],
        [HEADER, SYMBOLS],
        [SYMBOLS, HEADER, REPORT],
        [HEADER, HEADER, SYMBOLS, REPORT],
        [HEADER, SYMBOLS, SYMBOLS, REPORT],
        [HEADER, REPORT],
        [HEADER, CSI, SYMBOLS, REPORT],
        [HEADER, SYMBOLS, REPORT, CSI],
        [HEADER, SYMBOLS, REPORT, REPORT],
        [HEADER, SYMBOLS, REFERENCE, REFERENCE, REPORT],
        [HEADER, SYMBOLS, *[CSI] * 17, REPORT],
        [HEADER, SymbolFrame(), REPORT],
        [HEADER, SymbolFrame(symbols=SymbolBlock()), SYMBOLS, REPORT],
        [
            SymbolFrame(header=TransmissionHeader(channel_uses=BLOCK_SYMBOLS + 1)),
            SymbolFrame(symbols=SymbolBlock(iq=bytes(8 * (BLOCK_SYMBOLS + 1)))),
            REPORT,
        ],
        [HEADER, SYMBOLS, _report(expected_psnr_db=float("nan"))],
        [HEADER, SYMBOLS, _report(stages=[StageTime(stage="x", seconds=float("inf"))])],
        [HEADER, SymbolFrame(symbols=SymbolBlock(iq=bytes(15))), REPORT],
        [HEADER, _block(0, float("nan"), 0, 0), REPORT],
        [HEADER, _block(0, float("inf"), 0, 0), REPORT],
        [SymbolFrame(header=TransmissionHeader(channel_uses=0)), REPORT],
        [SymbolFrame(header=TransmissionHeader(channel_uses=2**32 - 1)), SYMBOLS, REPORT],
    ],
)
async def test_broken_streams(frames: list[SymbolFrame]) -> None:
    with pytest.raises(FrameError):
        await collect(_stream(frames))


@pytest.mark.parametrize(
    "state",
    [
        ChannelState(no=0.1),
        ChannelState(gains=bytes(7), no=0.1),
        ChannelState(gains=bytes(8 * 1025), no=0.1),
        ChannelState(gains=struct.pack("<2f", 1, float("nan")), no=0.1),
        ChannelState(gains=bytes(8), no=float("nan")),
        ChannelState(gains=bytes(8), no=float("inf")),
        ChannelState(gains=bytes(8), no=-1),
        ChannelState(gains=bytes(8), no=1, gain_errors=bytes(8)),
        ChannelState(gains=bytes(8), no=1, gain_errors=bytes(3)),
        ChannelState(gains=bytes(8), no=1, gain_errors=struct.pack("<f", -1)),
        ChannelState(gains=bytes(8), no=1, gain_errors=struct.pack("<f", float("nan"))),
        ChannelState(gains=bytes(8), no=1, pilot_uses=2**32 - 1),
    ],
)
def test_broken_states(state: ChannelState) -> None:
    with pytest.raises(FrameError):
        channel_states([state], 512)


@pytest.mark.parametrize("count", [1, 8, 1024, 6000])
def test_states_round_trip_with_up_to_a_gain_for_every_symbol(count: int) -> None:
    gains, errors = torch.randn(count, dtype=torch.complex64), torch.rand(count)
    exact, estimated = channel_states(
        [channel_state(gains, 0.25, torch.zeros(count)), channel_state(gains, 0.25, errors, 48)], 6000
    )
    for state in (exact, estimated):
        assert torch.equal(state.gains, gains[None])
        assert state.no.tolist() == [0.25]
    assert (exact.gain_errors, exact.pilot_uses) == (None, (0,))
    assert estimated.gain_errors is not None
    assert torch.equal(estimated.gain_errors, errors[None])
    assert estimated.pilot_uses == (48,)
    if count > 1024:
        with pytest.raises(FrameError):
            channel_states([channel_state(gains, 0.25)], 512)


async def test_endless_empty_blocks_are_refused() -> None:
    async def endless() -> AsyncIterator[SymbolFrame]:
        yield HEADER
        while True:
            yield SymbolFrame(symbols=SymbolBlock())

    with pytest.raises(FrameError, match="a block of 0 bytes"):
        await collect(endless())
