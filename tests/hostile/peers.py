"""Services that answer with anything, in the places of a Downlink and of a cloud."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc import StatusCode
from hypothesis import strategies as st

from services.proto import cloud_pb2, downlink_pb2, user_pb2
from services.proto.cloud_pb2_grpc import CloudServicer
from services.proto.downlink_pb2 import SymbolFrame
from services.proto.downlink_pb2_grpc import DownlinkServicer
from services.proto.user_pb2_grpc import UserServicer
from tests.hostile.messages import any_of, spoiled

BLAMED = frozenset(
    {
        StatusCode.OK,
        StatusCode.INTERNAL,  # a peer broke its contract
        StatusCode.FAILED_PRECONDITION,  # what it sent does not fit
        StatusCode.NOT_FOUND,
        StatusCode.UNAVAILABLE,  # what it says of its knowledge is of no use
    }
)
"""How a request may end whose service met a broken peer: never as if the client were to blame."""

_FLOATS = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e38, 1e20, 1e-38, 1e-45, 0.0, -0.0)


class AnyDownlink(DownlinkServicer):
    """Sends the frames and files that it is given.

    Attributes:
        frames: of every transmission.
        knowledge: the answer of GetTransmissionKnowledge.
    """

    def __init__(self) -> None:
        self.frames: Sequence[SymbolFrame] = ()
        self.knowledge = downlink_pb2.TransmissionKnowledge()

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Provide(self, request: Any, context: Any) -> AsyncIterator[SymbolFrame]:  # noqa: N802
        for frame in self.frames:
            yield frame

    async def GetTransmissionKnowledge(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.knowledge


class AnyUser(UserServicer):
    """Answers with the image that it is given.

    Attributes:
        image: the answer of Receive.
    """

    def __init__(self) -> None:
        self.image = user_pb2.ReceivedImage()

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Receive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.image


class AnyCloud(CloudServicer):
    """Answers with the messages that it is given.

    Attributes:
        images: what Generate streams.
        catalogue: what ListKnowledge says.
        update: what GetKnowledge says.
        adapters: what GetTransmissionKnowledge says.
        jobs: what ListJobs says, and the first of them what the other methods for jobs do.
    """

    def __init__(self) -> None:
        self.images: Sequence[cloud_pb2.GeneratedImage] = ()
        self.catalogue = cloud_pb2.KnowledgeList()
        self.update = cloud_pb2.Knowledge()
        self.adapters = downlink_pb2.TransmissionKnowledge()
        self.jobs = cloud_pb2.Jobs(jobs=[cloud_pb2.Job()])

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[cloud_pb2.GeneratedImage]:  # noqa: N802
        for image in self.images:
            yield image

    async def ListKnowledge(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.catalogue

    async def GetKnowledge(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.update

    async def GetTransmissionKnowledge(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.adapters

    async def ListJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.jobs

    async def GetJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.jobs.jobs[0]

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[cloud_pb2.Job]:  # noqa: N802
        for job in self.jobs.jobs:
            yield job


async def code_of(call: Any) -> StatusCode:
    """How a call of a stub ended, with one answer or several."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.RpcError as error:
        code: StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    return StatusCode.OK


@st.composite
def other_numbers(draw: st.DrawFn, data: bytes) -> bytes:
    """float32 numbers of which some, or all, are hostile."""
    numbers = bytearray(data[: len(data) // 4 * 4])
    value = struct.pack("<f", draw(st.sampled_from(_FLOATS)))
    if draw(st.booleans()):
        return value * (len(numbers) // 4)
    for _ in range(draw(st.integers(1, 4))):
        if numbers:
            at = 4 * draw(st.integers(0, len(numbers) // 4 - 1))
            numbers[at : at + 4] = value
    return bytes(numbers)


@st.composite
def _other_numbers_in(draw: st.DrawFn, frames: Sequence[SymbolFrame]) -> list[SymbolFrame]:
    """The frames as they should be but for the numbers that they carry."""
    changed = [SymbolFrame.FromString(frame.SerializeToString()) for frame in frames]
    for frame in changed:
        part = frame.WhichOneof("part")
        if part == "symbols" and draw(st.booleans()):
            frame.symbols.iq = draw(other_numbers(frame.symbols.iq))
        elif part == "csi" and draw(st.booleans()):
            frame.csi.gains = draw(other_numbers(frame.csi.gains))
            frame.csi.gain_errors = draw(st.sampled_from([b"", bytes(len(frame.csi.gains) // 2)]))
            frame.csi.no = draw(st.sampled_from([0.0, 1e-38, 1e38, 1e300, 0.1]))
        elif part == "reference" and frame.reference.latents and draw(st.booleans()):
            frame.reference.latents = draw(other_numbers(frame.reference.latents))
        elif part == "header" and draw(st.integers(0, 4)) == 0:
            frame.header.CopyFrom(draw(spoiled(frame.header, most=1)))
    return changed


@st.composite
def _other_frames(draw: st.DrawFn, valid: Sequence[SymbolFrame]) -> list[SymbolFrame]:
    """Frames missing, doubled, out of order, cut off, changed or added."""
    frames = list(valid)
    for _ in range(draw(st.integers(1, 3))):
        if not frames:
            break
        how = draw(st.sampled_from(["change", "drop", "double", "swap", "cut", "add"]))
        at = draw(st.integers(0, len(frames) - 1))
        if how == "change":
            frames[at] = draw(spoiled(frames[at], most=1))
        elif how == "drop":
            del frames[at]
        elif how == "double":
            frames.insert(at, frames[at])
        elif how == "swap":
            other = draw(st.integers(0, len(frames) - 1))
            frames[at], frames[other] = frames[other], frames[at]
        elif how == "cut":
            del frames[at:]
        else:
            frames.insert(at, draw(any_of(SymbolFrame)))
    return frames


def other_streams(valid: Sequence[SymbolFrame]) -> st.SearchStrategy[list[SymbolFrame]]:
    """What a broken Downlink may send in place of a transmission."""
    return _other_numbers_in(valid) | _other_frames(valid)
