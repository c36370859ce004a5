"""Transmission knowledge: encoded and decoded with, fetched, checked, replaced; and the rates it chooses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
import torch
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag import SemanticLink
from dekag.api.schemas import Modulation
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError, NotFoundError
from dekag.generation.images import to_png
from dekag.link import LinkConditions
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.cloud.publish import main, publish_adapters
from services.cloud.redis_mirror import sync_adapters
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import TransmissionStore
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.frames import Transmission, collect
from services.common.knowledge import update_key
from services.common.transmission import TRANSMISSION_KEY, TransmissionManifest
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest
from services.proto.downlink_pb2 import TransmissionKnowledge as GivenKnowledge
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.chain import adapters, starter

if TYPE_CHECKING:
    from services.proto.downlink_pb2_grpc import DownlinkAsyncStub
    from services.proto.user_pb2 import ReceivedImage
    from services.proto.user_pb2_grpc import UserAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="session")
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]
NOWHERE = "127.0.0.1:1"  # nothing listens there


@pytest.fixture(scope="module")
def redis_url(new_database: Callable[[], str]) -> str:
    """Of a database for these tests alone."""
    return new_database()


@pytest.fixture(scope="module")
def profile(adapted_profile: Path) -> Path:
    """The tiny profile, with adapters of its own."""
    return adapted_profile


@pytest.fixture(scope="module")
def own(profile: Path) -> TransmissionKnowledge:
    return TransmissionKnowledge.load(profile / "cala")


@pytest.fixture(scope="module")
def newer(profile: Path) -> TransmissionKnowledge:
    return adapters(profile / "codec", 2)


@dataclass
class System:
    """A whole chain of which parts may be started again, its store and its Redis."""

    store: TransmissionStore
    redis: Redis
    cloud_address: str
    user_address: str
    start_edge: Callable[..., Awaitable[str]]
    start_user: Callable[..., Awaitable[UserAsyncStub]]
    edge: DownlinkAsyncStub
    user: UserAsyncStub

    async def publish(self, knowledge: TransmissionKnowledge) -> TransmissionManifest:
        manifest = self.store.publish(knowledge)
        await sync_adapters(self.store, self.redis)
        return manifest


@pytest_asyncio.fixture(loop_scope="session")
async def system(
    start: Start, connect: Connect, profile: Path, redis_url: str, redis: Redis, tmp_path: Path
) -> System:
    # a slow machine is no reason to take Redis for dead
    models: dict[str, Any] = {
        "port": 0, "redis_url": redis_url, "redis_timeout_s": 10, "profile": str(profile)
    }  # fmt: skip
    settings = CloudSettings(**models, data_dir=tmp_path, mirror_every_s=3600)
    cloud = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)

    async def start_edge(**changes: Any) -> str:
        own = EdgeSettings(**{**models, "cloud_address": cloud, "knowledge_keep_s": 0, **changes})
        return await start(EdgeServicer(own), add_DownlinkServicer_to_server, own)

    async def user_at(downlink: str, **changes: Any) -> str:
        channel = ChannelSettings(port=0, downlink_address=downlink)
        air = await start(ChannelServicer(channel), add_DownlinkServicer_to_server, channel)
        own = UserSettings(**{**models, "downlink_address": air, **changes})
        return await start(UserServicer(own), add_UserServicer_to_server, own)

    async def start_user(downlink: str, **changes: Any) -> UserAsyncStub:
        return UserStub(connect(await user_at(downlink, **changes)))

    edge = await start_edge()
    user = await user_at(edge)
    return System(
        TransmissionStore(tmp_path),
        redis,
        cloud,
        user,
        start_edge,
        start_user,
        DownlinkStub(connect(edge)),
        UserStub(connect(user)),
    )


@pytest.fixture
def asked(asked: DeliveryRequest) -> DeliveryRequest:
    return replace(asked, width=64, height=64, cbr=1 / 96)


async def provide(edge: DownlinkAsyncStub, asked: DeliveryRequest, **changes: Any) -> Transmission:
    request = converters.request_to_proto(replace(asked, **changes))
    return await collect(clients.stream(edge.Provide, request, "edge"))


async def receive(user: UserAsyncStub, asked: DeliveryRequest, **changes: Any) -> ReceivedImage:
    return await clients.call(user.Receive, converters.request_to_proto(replace(asked, **changes)), "user")


def hops(image: ReceivedImage) -> dict[str, int]:
    return {hop.hop: hop.sent_bytes for hop in image.report.hops}


async def test_the_profiles_adapters_encode_and_decode_for_the_condition(
    system: System, asked: DeliveryRequest, own: TransmissionKnowledge
) -> None:
    sent = await provide(system.edge, asked)
    assert sent.header.adapters_hash == own.content_hash
    other = await provide(system.edge, asked, link=LinkConditions(snr_db=-10))
    assert not torch.equal(other.symbols, sent.symbols)
    image = await receive(system.user, asked)
    assert image.report.model_hashes["adapters"] == own.content_hash
    assert (await receive(system.user, asked)).png == image.png


@pytest.mark.parametrize("delivery", ["semantic", "semantic-unaligned"])
async def test_the_link_as_a_library_gives_the_bits_of_the_services(
    system: System, asked: DeliveryRequest, profile: Path, delivery: str
) -> None:
    link = SemanticLink.load(profile, aligned=delivery == "semantic")
    for conditions, cbr in (
        (LinkConditions(snr_db=3, fading="rayleigh"), 1 / 96),
        (LinkConditions(snr_db=12, fading="tdl-b", csi="pilots", equalizer="zf"), 1 / 131),
        (LinkConditions(snr_db=6, fading="rician", reported_snr_db=18), 1 / 768),
    ):
        theirs = await receive(
            system.user, asked, delivery=delivery, link=conditions, cbr=cbr, knowledge=(), width=64, height=96
        )
        ours = link.image(asked.prompt, conditions, seed=asked.seed, cbr=cbr, width=64, height=96)
        assert to_png(ours.pixels) == theirs.png
        assert ours.psnr_db == pytest.approx(theirs.report.psnr_db, rel=1e-6)
        assert (ours.channel_uses, ours.pilot_uses) == (theirs.report.channel_uses, theirs.report.pilot_uses)
        assert ours.cbr == theirs.report.cbr


async def test_unaligned_is_the_codec_alone_and_no_knowledge(
    system: System, asked: DeliveryRequest, profile: Path, dummy_profile: Path
) -> None:
    asked = replace(asked, delivery="semantic-unaligned")
    image = await receive(system.user, asked)
    assert "adapters" not in image.report.model_hashes
    assert not image.report.knowledge
    here, there = [await provide(system.edge, asked, link=LinkConditions(snr_db=snr)) for snr in (-10, 30)]
    assert here.header.adapters_hash == ""
    assert torch.equal(here.symbols, there.symbols), "it adapts to nothing"
    edge_of_old = await system.start_edge(profile=str(dummy_profile), redis_url="", cloud_address=NOWHERE)
    user_of_old = await system.start_user(edge_of_old, profile=str(dummy_profile))
    assert (await receive(user_of_old, asked)).png == image.png
    assert (await receive(user_of_old, asked, delivery="semantic")).png == image.png
    assert (await receive(system.user, asked, delivery="semantic")).png != image.png


async def test_sender_uses_reported_conditions_channel_and_receiver_true_ones(
    system: System, asked: DeliveryRequest
) -> None:
    bad, good = LinkConditions(snr_db=0), LinkConditions(snr_db=20)
    misled = LinkConditions(snr_db=0, reported_snr_db=20)
    sent = {link: await provide(system.edge, asked, link=link) for link in (bad, good, misled)}
    assert torch.equal(sent[misled].symbols, sent[good].symbols)
    assert not torch.equal(sent[misled].symbols, sent[bad].symbols)
    image = await receive(system.user, asked, link=misled)
    assert (image.report.link.snr_db, image.report.link.reported_snr_db) == (0, 20)
    assert image.report.no == pytest.approx(1)
    assert image.png != (await receive(system.user, asked, link=bad)).png


async def test_newer_adapters_are_used_by_the_very_next_request(
    system: System,
    asked: DeliveryRequest,
    own: TransmissionKnowledge,
    newer: TransmissionKnowledge,
    dummy_profile: Path,
) -> None:
    before = await receive(system.user, asked)
    manifest = await system.publish(newer)
    assert manifest.version == 2, "1 is the profile's"
    after, again = [await receive(system.user, asked) for _ in range(2)]
    assert after.report.model_hashes["adapters"] == newer.content_hash
    assert after.png == again.png != before.png
    for hop in ("cloud-edge", "channel-user"):
        assert newer.size_bytes < hops(after)[hop] - hops(again)[hop] < newer.size_bytes + 200
    back = await system.publish(own)
    assert (back.version, back.content_hash) == (3, own.content_hash)
    assert (await receive(system.user, asked)).png == before.png
    late = await system.start_user(
        await system.start_edge(profile=str(dummy_profile)), profile=str(dummy_profile)
    )
    assert (await receive(late, asked)).png == before.png, "whoever starts later needs no action"


async def test_without_redis_adapters_come_down_the_chain(
    system: System, asked: DeliveryRequest, newer: TransmissionKnowledge
) -> None:
    system.store.publish(newer)
    edge = await system.start_edge(redis_url="")
    user = await system.start_user(edge, redis_url="")
    image = await receive(user, asked)
    assert image.report.model_hashes["adapters"] == newer.content_hash
    assert all(hops(image)[hop] > newer.size_bytes for hop in ("cloud-edge", "channel-user"))


async def test_edge_passes_on_its_own_and_the_clouds_adapters(
    system: System,
    connect: Connect,
    asked: DeliveryRequest,
    own: TransmissionKnowledge,
    newer: TransmissionKnowledge,
) -> None:
    await system.publish(newer)
    alone = DownlinkStub(connect(await system.start_edge(cloud_address=NOWHERE, redis_url="")))
    for edge, hash_ in ((alone, own.content_hash), (system.edge, newer.content_hash)):
        asked_for = GetTransmissionKnowledgeRequest(content_hash=hash_)
        answer = await clients.call(edge.GetTransmissionKnowledge, asked_for, "edge")
        assert TransmissionKnowledge.from_files(answer.files).content_hash == hash_
    for nothing in (
        GetTransmissionKnowledgeRequest(content_hash="0" * 64),
        GetTransmissionKnowledgeRequest(content_hash=newer.content_hash, base_hash="0" * 64),
    ):
        with pytest.raises(NotFoundError):
            await clients.call(system.edge.GetTransmissionKnowledge, nothing, "edge")


@pytest.mark.parametrize("damage", ["bit", "file", "other"])
async def test_a_damaged_copy_in_redis_is_not_used(
    system: System,
    asked: DeliveryRequest,
    own: TransmissionKnowledge,
    newer: TransmissionKnowledge,
    damage: str,
) -> None:
    await system.publish(newer)
    key = update_key(newer.content_hash)
    if damage == "bit":
        spoiled = bytearray(newer.to_files()["adapter_model.safetensors"])
        spoiled[-1] ^= 1
        await system.redis.hset(key, "adapter_model.safetensors", bytes(spoiled))
    elif damage == "file":
        await system.redis.hdel(key, "knowledge.json")
    else:
        await system.redis.hset(key, mapping=own.to_files())
    with capture_logs() as logs:
        image = await receive(system.user, asked)
    assert image.report.model_hashes["adapters"] == newer.content_hash
    assert sum(line["event"] == "transmission knowledge in Redis is damaged" for line in logs) == 1, (
        "who finds it makes room for a whole copy"
    )


async def test_what_does_not_fit_the_codec_is_refused(
    system: System, asked: DeliveryRequest, own: TransmissionKnowledge, tmp_path: Path, profile: Path
) -> None:
    stranger = tmp_path / "stranger"
    JsccCodec(width=16, blocks=1).save_pretrained(stranger)
    foreign = adapters(stranger, 3)
    with pytest.raises(MismatchError, match="fit the codec"):
        publish_adapters(foreign, system.store, own.base_hash)
    lying = foreign.with_info(base_hash=own.base_hash)
    await system.publish(lying)
    with capture_logs() as logs:
        image = await receive(system.user, asked)
    assert image.report.model_hashes["adapters"] == own.content_hash, "it goes on with those it has"
    assert any(line["event"] == "cannot use the current transmission knowledge" for line in logs)


class FaultyEdge(EdgeServicer):
    """Names adapters that it has, and hands out others, or none."""

    files: dict[str, bytes] | None = None

    async def GetTransmissionKnowledge(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.files is None:
            raise NotFoundError("gone")
        return GivenKnowledge(files=self.files)


@pytest.mark.parametrize("given", ["none", "other", "damaged", "foreign"])
async def test_a_user_refuses_adapters_that_are_not_what_the_header_names(
    system: System,
    start: Start,
    asked: DeliveryRequest,
    own: TransmissionKnowledge,
    newer: TransmissionKnowledge,
    profile: Path,
    dummy_profile: Path,
    given: str,
) -> None:
    settings = EdgeSettings(port=0, redis_url="", profile=str(profile), cloud_address=NOWHERE)
    faulty = FaultyEdge(settings)
    address = await start(faulty, add_DownlinkServicer_to_server, settings)
    user = await system.start_user(address, profile=str(dummy_profile), redis_url="")
    faulty.files = {
        "none": None,
        "other": newer.to_files(),
        "damaged": own.to_files() | {"adapter_model.safetensors": b"x"},
        "foreign": own.with_info(base_hash="0" * 64).to_files(),
    }[given]
    with pytest.raises(MismatchError):
        await receive(user, asked)
    assert (await receive(user, asked, delivery="semantic-unaligned")).png


async def test_edge_holds_a_bounded_number_of_versions(
    system: System, connect: Connect, asked: DeliveryRequest, own: TransmissionKnowledge, profile: Path
) -> None:
    edge = await system.start_edge(adapters_capacity=2)
    user = await system.start_user(edge, adapters_capacity=2)
    many = [own, *(adapters(profile / "codec", seed) for seed in (4, 5, 6))]
    first = []
    for knowledge in many:
        await system.publish(knowledge)
        first.append((await receive(user, asked)).png)
    for knowledge, png in zip(many, first, strict=True):
        await system.publish(knowledge)
        image = await receive(user, asked)
        assert image.png == png
        assert hops(image)["channel-user"] > knowledge.size_bytes, "it had been pushed out"


async def test_mixed_conditions_at_once_come_out_as_alone(system: System, asked: DeliveryRequest) -> None:
    links = [
        LinkConditions(snr_db=-5, fading="awgn"),
        LinkConditions(snr_db=5, fading="rayleigh", tau_rms_s=3e-7),
        LinkConditions(snr_db=15, fading="rayleigh", reported_snr_db=3),
        LinkConditions(snr_db=25, fading="awgn"),
    ]
    asks = [
        replace(asked, link=link, cbr=cbr, delivery=delivery, modulation=modulation)
        for link in links
        for cbr, delivery, modulation in (
            (1 / 96, "semantic", "qam64"),
            (1 / 300, "semantic", "qam64"),
            (1 / 700, "semantic", "unquantised"),
            (1 / 150, "semantic-unaligned", "qam64"),
            (1 / 100, "semantic-unaligned", "qam16"),
        )
    ]
    alone = [(await receive(system.user, each)).png for each in asks]
    assert len(set(alone)) == len(asks)
    for _ in range(3):
        together = await asyncio.gather(*(receive(system.user, each) for each in asks))
        assert [image.png for image in together] == alone


@pytest.mark.parametrize("modulation", ["qam4", "qam16", "qam64", "qam256", "unquantised"])
async def test_symbols_lie_where_the_modulation_says(
    system: System, asked: DeliveryRequest, modulation: Modulation
) -> None:
    sent = await provide(system.edge, asked, modulation=modulation)
    assert sent.symbols.abs().square().mean().item() == pytest.approx(1, abs=1e-4)
    points = torch.view_as_real(sent.symbols).round(decimals=4).unique().numel()
    order = {"qam4": 4, "qam16": 16, "qam64": 64, "qam256": 256}
    assert points <= order[modulation] ** 0.5 if modulation in order else points > 16
    image = await receive(system.user, asked, modulation=modulation)
    assert image.report.modulation == converters.MODULATIONS[modulation]


@pytest.mark.parametrize(
    ("target", "snr_db", "reported", "rate", "expected"),
    [
        (20, 10, None, 1 / 768, 20),  # 10 + 10 + 0
        (24, 10, None, 1 / 384, 24),
        (24, 0, 10, 1 / 384, 24),  # by what the sender was told
        (31, 10, None, 1 / 111, None),
        (60, 10, None, 1 / 96, 32),  # the best there is
    ],
)
async def test_the_smallest_rate_that_is_expected_to_reach_the_target(
    system: System,
    asked: DeliveryRequest,
    target: float,
    snr_db: float,
    reported: float | None,
    rate: float,
    expected: float | None,
) -> None:
    link = LinkConditions(snr_db=snr_db, reported_snr_db=reported)
    asked = replace(asked, width=128, height=128, cbr=0.0, target_psnr_db=target, link=link)
    report = (await receive(system.user, asked)).report
    assert report.target_psnr_db == target
    assert report.channel_uses / (3 * 128 * 128) == pytest.approx(rate, rel=0.03)
    assert report.cbr == pytest.approx(rate, rel=0.03)
    assert report.expected_psnr_db == pytest.approx(expected or target, abs=0.15)
    assert expected == 32 or report.expected_psnr_db >= target - 1e-9
    assert report.HasField("psnr_db")


async def test_a_rate_cannot_be_chosen_without_a_quality_model(
    system: System, asked: DeliveryRequest, newer: TransmissionKnowledge, dummy_profile: Path
) -> None:
    asked = replace(asked, cbr=0.0, target_psnr_db=20.0)
    await system.publish(newer)  # which says nothing of quality
    edge_without = await system.start_edge(profile=str(dummy_profile), redis_url="", cloud_address=NOWHERE)
    for user in (system.user, await system.start_user(edge_without, profile=str(dummy_profile))):
        with pytest.raises(InvalidInputError, match='"auto" needs transmission knowledge') as caught:
            await receive(user, asked)
        assert caught.value.field == "link.cbr"


async def test_rest_shows_current_adapters_and_the_chosen_rate(
    system: System, newer: TransmissionKnowledge, own: TransmissionKnowledge
) -> None:
    app = create_app(
        GatewaySettings(redis_url="", user_address=system.user_address, cloud_address=system.cloud_address)
    )
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost", timeout=60)
    async with app.router.lifespan_context(app), client:
        current = (await client.get("/v1/transmission")).json()
        assert (current["version"], current["versions"]) == (1, [1])
        assert current["content_hash"] == own.content_hash
        link = {"snr_db": 0, "reported_snr_db": 10, "cbr": "auto", "target_psnr_db": 24}
        ask = {"prompt": "a boat", "seed": 1, "link": link}
        answer = await client.post("/v1/images/generations", json=ask)
        assert answer.status_code == 200, answer.text
        report = answer.json()["data"][0]["link_report"]
        assert (report["snr_db"], report["reported_snr_db"], report["target_psnr_db"]) == (0, 10, 24)
        assert report["expected_psnr_db"] == pytest.approx(24, abs=0.15)
        assert report["cbr"] == pytest.approx(1 / 384, rel=0.03)
        assert report["psnr_db"] is not None
        assert report["model_hashes"]["adapters"] == own.content_hash
        await system.publish(newer)
        assert (await client.get("/v1/transmission")).json()["versions"] == [1, 2]


async def test_the_cloud_says_what_is_current(
    system: System, connect: Connect, own: TransmissionKnowledge, newer: TransmissionKnowledge
) -> None:
    cloud = CloudStub(connect(system.cloud_address))
    await system.publish(newer)
    answer = await clients.call(cloud.GetTransmissionKnowledge, GetTransmissionKnowledgeRequest(), "cloud")
    manifest = TransmissionManifest.from_proto(answer.manifest)
    assert (manifest.version, manifest.content_hash) == (2, newer.content_hash)
    assert (manifest.base_hash, manifest.size_bytes) == (own.base_hash, newer.size_bytes)
    assert manifest.scores == {"psnr_db": 22.5}
    assert list(answer.versions) == [1, 2]
    assert not answer.files
    other = GetTransmissionKnowledgeRequest(base_hash="0" * 64)
    with pytest.raises(NotFoundError):
        await clients.call(cloud.GetTransmissionKnowledge, other, "cloud")


async def test_a_cloud_that_starts_again_keeps_what_is_current(
    profile: Path, newer: TransmissionKnowledge, tmp_path: Path
) -> None:
    store = TransmissionStore(tmp_path)
    for _ in range(2):
        settings = CloudSettings(port=0, redis_url="", profile=str(profile), data_dir=tmp_path)
        async with starter() as start:
            await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
            store.publish(newer)
    assert [each.content_hash for each in store.versions(newer.base_hash).values()][1:] == [
        newer.content_hash
    ]
    assert store.find(newer.base_hash).version == 2


async def test_redis_mirrors_the_disk(
    tmp_path: Path, redis: Redis, own: TransmissionKnowledge, newer: TransmissionKnowledge
) -> None:
    store = TransmissionStore(tmp_path)
    assert await sync_adapters(store, redis) == []
    store.publish(own)
    assert await sync_adapters(store, redis) == [own.base_hash]
    assert await sync_adapters(store, redis) == []
    second = store.publish(newer)
    assert await sync_adapters(store, redis) == [own.base_hash]
    text = await redis.hget(TRANSMISSION_KEY, own.base_hash)
    assert TransmissionManifest.parse(text or b"") == second
    assert 0 < await redis.ttl(update_key(own.content_hash)) <= 3600, "edges and users may still fetch it"
    await redis.flushdb()
    assert await sync_adapters(store, redis) == [own.base_hash]
    files = await redis.hgetall(update_key(newer.content_hash))
    assert files == {name.encode(): data for name, data in newer.to_files().items()}


async def test_stray_files_are_no_version(tmp_path: Path, own: TransmissionKnowledge) -> None:
    store = TransmissionStore(tmp_path)
    for name, text in (("1", None), ("2", "{}"), (".new-3", "{}"), ("x", "{}")):
        (tmp_path / "transmission" / name).mkdir(parents=True)
        if text is not None:
            (tmp_path / "transmission" / name / "manifest.json").write_text(text)
    assert store.current() == {}
    assert store.publish(own).version == 3
    assert store.publish(own).version == 3, "it is current already"


async def test_publishing_from_the_command_line(
    tmp_path: Path,
    profile: Path,
    newer: TransmissionKnowledge,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DEKAG_PROFILE", str(profile))
    newer.save(tmp_path / "newer")
    assert main([str(tmp_path / "newer")]) == 0
    assert f"version 1 is current in {tmp_path / 'data'}: {newer.content_hash}" in capsys.readouterr().out
    weights = tmp_path / "newer" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main([str(tmp_path / "newer")]) == 1
    assert "damaged" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing")]) == 1
    assert main([]) == 2
