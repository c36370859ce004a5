"""Services whose peers send what they must not: a clear end, blamed on no client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from dekag.cala.artifact import TransmissionKnowledge
from dekag.makd.update import KnowledgeUpdate
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.common.request_context import begin_request
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto import cloud_pb2, downlink_pb2, user_pb2
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.fuzz.artifacts import broken, claimed_hash, tiny_adapters
from tests.fuzz.budgets import FUZZ
from tests.fuzz.calls import DEADLINE_S, picture
from tests.fuzz.messages import any_of, spoiled
from tests.fuzz.peers import BLAMED, AnyCloud, AnyDownlink, AnyUser, code_of, other_streams
from tests.fuzz.rest import check_answer
from tests.fuzz.tally import Tally
from tests.services.conftest import serving, starter

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
    valid: Mapping[str, Sequence[downlink_pb2.SymbolFrame]]
    adapters: Mapping[str, bytes]


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
@settings(FUZZ, max_examples=300)
@given(data=st.data())
async def test_a_user_whose_downlink_sends_anything(
    downstream: Downstream, tally: Tally, delivery: str, data: st.DataObject
) -> None:
    downstream.peer.frames = data.draw(other_streams(downstream.valid[delivery]))
    code = await code_of(downstream.user.Receive(asked(delivery), timeout=DEADLINE_S))
    tally.note(f"downlink of user, {delivery}", code.name)
    assert code in BLAMED


@pytest.mark.parametrize("delivery", DELIVERIES)
@settings(FUZZ, max_examples=300)
@given(data=st.data())
async def test_a_channel_whose_downlink_sends_anything(
    downstream: Downstream, tally: Tally, delivery: str, data: st.DataObject
) -> None:
    downstream.peer.frames = data.draw(other_streams(downstream.valid[delivery]))
    code = await code_of(downstream.channel.Provide(asked(delivery), timeout=DEADLINE_S))
    tally.note(f"downlink of channel, {delivery}", code.name)
    assert code in BLAMED


@settings(FUZZ, max_examples=200)
@given(data=st.data())
async def test_a_user_whose_downlink_hands_out_broken_adapters(
    downstream: Downstream, tally: Tally, data: st.DataObject
) -> None:
    files = data.draw(broken(downstream.adapters, TransmissionKnowledge.parts))
    frames = [
        downlink_pb2.SymbolFrame.FromString(f.SerializeToString()) for f in downstream.valid["semantic"]
    ]
    frames[0].header.adapters_hash = claimed_hash(files) or "f" * 64
    downstream.peer.frames = frames
    downstream.peer.knowledge = downlink_pb2.TransmissionKnowledge(files=files)
    code = await code_of(downstream.user.Receive(asked("semantic"), timeout=DEADLINE_S))
    tally.note("adapters for user", code.name)
    assert code in BLAMED


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


@settings(FUZZ, max_examples=200)
@given(data=st.data())
async def test_an_edge_whose_cloud_draws_anything(
    upstream: Upstream, tally: Tally, data: st.DataObject
) -> None:
    images = st.sampled_from(upstream.images)
    other = images | images.flatmap(spoiled) | any_of(cloud_pb2.GeneratedImage)
    upstream.cloud.images = data.draw(st.lists(other, max_size=4))
    code = await code_of(upstream.edge.Provide(asked("conventional"), timeout=DEADLINE_S))
    tally.note("cloud of edge, images", code.name)
    assert code in BLAMED


@settings(FUZZ, max_examples=200)
@given(data=st.data())
async def test_an_edge_whose_cloud_hands_out_broken_knowledge(
    upstream: Upstream, tally: Tally, data: st.DataObject
) -> None:
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


@settings(FUZZ, max_examples=300)
@given(data=st.data())
async def test_a_gateway_whose_user_answers_anything(
    gateway: Gateway, tally: Tally, data: st.DataObject
) -> None:
    gateway.user.image = data.draw(spoiled(gateway.image) | any_of(user_pb2.ReceivedImage))
    status = await gateway.ask("/v1/images/generations", {"prompt": "a boat", "seed": 1})
    tally.note("user of gateway", str(status))
    assert status in (200, 500)


@settings(FUZZ, max_examples=300)
@given(data=st.data())
async def test_a_gateway_whose_cloud_answers_anything(
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
