"""Calls of every RPC with raw bytes, and what an answer may be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio
from hypothesis import strategies as st

from services.proto import cloud_pb2, downlink_pb2, user_pb2
from tests.hostile.messages import any_of, spoiled, wire

DEADLINE_S = 240.0
"""Of one call: far more than any takes, so that running into it is a hang."""

REFUSALS = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.ABORTED,  # another job of the topic runs, or the job is over
        StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""How hostile input may be refused while all services are up."""

_LEAKS = re.compile(r'Traceback|File "|\w/\w+\.py\b|site-packages|<class |object at 0x')


def picture(**changes: Any) -> downlink_pb2.ProvideRequest:
    """A plain request for a small picture, with these fields changed."""
    plain: dict[str, Any] = {
        "prompt": "a red boat",
        "seed": 7,
        "width": 64,
        "height": 64,
        "delivery": downlink_pb2.DELIVERY_SEMANTIC,
        "cbr": 1 / 96,
        "link": downlink_pb2.LinkConditions(snr_db=10, fading=downlink_pb2.FADING_RAYLEIGH),
        "measure": True,
    }
    return downlink_pb2.ProvideRequest(**plain | changes)


_VALID: tuple[Message, ...] = (
    picture(),
    cloud_pb2.GenerateRequest(prompt="a red boat", seeds=[1], width=64, height=64, formats=[1, 2]),
    cloud_pb2.DistillRequest(topic="neon", images=4, tokens=1, rank=1, steps=2, seed=0),
    cloud_pb2.JobId(id="0" * 32),
    cloud_pb2.GetKnowledgeRequest(topic="neon", files=True, samples=True),
    cloud_pb2.DeleteKnowledgeRequest(topic="nothing"),
    downlink_pb2.GetTransmissionKnowledgeRequest(files=True),
)


@dataclass(frozen=True)
class Rpc:
    """One method of a service.

    Attributes:
        name: "cloud.Generate".
        service: which service of the chain answers: "cloud", "edge", "channel" or "user".
        path: as gRPC calls it.
        takes: the class of its request.
        streams: whether it answers with several messages.
    """

    name: str
    service: str
    path: str
    takes: type[Message]
    streams: bool


def rpcs() -> Iterator[Rpc]:
    """Every RPC of every service, the Downlink's at edge and channel both."""
    for module in (user_pb2, downlink_pb2, cloud_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            at = ("edge", "channel") if service.name == "Downlink" else (service.name.lower(),)
            for method in service.methods:
                for place in at:
                    yield _rpc(service.full_name, method, place)


def _rpc(service: str, method: MethodDescriptor, place: str) -> Rpc:
    return Rpc(
        name=f"{place}.{method.name}",
        service=place,
        path=f"/{service}/{method.name}",
        takes=GetMessageClass(method.input_type),
        streams=method.server_streaming,
    )


def nearly_valid(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Messages of that type with any content, and, if any is known, a valid one with some fields spoiled."""
    valid = next((each for each in _VALID if isinstance(each, kind)), None)
    anything = any_of(kind)
    return anything if valid is None else anything | spoiled(valid) | spoiled(valid, most=1)


def requests(rpc: Rpc) -> st.SearchStrategy[bytes]:
    """What is sent to ``rpc``: messages with any content, nearly valid ones, and bytes that are none."""
    messages: st.SearchStrategy[Message] = nearly_valid(rpc.takes)
    return messages.map(lambda each: each.SerializeToString()) | wire(messages)


def legal_requests() -> st.SearchStrategy[bytes]:
    """Requests for pictures at the limits of what is allowed; nobody may refuse them for what is in them."""
    others = {
        downlink_pb2.FADING_UNSPECIFIED,
        downlink_pb2.FADING_TRACE,  # needs a name, as does
        downlink_pb2.FADING_CUSTOM,
        downlink_pb2.FADING_RAYLEIGH_MAGNITUDE,  # fades too fast for pilots
    }
    kinds = [kind for kind in downlink_pb2.Fading.values() if kind not in others]
    edges = {"snr_db": (-20, 40), "tau_rms_s": (0, 1e-4), "speed_m_s": (0, 150), "rician_k_db": (-20, 40)}
    link = st.builds(
        downlink_pb2.LinkConditions,
        fading=st.sampled_from(kinds),
        csi=st.sampled_from(downlink_pb2.Csi.values()),
        equalizer=st.sampled_from(downlink_pb2.Equalizer.values()),
        **{name: st.sampled_from(limits) | st.floats(*limits) for name, limits in edges.items()},
    )
    traced = st.builds(
        downlink_pb2.LinkConditions,
        fading=st.just(downlink_pb2.FADING_TRACE),
        trace=st.sampled_from(["walk", "drive"]),
        trace_start_s=st.floats(0, 86_400),
        csi=st.sampled_from(downlink_pb2.Csi.values()),
        equalizer=st.sampled_from(downlink_pb2.Equalizer.values()),
        snr_db=st.floats(-20, 40),
    )
    fast = st.builds(
        downlink_pb2.LinkConditions,
        fading=st.just(downlink_pb2.FADING_RAYLEIGH_MAGNITUDE),
        equalizer=st.sampled_from(downlink_pb2.Equalizer.values()),
        snr_db=st.floats(-20, 40),
    )
    common = {
        "prompt": st.text(st.characters(exclude_categories=["Cs"]), max_size=80).map(lambda text: f"a{text}"),
        "seed": st.integers(0, 2**63 - 1),
        "link": link | traced | fast,
        "measure": st.booleans(),
    }
    jscc = st.builds(
        downlink_pb2.ProvideRequest,
        delivery=st.sampled_from([downlink_pb2.DELIVERY_SEMANTIC, downlink_pb2.DELIVERY_SEMANTIC_UNALIGNED]),
        cbr=st.integers(1, 128).map(lambda uses: uses / (3 * 64 * 64)) | st.just(1 / 96),
        modulation=st.sampled_from(downlink_pb2.Modulation.values()),
        width=st.sampled_from([64, 96, 128]),
        height=st.sampled_from([64, 256]),
        **common,
    )
    conventional = st.builds(
        downlink_pb2.ProvideRequest,
        delivery=st.just(downlink_pb2.DELIVERY_CONVENTIONAL),
        image_format=st.sampled_from([2, 3, 4]),
        width=st.just(64),
        height=st.just(64),
        **common,
    )
    # seldom conventional: decoding takes long where little comes through
    rarely = st.integers(0, 9).flatmap(lambda draw: jscc if draw else conventional)
    return rarely.map(lambda each: each.SerializeToString())


async def answer_of(channel: aio.Channel, rpc: Rpc, data: bytes) -> StatusCode:
    """Sends ``data`` as the request, whatever it is; how the call ended, after checks of what it told."""
    kind = channel.unary_stream if rpc.streams else channel.unary_unary
    call: Any = kind(rpc.path)(data, timeout=DEADLINE_S)
    told = ""
    try:
        if not rpc.streams:
            await call
        else:
            async for _ in call:
                if rpc.takes is cloud_pb2.JobId:  # whoever watches a job that waits, waits with it
                    break
    except grpc.RpcError as error:
        told = f"{error.details()} {[value for _, value in error.trailing_metadata() or ()]}"
    finally:
        call.cancel()
    assert _LEAKS.search(told) is None, told
    code: StatusCode = await call.code() if told else StatusCode.OK
    return code
