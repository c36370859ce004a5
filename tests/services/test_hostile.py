"""Hostile input: what was found once, and a few examples of what `make test-fuzz` tries by the thousand."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from grpc import StatusCode, aio
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from dekag.errors import InvalidInputError, NotFoundError
from dekag.generation.images import to_png
from dekag.world import random_scene, render
from services.cloud import distill_request
from services.common import clients, converters
from services.common.errors import InternalError
from services.common.frames import FrameError, channel_states
from services.common.request_context import begin_request
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.converters import to_image
from services.proto import cloud_pb2, downlink_pb2, user_pb2
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server
from services.proto.downlink_pb2 import ChannelState, Reference, SymbolFrame
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.fuzz.budgets import QUICK
from tests.fuzz.calls import REFUSALS, Rpc, answer_of, legal_requests, nearly_valid, picture, requests, rpcs
from tests.fuzz.messages import any_of, spoiled
from tests.fuzz.peers import BLAMED, AnyCloud, AnyDownlink, code_of, other_streams
from tests.fuzz.rest import Anything, Gateway, anything, image_bodies
from tests.services.conftest import starter

pytestmark = pytest.mark.asyncio(loop_scope="session")
RPCS = list(rpcs())
DELIVERIES = ("semantic", "conventional")


@pytest.mark.parametrize("rpc", RPCS, ids=[rpc.name for rpc in RPCS])
@settings(QUICK)
@given(data=st.data())
async def test_any_message_is_served_or_refused(
    channels: Mapping[str, aio.Channel], rpc: Rpc, data: st.DataObject
) -> None:
    code = await answer_of(channels[rpc.service], rpc, data.draw(requests(rpc)))
    assert code is StatusCode.OK or code in REFUSALS


@settings(QUICK, max_examples=10)
@given(sent=legal_requests())
async def test_what_is_allowed_is_served(channels: Mapping[str, aio.Channel], sent: bytes) -> None:
    (rpc,) = (rpc for rpc in RPCS if rpc.name == "user.Receive")
    assert await answer_of(channels["user"], rpc, sent) is StatusCode.OK


@pytest.mark.parametrize(
    "text", ["\N{FOX FACE}" * 1000, "\0" * 700, "a" * 10_000_000, "\N{RIGHT-TO-LEFT OVERRIDE}x"]
)
async def test_long_and_odd_texts_are_refused_shortly(channels: Mapping[str, aio.Channel], text: str) -> None:
    for rpc in RPCS:
        for field in rpc.takes.DESCRIPTOR.fields:
            if field.type == field.TYPE_STRING and not field.is_repeated:
                message = rpc.takes(**{field.name: text})
                assert await answer_of(channels[rpc.service], rpc, message.SerializeToString()) in REFUSALS


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(gateway_url: str) -> Gateway:
    return await asyncio.to_thread(Gateway, gateway_url)


@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value
)
@settings(QUICK, max_examples=60)
@given(data=st.data())
async def test_operations_are_as_the_document_says(
    gateway: Gateway, mode: GenerationMode, data: st.DataObject
) -> None:
    given_something = mode is GenerationMode.NEGATIVE
    operations = [each for each in gateway.operations() if each.takes_something or not given_something]
    operation = data.draw(st.sampled_from(operations))
    case = data.draw(operation.strategy(mode))
    await asyncio.to_thread(gateway.send_case, case)


@settings(QUICK)
@given(asked=anything())
async def test_any_request_is_answered(gateway: Gateway, asked: Anything) -> None:
    await asyncio.to_thread(gateway.send, asked)


@settings(QUICK)
@given(body=image_bodies())
async def test_any_picture_is_drawn_or_refused(gateway: Gateway, body: bytes) -> None:
    asked = Anything("POST", "/v1/images/generations", {"Content-Type": "application/json"}, body)
    await asyncio.to_thread(gateway.send, asked)


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"1e3", b"0x10", b"99999999999999999999"])
async def test_a_length_that_is_no_number_is_refused(gateway: Gateway, length: bytes) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n"
    assert await asyncio.to_thread(gateway.send_bytes, head) in (0, 400, 413)


@pytest.mark.parametrize("wanted", ["x", "lines=1-2", "bytes=", "bytes=5-2", "bytes=9999999-", "bytes=0-9"])
@pytest.mark.parametrize("path", ["/", "/web/style.css", "/docs-assets/swagger-ui.css"])
async def test_files_come_whole_whatever_range_is_asked_for(
    client: httpx2.AsyncClient, path: str, wanted: str
) -> None:
    answer = await client.get(path, headers={"Range": wanted})
    assert answer.status_code == 200
    assert answer.content == (await client.get(path)).content
    assert answer.headers["accept-ranges"] == "none"


LINK = picture().link
CODING = downlink_pb2.ModulationAndCoding(
    bits_per_symbol=2, codeword_bits=9600, information_bits=1920, payload_bytes=10
)
STATE = ChannelState(gains=bytes(64), no=0.1, gain_errors=bytes(32), pilot_uses=4)


@settings(QUICK, max_examples=100)
@given(
    asked=nearly_valid(downlink_pb2.ProvideRequest),
    link=spoiled(LINK) | any_of(type(LINK)),
    coding=spoiled(CODING) | any_of(type(CODING)),
    generate=nearly_valid(cloud_pb2.GenerateRequest),
    order=nearly_valid(cloud_pb2.DistillRequest),
    state=spoiled(STATE) | any_of(ChannelState),
)
async def test_converters_read_or_refuse(
    asked: Any, link: Any, coding: Any, generate: Any, order: Any, state: ChannelState
) -> None:
    for convert, message in (
        (converters.request_from_proto, asked),
        (converters.link_from_proto, link),
        (converters.coding_from_proto, coding),
        (converters.image_formats, generate),
        (converters.seeds, generate),
        (distill_request.from_proto, order),
        (lambda state: channel_states([state], 8), state),
    ):
        try:
            convert(message)
        except (InvalidInputError, NotFoundError, FrameError):
            continue


async def test_latents_without_numbers_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="latents"):
        converters.latents_from_bytes(b"", (2**31, 2**31, 2**31, 0))


async def test_a_link_report_that_is_none_is_not_the_clients_fault() -> None:
    with pytest.raises(ValueError, match=r"link report: link\.fading"):
        to_image(user_pb2.ReceivedImage(report=user_pb2.LinkReport(delivery="DELIVERY_SEMANTIC")), "id")


@dataclass
class Broken:
    """A user whose Downlink, and an edge whose cloud, send what they are told to.

    Attributes:
        downlink, cloud: those two.
        user, edge: stubs of those who ask them.
        valid: transmissions as they should be, by delivery.
    """

    downlink: AnyDownlink
    cloud: AnyCloud
    user: Any
    edge: Any
    valid: Mapping[str, Sequence[SymbolFrame]]

    async def receive(self, delivery: str, frames: Sequence[SymbolFrame]) -> StatusCode:
        """How a request ends whose transmission comes as these frames."""
        self.downlink.frames = frames
        return await code_of(self.user.Receive(asked(delivery), timeout=60))


def asked(delivery: str) -> downlink_pb2.ProvideRequest:
    """A request for a picture by that delivery."""
    return picture(delivery=f"DELIVERY_{delivery.upper()}")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broken(chain: Any, connected: Any, dummy_profile: Path) -> AsyncIterator[Broken]:
    begin_request(None, None)
    models: dict[str, Any] = {"port": 0, "redis_url": "", "profile": str(dummy_profile)}
    async with starter() as start:
        downlink, cloud = AnyDownlink(), AnyCloud()
        own = UserSettings(**models, downlink_address=await start(downlink, add_DownlinkServicer_to_server))
        edge = EdgeSettings(**models, cloud_address=await start(cloud, add_CloudServicer_to_server))
        yield Broken(
            downlink,
            cloud,
            UserStub(connected(await start(UserServicer(own), add_UserServicer_to_server, own))),
            DownlinkStub(connected(await start(EdgeServicer(edge), add_DownlinkServicer_to_server, edge))),
            {name: [frame async for frame in chain.channel.Provide(asked(name))] for name in DELIVERIES},
        )


@pytest.mark.parametrize("delivery", DELIVERIES)
@settings(QUICK)
@given(data=st.data())
async def test_a_downlink_that_sends_anything_is_blamed_itself(
    broken: Broken, delivery: str, data: st.DataObject
) -> None:
    assert await broken.receive(delivery, data.draw(other_streams(broken.valid[delivery]))) in BLAMED


def changed(frames: Sequence[SymbolFrame], part: str, content: Any) -> list[SymbolFrame]:
    """The frames with another content in those of that part."""
    return [SymbolFrame(**{part: content}) if frame.HasField(part) else frame for frame in frames]


async def test_transmissions_as_they_should_be_are_received(broken: Broken) -> None:
    for delivery, frames in broken.valid.items():
        assert await broken.receive(delivery, frames) is StatusCode.OK


@pytest.mark.parametrize(
    "gains",
    [[3e38, 3e38] * 8, [1e-38, 0] * 8, [1e30, 1e30] * 8, [0, 0] * 8],
    ids=["huge", "tiny", "large", "none"],
)
@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_gains_that_no_channel_has_end_clearly(
    broken: Broken, delivery: str, gains: list[float]
) -> None:
    state = ChannelState(gains=struct.pack("<16f", *gains), no=1e-38)
    assert await broken.receive(delivery, changed(broken.valid[delivery], "csi", state)) in (
        StatusCode.OK,
        StatusCode.INTERNAL,
    )


async def test_hops_that_do_not_go_together_are_not_the_clients_fault(broken: Broken) -> None:
    frames = list(broken.valid["semantic"])
    (at,) = [index for index, frame in enumerate(frames) if frame.HasField("csi")]
    frames.insert(at, SymbolFrame(csi=ChannelState(gains=bytes(24), no=0.1)))
    assert await broken.receive("semantic", frames) is StatusCode.INTERNAL


async def test_a_reference_of_another_delivery_is_not_shown(broken: Broken) -> None:
    semantic, conventional = (broken.valid[name] for name in DELIVERIES)
    (image,) = [frame.reference for frame in conventional if frame.HasField("reference")]
    assert await broken.receive("semantic", changed(semantic, "reference", image)) is StatusCode.INTERNAL
    latents = Reference(latents=bytes(4 * 4 * 8 * 8))
    assert (
        await broken.receive("conventional", changed(conventional, "reference", latents))
        is StatusCode.INTERNAL
    )
    assert (
        await broken.receive("semantic", changed(semantic, "reference", Reference())) is StatusCode.INTERNAL
    )


async def test_a_cloud_that_sends_no_picture_is_not_the_clients_fault(chain: Any, broken: Broken) -> None:
    wanted = cloud_pb2.GenerateRequest(prompt="a red boat", seeds=[7], width=64, height=64, formats=[2, 1])
    webp, png = [image async for image in chain.cloud.Generate(wanted)]
    request = asked("conventional")
    broken.cloud.images = [webp, png]
    assert await code_of(broken.edge.Provide(request)) is StatusCode.OK
    empty = cloud_pb2.GeneratedImage(format="IMAGE_FORMAT_WEBP")
    huge = cloud_pb2.GeneratedImage(format="IMAGE_FORMAT_WEBP", image=bytes(2**16 + 1))
    many = [cloud_pb2.GeneratedImage(format=number, image=b"x") for number in range(2, 60)]
    for images in ([], [png], [empty, png], [huge, png], many):
        broken.cloud.images = images
        with pytest.raises(InternalError):
            _ = [frame async for frame in clients.stream(broken.edge.Provide, request, "edge")]


async def test_a_picture_of_another_size_is_refused(chain: Any, broken: Broken) -> None:
    import random

    pixels = render(random_scene(random.Random(1)), 1)
    broken.cloud.images = [cloud_pb2.GeneratedImage(format=number, image=to_png(pixels)) for number in (2, 1)]
    frames = [frame async for frame in broken.edge.Provide(asked("conventional"))]
    assert await broken.receive("conventional", frames) is StatusCode.INTERNAL
