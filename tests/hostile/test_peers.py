"""Services whose peers send what they must not: a clear end, blamed on no client."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from dekag.cala.artifact import TransmissionKnowledge
from dekag.errors import InvalidInputError
from dekag.generation.images import to_png
from dekag.makd.update import KnowledgeUpdate
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.common import clients
from services.common.errors import InternalError
from services.common.request_context import begin_request
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto import cloud_pb2, downlink_pb2, user_pb2
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server
from services.proto.downlink_pb2 import ChannelState, Reference, SymbolFrame
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests import made_pictures
from tests.chain import serving, starter
from tests.hostile.artifacts import broken, claimed_hash, tiny_adapters
from tests.hostile.budgets import examples
from tests.hostile.calls import DEADLINE_S, picture
from tests.hostile.messages import any_of, spoiled
from tests.hostile.peers import BLAMED, AnyCloud, AnyDownlink, AnyUser, code_of, other_streams
from tests.hostile.rest import check_answer
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
DELIVERIES = ["semantic", "conventional"]


@dataclass
class Downstream:
    """What a broken Downlink can do to those above it.

    Attributes:
        peer: the Downlink.
        user, channel: stubs of services that ask it.
        valid: transmissions as they should be, by delivery.
        adapters: files of transmission knowledge, as they should be.
    """

    peer: AnyDownlink
    user: Any
    channel: Any
    valid: Mapping[str, Sequence[SymbolFrame]]
    adapters: Mapping[str, bytes]

    async def receive(self, delivery: str, frames: Sequence[SymbolFrame]) -> StatusCode:
        """How a request ends whose transmission comes as these frames."""
        self.peer.frames = frames
        return await code_of(self.user.Receive(asked(delivery), timeout=DEADLINE_S))


def asked(delivery: str, **changes: Any) -> downlink_pb2.ProvideRequest:
    """A request for a picture by that delivery."""
    return picture(delivery=f"DELIVERY_{delivery.upper()}", **changes)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def downstream(chain: Any, connected: Callable[[str], Any], profile: Path) -> AsyncIterator[Downstream]:
    begin_request(None, None)
    async with starter() as start:
        peer = AnyDownlink()
        below = await start(peer, add_DownlinkServicer_to_server)
        own = UserSettings(port=0, redis_url="", profile=str(profile), downlink_address=below)
        user = await start(UserServicer(own), add_UserServicer_to_server, own)
        air = ChannelSettings(port=0, downlink_address=below)
        channel = await start(ChannelServicer(air), add_DownlinkServicer_to_server, air)
        yield Downstream(
            peer,
            UserStub(connected(user)),
            DownlinkStub(connected(channel)),
            {name: [frame async for frame in chain.channel.Provide(asked(name))] for name in DELIVERIES},
            tiny_adapters(profile / "codec").to_files(),
        )


@pytest.mark.parametrize("delivery", DELIVERIES)
@examples(quick=30, thorough=300)
@given(data=st.data())
async def test_user_survives_any_downlink(
    downstream: Downstream, tally: Tally, delivery: str, data: st.DataObject
) -> None:
    code = await downstream.receive(delivery, data.draw(other_streams(downstream.valid[delivery])))
    tally.note(f"downlink of user, {delivery}", code.name)
    assert code in BLAMED


@pytest.mark.parametrize("delivery", DELIVERIES)
@examples(quick=10, thorough=300)
@given(data=st.data())
async def test_channel_survives_any_downlink(
    downstream: Downstream, tally: Tally, delivery: str, data: st.DataObject
) -> None:
    downstream.peer.frames = data.draw(other_streams(downstream.valid[delivery]))
    code = await code_of(downstream.channel.Provide(asked(delivery), timeout=DEADLINE_S))
    tally.note(f"downlink of channel, {delivery}", code.name)
    assert code in BLAMED


@examples(quick=5, thorough=200)
@given(data=st.data())
async def test_user_survives_broken_adapters(
    downstream: Downstream, tally: Tally, data: st.DataObject
) -> None:
    files = data.draw(broken(downstream.adapters, TransmissionKnowledge.parts))
    frames = [SymbolFrame.FromString(f.SerializeToString()) for f in downstream.valid["semantic"]]
    frames[0].header.adapters_hash = claimed_hash(files) or "f" * 64
    downstream.peer.knowledge = downlink_pb2.TransmissionKnowledge(files=files)
    code = await downstream.receive("semantic", frames)
    tally.note("adapters for user", code.name)
    assert code in BLAMED


def changed(frames: Sequence[SymbolFrame], part: str, content: Any) -> list[SymbolFrame]:
    """The frames with another content in those of that part."""
    return [SymbolFrame(**{part: content}) if frame.HasField(part) else frame for frame in frames]


async def test_transmissions_as_they_should_be_are_received(downstream: Downstream) -> None:
    for delivery, frames in downstream.valid.items():
        assert await downstream.receive(delivery, frames) is StatusCode.OK


@pytest.mark.parametrize(
    "gains",
    [[3e38, 3e38] * 8, [1e-38, 0] * 8, [1e30, 1e30] * 8, [0, 0] * 8],
    ids=["huge", "tiny", "large", "none"],
)
@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_impossible_gains_end_in_ok_or_internal(
    downstream: Downstream, delivery: str, gains: list[float]
) -> None:
    state = ChannelState(gains=struct.pack("<16f", *gains), no=1e-38)
    assert await downstream.receive(delivery, changed(downstream.valid[delivery], "csi", state)) in (
        StatusCode.OK,
        StatusCode.INTERNAL,
    )


async def test_mismatched_hops_are_internal_errors(downstream: Downstream) -> None:
    frames = list(downstream.valid["semantic"])
    (at,) = [index for index, frame in enumerate(frames) if frame.HasField("csi")]
    frames.insert(at, SymbolFrame(csi=ChannelState(gains=bytes(24), no=0.1)))
    assert await downstream.receive("semantic", frames) is StatusCode.INTERNAL


async def test_a_reference_of_another_delivery_is_not_shown(downstream: Downstream) -> None:
    semantic, conventional = (downstream.valid[name] for name in DELIVERIES)
    (image,) = [frame.reference for frame in conventional if frame.HasField("reference")]
    assert await downstream.receive("semantic", changed(semantic, "reference", image)) is StatusCode.INTERNAL
    latents = Reference(latents=bytes(4 * 4 * 8 * 8))
    assert (
        await downstream.receive("conventional", changed(conventional, "reference", latents))
        is StatusCode.INTERNAL
    )
    assert (
        await downstream.receive("semantic", changed(semantic, "reference", Reference()))
        is StatusCode.INTERNAL
    )


@dataclass
class Upstream:
    """What a broken cloud can do to an edge.

    Attributes:
        cloud: the cloud.
        edge: a stub of the edge that asks it.
        images: what Generate should answer with.
        catalogue, update, adapters: what the other methods should.
    """

    cloud: AnyCloud
    edge: Any
    images: Sequence[cloud_pb2.GeneratedImage]
    catalogue: cloud_pb2.KnowledgeList
    update: cloud_pb2.Knowledge
    adapters: downlink_pb2.TransmissionKnowledge


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream(chain: Any, connected: Callable[[str], Any], profile: Path) -> AsyncIterator[Upstream]:
    async with starter() as start:
        cloud = AnyCloud()
        above = await start(cloud, add_CloudServicer_to_server)
        own = EdgeSettings(
            port=0, redis_url="", profile=str(profile), cloud_address=above, knowledge_keep_s=0
        )  # fmt: skip
        edge = await start(EdgeServicer(own), add_DownlinkServicer_to_server, own)
        generate = cloud_pb2.GenerateRequest(
            prompt="a red boat", seeds=[7], width=64, height=64, formats=[2, 1]
        )
        yield Upstream(
            cloud,
            DownlinkStub(connected(edge)),
            [image async for image in chain.cloud.Generate(generate)],
            await chain.cloud.ListKnowledge(cloud_pb2.ListKnowledgeRequest()),
            await chain.cloud.GetKnowledge(cloud_pb2.GetKnowledgeRequest(topic="neon", files=True)),
            await chain.cloud.GetTransmissionKnowledge(
                downlink_pb2.GetTransmissionKnowledgeRequest(files=True)
            ),
        )


@examples(quick=10, thorough=200)
@given(data=st.data())
async def test_edge_survives_any_images_of_the_cloud(
    upstream: Upstream, tally: Tally, data: st.DataObject
) -> None:
    images = st.sampled_from(upstream.images)
    other = images | images.flatmap(spoiled) | any_of(cloud_pb2.GeneratedImage)
    upstream.cloud.images = data.draw(st.lists(other, max_size=4))
    code = await code_of(upstream.edge.Provide(asked("conventional"), timeout=DEADLINE_S))
    tally.note("cloud of edge, images", code.name)
    assert code in BLAMED


@examples(quick=5, thorough=200)
@given(data=st.data())
async def test_edge_survives_broken_knowledge(upstream: Upstream, tally: Tally, data: st.DataObject) -> None:
    update = data.draw(broken(upstream.update.files, KnowledgeUpdate.parts))
    adapters = data.draw(broken(upstream.adapters.files, TransmissionKnowledge.parts))
    manifest, about = cloud_pb2.KnowledgeManifest(), downlink_pb2.TransmissionManifest()
    manifest.CopyFrom(upstream.catalogue.knowledge[0])
    about.CopyFrom(upstream.adapters.manifest)
    if data.draw(st.booleans()):
        manifest, about = data.draw(spoiled(manifest)), data.draw(spoiled(about))
    else:  # announced as what they are
        manifest.content_hash, about.content_hash = claimed_hash(update), claimed_hash(adapters)
    upstream.cloud.catalogue = cloud_pb2.KnowledgeList(knowledge=[manifest])
    upstream.cloud.update = cloud_pb2.Knowledge(files=update)
    upstream.cloud.adapters = downlink_pb2.TransmissionKnowledge(manifest=about, files=adapters)
    seed = data.draw(st.integers(0, 2**62))
    named = data.draw(st.sampled_from([[], ["neon"], ["none"]]))
    request = asked("semantic", prompt="a neon boat", seed=seed, knowledge=named)
    code = await code_of(upstream.edge.Provide(request, timeout=DEADLINE_S))
    tally.note("cloud of edge, knowledge", code.name)
    assert code in BLAMED
    if not named:  # nobody insisted on it
        assert code.name == "OK"


async def test_cloud_without_a_usable_image_is_an_internal_error(upstream: Upstream) -> None:
    webp, png = upstream.images
    request = asked("conventional")
    upstream.cloud.images = [webp, png]
    assert await code_of(upstream.edge.Provide(request)) is StatusCode.OK
    empty = cloud_pb2.GeneratedImage(format="IMAGE_FORMAT_WEBP")
    huge = cloud_pb2.GeneratedImage(format="IMAGE_FORMAT_WEBP", image=bytes(2**16 + 1))
    many = [cloud_pb2.GeneratedImage(format=number, image=b"x") for number in range(2, 60)]
    for images in ([], [png], [empty, png], many):
        upstream.cloud.images = images
        with pytest.raises(InternalError):
            _ = [frame async for frame in clients.stream(upstream.edge.Provide, request, "edge")]
    upstream.cloud.images = [huge, png]  # a real cloud may draw it, and the client can ask for another format
    with pytest.raises(InvalidInputError, match="image_format"):
        _ = [frame async for frame in clients.stream(upstream.edge.Provide, request, "edge")]


async def test_a_picture_of_another_size_is_refused(upstream: Upstream, downstream: Downstream) -> None:
    pixels = made_pictures.picture()
    upstream.cloud.images = [
        cloud_pb2.GeneratedImage(format=number, image=to_png(pixels)) for number in (2, 1)
    ]
    frames = [frame async for frame in upstream.edge.Provide(asked("conventional"))]
    assert await downstream.receive("conventional", frames) is StatusCode.INTERNAL


@dataclass
class Gateway:
    """A gateway between a user and a cloud that answer with anything.

    Attributes:
        client: asks the gateway.
        user, cloud: those services.
        image, job, manifest: what they should answer with.
    """

    client: httpx2.AsyncClient
    user: AnyUser
    cloud: AnyCloud
    image: user_pb2.ReceivedImage
    job: cloud_pb2.Job
    manifest: cloud_pb2.KnowledgeManifest

    async def ask(self, path: str, body: object = None) -> int:
        """The status of the answer, which tells nothing of the inside whatever it is."""
        method = "GET" if body is None else "POST"
        answer = await self.client.request(method, path, json=body, timeout=DEADLINE_S)
        check_answer(answer.status_code, answer.headers, answer.text)
        return int(answer.status_code)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(chain: Any) -> AsyncIterator[Gateway]:
    async with starter() as start:
        user, cloud = AnyUser(), AnyCloud()
        own = GatewaySettings(
            redis_url="",
            user_address=await start(user, add_UserServicer_to_server),
            cloud_address=await start(cloud, add_CloudServicer_to_server),
        )
        (manifest,) = (await chain.cloud.ListKnowledge(cloud_pb2.ListKnowledgeRequest())).knowledge
        job = cloud_pb2.Job(id="0" * 32, topic="neon", status=cloud_pb2.JOB_STATUS_FINISHED, created=1.0)
        async with serving(create_app(own)) as client:
            yield Gateway(client, user, cloud, await chain.user.Receive(asked("semantic")), job, manifest)


@examples(quick=10, thorough=300)
@given(data=st.data())
async def test_gateway_survives_any_answer_of_the_user(
    gateway: Gateway, tally: Tally, data: st.DataObject
) -> None:
    gateway.user.image = data.draw(spoiled(gateway.image) | any_of(user_pb2.ReceivedImage))
    status = await gateway.ask("/v1/images/generations", {"prompt": "a boat", "seed": 1})
    tally.note("user of gateway", str(status))
    assert status in (200, 500)


@examples(quick=5, thorough=300)
@given(data=st.data())
async def test_gateway_survives_any_answer_of_the_cloud(
    gateway: Gateway, tally: Tally, data: st.DataObject
) -> None:
    gateway.cloud.jobs = cloud_pb2.Jobs(jobs=[data.draw(spoiled(gateway.job) | any_of(cloud_pb2.Job))])
    manifest = data.draw(spoiled(gateway.manifest) | any_of(cloud_pb2.KnowledgeManifest))
    gateway.cloud.catalogue = cloud_pb2.KnowledgeList(knowledge=[manifest])
    gateway.cloud.update = cloud_pb2.Knowledge(manifest=manifest, samples=data.draw(st.binary(max_size=20)))
    gateway.cloud.adapters = data.draw(any_of(downlink_pb2.TransmissionKnowledge))
    for path in ("jobs", "jobs/x", "knowledge", "knowledge/neon", "knowledge/neon/samples", "transmission"):
        status = await gateway.ask(f"/v1/{path}")
        tally.note(f"cloud of gateway, {path}", str(status))
        assert status in (200, 404, 500)
