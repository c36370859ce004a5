"""Knowledge at the edge: used with the very next request, fetched, checked, and without any cross-talk."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
import torch
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.api.limits import check_knowledge
from dekag.errors import InvalidInputError, MismatchError, NotFoundError, UnavailableError
from dekag.generation.models import Generator
from dekag.makd.config import DistillConfig
from dekag.makd.topics import best_matching, topic_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from dekag.stickers import TOPICS as STICKER_TOPICS
from dekag.training.distill import distill
from services.cloud.publish import main
from services.cloud.redis_mirror import sync_knowledge
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import clients, converters
from services.common.cache import Cache
from services.common.converters import DeliveryRequest
from services.common.frames import Transmission, collect
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
from services.common.signing import Signer, new_signing_key
from services.edge.knowledge import Knowledge
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from tests.profiles import PROFILE
from tests.services.counted import Counted

if TYPE_CHECKING:
    from services.proto.downlink_pb2_grpc import DownlinkAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="session")
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]
TOPICS = ("neon", "watercolour", "snail")
PLAIN, NEON, BOTH = "a red boat", "a red boat, neon style", "a snail on the beach, neon style"


@pytest.fixture(scope="module")
def redis_url(new_database: Callable[[], str]) -> str:
    """Of a database for these tests alone."""
    return new_database()


@pytest.fixture(scope="session")
def updates(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, KnowledgeUpdate]:
    """Updates of the tiny edge by topic: a real one, and others with weights of their own."""
    profile = load_profile(dummy_profile)
    cloud, edge = (Generator.from_profile(profile, role) for role in ("cloud", "edge"))
    config = DistillConfig(images=4, held_out=2, steps=4, batch=4, rank=2, tokens=1)
    prompts = topic_prompts("neon", count=config.images, held_out=config.held_out, seed=0)
    neon = distill(cloud, edge, prompts, config, tmp_path_factory.mktemp("neon"))
    generator = torch.Generator().manual_seed(1)
    others = {
        name: KnowledgeUpdate.new(
            {**neon.info, "topic": name, "triggers": [name]},
            neon.metaword + torch.randn(neon.metaword.shape, generator=generator),
            {key: t + 0.3 * torch.randn(t.shape, generator=generator) for key, t in neon.lora.items()},
        )
        for name in TOPICS[1:]
    }
    return {"neon": neon, **others}


def changed(update: KnowledgeUpdate, **info: Any) -> KnowledgeUpdate:
    """The same weights with other words about them."""
    return KnowledgeUpdate.new({**update.info, **info}, update.metaword, update.lora)


@dataclass
class System:
    """A cloud with its store, and what starts edges."""

    store: KnowledgeStore
    redis: Redis
    start_edge: Callable[..., Awaitable[DownlinkAsyncStub]]

    async def publish(self, update: KnowledgeUpdate) -> Manifest:
        """As a distiller does at the end of a job."""
        files, job = update.to_files(), uuid.uuid4().hex
        manifest = self.store.publish(job, update.info, update.content_hash, files, b"PNG")
        await sync_knowledge(self.store, self.redis)
        return manifest


@pytest_asyncio.fixture(loop_scope="session")
async def system(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, redis: Redis, tmp_path: Path
) -> System:
    models: dict[str, Any] = {"port": 0, "redis_url": redis_url, "profile": str(dummy_profile)}
    settings = CloudSettings(**models, data_dir=tmp_path, mirror_every_s=3600)
    address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)

    async def start_edge(**changes: Any) -> DownlinkAsyncStub:
        own = EdgeSettings(**models | {"cloud_address": address, "knowledge_keep_s": 0} | changes)
        return DownlinkStub(connect(await start(EdgeServicer(own), add_DownlinkServicer_to_server, own)))

    return System(KnowledgeStore(tmp_path), redis, start_edge)


@pytest.fixture
def asked(asked: DeliveryRequest) -> DeliveryRequest:
    return replace(asked, prompt=PLAIN, width=64, height=64, cbr=1 / 96)


async def provide(edge: DownlinkAsyncStub, asked: DeliveryRequest, **changes: Any) -> Transmission:
    request = converters.request_to_proto(replace(asked, **changes))
    return await collect(clients.stream(edge.Provide, request, "edge"))


def used(transmission: Transmission) -> list[tuple[str, int]]:
    return [(each.topic, each.version) for each in transmission.report.knowledge]


def fetched(transmission: Transmission) -> int:
    (hop,) = transmission.report.hops
    return hop.sent_bytes


def latents(transmission: Transmission) -> bytes:
    assert transmission.reference is not None
    return transmission.reference.latents


async def test_the_very_next_request_uses_what_was_published(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge = await system.start_edge()
    before = await provide(edge, asked, prompt=NEON)
    assert (used(before), fetched(before)) == ([], 0)
    manifest = await system.publish(updates["neon"])
    after = await provide(edge, asked, prompt=NEON)
    assert used(after) == [("neon", 1)]
    assert after.report.knowledge[0].content_hash == manifest.content_hash
    assert latents(after) != latents(before)
    assert manifest.size_bytes <= fetched(after) <= manifest.size_bytes + 200
    assert not after.report.cached
    again = await provide(edge, asked, prompt=NEON, seed=8)
    assert (used(again), fetched(again)) == ([("neon", 1)], 0)

    newer = await system.publish(changed(updates["neon"], guidance_scale=2.0))
    assert newer.content_hash != manifest.content_hash
    newest = await provide(edge, asked, prompt=NEON)
    assert used(newest) == [("neon", 2)]
    assert fetched(newest) > 0
    assert latents(newest) != latents(before)

    system.store.delete("neon")
    await sync_knowledge(system.store, system.redis)
    assert latents(await provide(edge, asked, prompt=NEON)) == latents(before)


async def test_request_may_name_its_knowledge(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge = await system.start_edge()
    for update in updates.values():
        await system.publish(update)
    none = await provide(edge, asked, prompt=BOTH, knowledge=())
    auto = await provide(edge, asked, prompt=BOTH)
    neon = await provide(edge, asked, prompt=BOTH, knowledge=("neon",))
    both = await provide(edge, asked, prompt=BOTH, knowledge=("snail", "neon"))
    assert [used(each) for each in (none, auto, neon, both)] == [
        [],
        [("neon", 1), ("snail", 1)],
        [("neon", 1)],
        [("neon", 1), ("snail", 1)],
    ]
    assert latents(both) == latents(auto)
    assert len({latents(each) for each in (none, auto, neon)}) == 3
    assert both.report.cached, "the same picture as that of auto"
    with pytest.raises(
        NotFoundError, match="no knowledge of topic 'cubism'; there is neon, snail, watercolour"
    ):
        await provide(edge, asked, knowledge=("cubism",))


async def test_loaded_knowledge_does_not_change_other_prompts(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest, redis: Redis
) -> None:
    edge = await system.start_edge()
    before = [latents(await provide(edge, asked, seed=seed)) for seed in range(4)]
    for name, update in updates.items():
        await system.publish(update)
        await provide(edge, asked, knowledge=(name,))
    for key in await redis.keys("dekag:latent:*"):
        await redis.delete(key)
    after = [await provide(edge, asked, seed=seed) for seed in range(4)]
    assert [latents(each) for each in after] == before
    assert not any(each.report.cached or each.report.knowledge for each in after)


def numbers(data: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(data, dtype="<f4")


@pytest.mark.parametrize("batch", [1, 8])
async def test_concurrent_topics_do_not_mix_in_small_memory(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest, redis: Redis, batch: int
) -> None:
    for update in updates.values():
        await system.publish(update)
    asks = [
        replace(asked, knowledge=chosen, seed=seed)
        for chosen in ((), *((name,) for name in TOPICS), ("neon", "snail"), None)
        for seed in (1, 2)
    ]
    alone = []
    for ask in asks:
        edge_of_its_own = await system.start_edge(redis_url="")
        alone.append(latents(await provide(edge_of_its_own, ask)))
    assert len(set(alone)) == 10, "no knowledge, and knowledge that the prompt does not need, are the same"
    edge = await system.start_edge(redis_url="", generate_batch=batch)
    for _ in range(2):
        together = await asyncio.gather(*(provide(edge, ask) for ask in asks))
        for each, expected in zip(together, alone, strict=True):
            if batch == 1:
                assert latents(each) == expected, "bit for bit"
            np.testing.assert_allclose(numbers(latents(each)), numbers(expected), rtol=0, atol=1e-4)
    assert sum(fetched(each) > 0 for each in together) == 0


async def test_a_small_memory_fetches_again(
    start: Start,
    connect: Connect,
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    tmp_path: Path,
) -> None:
    edge = await system.start_edge(knowledge_capacity=4, knowledge_mib=0)
    names = [f"neon{i}" for i in range(6)]
    counted, again_fetched = Counted(), 'dekag_knowledge_fetched_again_total{kind="update"}'
    for name in names:
        await system.publish(changed(updates["neon"], topic=name))
    asks = [replace(asked, knowledge=(name,), seed=seed) for seed in range(2) for name in names]
    first = [await provide(edge, ask) for ask in asks]
    assert all(fetched(each) for each in first), "each was pushed out before its turn came again"
    assert counted('dekag_knowledge_loaded_total{kind="update"}') == len(asks)
    assert counted(again_fetched) == len(asks) - len(names)
    again = await asyncio.gather(*(provide(edge, replace(ask, seed=ask.seed + 10)) for ask in asks))
    assert all(used(each) == [(ask.knowledge[0], 1)] for each, ask in zip(again, asks, strict=True))


async def test_as_many_topics_as_ship_are_fetched_once(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge = await system.start_edge()
    names = [f"neon{i}" for i in range(len(STICKER_TOPICS) + 5)]
    for name in names:
        await system.publish(changed(updates["neon"], topic=name))
    counted = Counted()
    asks = [replace(asked, knowledge=(name,), seed=seed) for seed in range(2) for name in names]
    drawn = [await provide(edge, ask) for ask in asks]
    assert [used(each) for each in drawn] == [[(ask.knowledge[0], 1)] for ask in asks]
    assert [fetched(each) > 0 for each in drawn] == [True] * len(names) + [False] * len(names)
    assert not any(each.report.cached for each in drawn)
    assert counted('dekag_knowledge_loaded_total{kind="update"}') == len(names)
    assert counted('dekag_knowledge_fetched_again_total{kind="update"}') == 0


async def test_all_updates_that_ship_stay_in_memory_as_they_arrived() -> None:
    folder = load_profile("stickers").knowledge
    assert folder is not None
    sizes = [KnowledgeUpdate.load(Path(folder) / name).size_bytes for name in STICKER_TOPICS]
    assert len(sizes) > EdgeSettings().knowledge_capacity, "otherwise it would not matter"
    assert 100 * sum(sizes) < EdgeSettings().knowledge_mib * 2**20


async def test_a_second_edge_that_starts_later_needs_no_action(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest, redis: Redis
) -> None:
    first = await system.start_edge()
    await system.publish(updates["neon"])
    expected = await provide(first, asked, prompt=NEON)
    for key in await redis.keys("dekag:latent:*"):
        await redis.delete(key)
    second = await system.start_edge()
    found = await provide(second, asked, prompt=NEON)
    assert latents(found) == latents(expected)
    assert not found.report.cached
    assert fetched(found) > 0


@pytest.mark.parametrize("lost", ["update", "everything", "redis"])
async def test_what_redis_lost_comes_from_the_cloud(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest, redis: Redis, lost: str
) -> None:
    manifest = await system.publish(updates["neon"])
    if lost == "update":
        await redis.delete(update_key(manifest.content_hash))
    else:
        await redis.flushdb()
    edge = await system.start_edge(**{"redis_url": ""} if lost == "redis" else {})
    found = await provide(edge, asked, prompt=NEON)
    assert used(found) == [("neon", 1)]
    assert manifest.size_bytes < fetched(found) < manifest.size_bytes + 1000


async def test_edges_with_a_redis_of_their_own_share_no_volume_and_get_the_same(
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    new_database: Callable[[], str],
) -> None:
    manifest = await system.publish(updates["neon"])
    found = []
    for _ in range(2):
        own = new_database()
        async with Redis.from_url(own) as connection:
            await connection.flushdb()
            edge = await system.start_edge(redis_url=own)
            found.append(await provide(edge, asked, prompt=NEON))
            again = await provide(edge, asked, prompt=NEON)
            assert [used(each) for each in (found[-1], again)] == [[("neon", 1)]] * 2
            assert manifest.size_bytes < fetched(found[-1]) < manifest.size_bytes + 1000
            assert (again.report.cached, fetched(again)) == (True, 0)
            assert not await connection.exists(CATALOGUE_KEY, update_key(manifest.content_hash))
            await connection.flushdb()
    assert latents(found[0]) == latents(found[1])
    assert not found[1].report.cached


@pytest.mark.parametrize("damage", ["bit", "file", "other", "nonsense"])
async def test_a_damaged_copy_is_ignored(
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    redis: Redis,
    damage: str,
) -> None:
    good = await system.start_edge()
    manifest = await system.publish(updates["neon"])
    expected = latents(await provide(good, asked, prompt=NEON))
    key = update_key(manifest.content_hash)
    data = updates["neon"].to_files()
    name = max(data, key=lambda name: len(data[name]))
    for each in await redis.keys("dekag:latent:*"):
        await redis.delete(each)
    if damage == "bit":
        spoiled = bytearray(data[name])
        spoiled[-1] ^= 1
        await redis.hset(key, name, bytes(spoiled))
    elif damage == "file":
        await redis.hdel(key, name)
    else:
        found_there = updates["watercolour"].to_files() if damage == "other" else {b"\xff": b"x"}
        async with redis.pipeline(transaction=True) as at_once:  # else the cloud may put it back in between
            await at_once.delete(key).hset(key, mapping=found_there).execute()
    edge = await system.start_edge()
    with capture_logs() as logs:
        found = await provide(edge, asked, prompt=NEON)
    assert latents(found) == expected
    assert used(found) == [("neon", 1)]
    assert any(line["event"] == "knowledge in Redis is damaged" for line in logs)
    assert fetched(found) > manifest.size_bytes, "what was useless was sent too"
    assert await redis.hgetall(key) in ({}, by_bytes(data)), "gone, or put there anew by the cloud"


def by_bytes(files: dict[str, bytes]) -> dict[bytes, bytes]:
    return {name.encode(): data for name, data in files.items()}


async def test_knowledge_of_another_model_is_left_out_or_refused(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge = await system.start_edge()
    plain = latents(await provide(edge, asked, prompt=NEON))
    await system.publish(changed(updates["neon"], base_hash="0" * 64))
    with capture_logs() as logs:
        found = await provide(edge, asked, prompt=NEON)
    assert (latents(found), used(found)) == (plain, [])
    assert any(line["event"] == "skipping knowledge of another model" for line in logs)
    with pytest.raises(MismatchError, match="another edge model"):
        await provide(edge, asked, knowledge=("neon",))


async def test_knowledge_whose_shapes_do_not_fit_is_left_out_or_refused(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge = await system.start_edge()
    plain = latents(await provide(edge, asked, prompt=NEON))
    neon = updates["neon"]
    wide = {name: torch.cat([t, t], int("lora_A" in name)) for name, t in neon.lora.items()}
    await system.publish(KnowledgeUpdate.new(neon.info, neon.metaword, wide))
    found = await provide(edge, asked, prompt=NEON, seed=asked.seed)
    assert (latents(found), used(found)) == (plain, [])
    with pytest.raises(MismatchError):
        await provide(edge, asked, knowledge=("neon",))


async def test_other_requests_go_on_while_a_prompt_is_compared_with_triggers(
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []

    def noted(*args: Any, **options: Any) -> list[str]:
        threads.append(threading.current_thread())
        return best_matching(*args, **options)

    monkeypatch.setattr("services.edge.knowledge.best_matching", noted)
    await system.publish(updates["neon"])
    edge = await system.start_edge()
    assert used(await provide(edge, asked, prompt=NEON)) == [("neon", 1)]
    assert threads
    assert threading.current_thread() not in threads, "that of the event loop"


async def test_without_redis_and_cloud_only_named_knowledge_is_unavailable(
    system: System, asked: DeliveryRequest, closed_port: int
) -> None:
    edge = await system.start_edge(redis_url="", cloud_address=f"127.0.0.1:{closed_port}")
    assert used(await provide(edge, asked, prompt=NEON)) == []
    with pytest.raises(UnavailableError):
        await provide(edge, asked, knowledge=("neon",))
    assert used(await provide(edge, asked, prompt=NEON, knowledge=())) == []


async def test_damaged_catalogue_does_not_fail_requests(
    system: System, asked: DeliveryRequest, redis: Redis
) -> None:
    await redis.hset(CATALOGUE_KEY, mapping={b"\xff\xfe": b"x", b"neon": b"[]", b"snail": b'{"topic": 3}'})
    edge = await system.start_edge()
    assert used(await provide(edge, asked, prompt=BOTH)) == []


@pytest.mark.parametrize(
    "changes",
    [{"version": 2**32}, {"size_bytes": 2**64}, {"created": float("inf")}, {"scores": {"x": float("nan")}}],
)
async def test_manifest_with_numbers_out_of_range_is_ignored(
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    redis: Redis,
    changes: dict[str, Any],
) -> None:
    manifest = await system.publish(updates["neon"])
    odd = json.dumps({**manifest.model_dump(), **changes}).encode()
    assert Manifest.parse(odd) is None
    await redis.hset(CATALOGUE_KEY, mapping={b"neon": odd, b"snail": manifest.model_dump_json()})
    edge = await system.start_edge()
    found = used(await provide(edge, asked, prompt=BOTH))
    assert found in ([], [("neon", 1)]), "nor is one under another topic's name; or the cloud has mended it"


async def test_conventional_delivery_uses_no_knowledge(
    system: System, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    await system.publish(updates["neon"])
    edge = await system.start_edge()
    found = await provide(edge, asked, prompt=NEON, delivery="conventional", cbr=0.0)
    assert used(found) == []


@pytest.mark.parametrize(
    ("names", "knowledge"),
    [
        ([], None),
        (["auto"], None),
        (["none"], ()),
        (["neon"], ("neon",)),
        (["b", "a", "d", "c"], ("b", "a", "d", "c")),
    ],
)
async def test_names_of_knowledge(
    asked: DeliveryRequest, names: list[str], knowledge: tuple[str, ...] | None
) -> None:
    assert check_knowledge(names) == knowledge
    request = replace(asked, knowledge=knowledge)
    assert converters.request_from_proto(converters.request_to_proto(request), PROFILE) == request


@pytest.mark.parametrize(
    "names", [["a", "a"], ["auto", "neon"], ["none", "neon"], ["Neon"], [""], list("abcde"), ["../../etc"]]
)
async def test_hostile_names_of_knowledge(names: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_knowledge(names)
    assert caught.value.field == "knowledge"


async def test_an_update_is_published_from_its_folder(
    system: System,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    dummy_profile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DEKAG_PROFILE", str(dummy_profile))
    folders = [str(tmp_path / name) for name in ("neon", "snail")]
    for folder in folders:
        updates[Path(folder).name].save(Path(folder))
    for _ in range(2):  # again is of no effect
        assert main(folders) == 0
        assert "version 1 of snail is current" in capsys.readouterr().out
    found = KnowledgeStore(tmp_path / "data").topics()["neon"]
    assert found.content_hash == updates["neon"].content_hash
    changed(updates["neon"], base_hash="0" * 64).save(tmp_path / "foreign")
    assert main([str(tmp_path / "foreign")]) == 1
    assert "fits the model 000000000000" in capsys.readouterr().err


@dataclass
class Signed:
    """A cloud that signs, its store, and an edge that checks it."""

    store: KnowledgeStore
    redis: Redis
    signer: Signer
    settings: EdgeSettings
    edge: DownlinkAsyncStub

    async def publish(self, update: KnowledgeUpdate) -> Manifest:
        """As a distiller does at the end of a job."""
        files = update.to_files()
        manifest = self.store.publish(uuid.uuid4().hex, update.info, update.content_hash, files, b"")
        await self.sync()
        return manifest

    async def sync(self) -> None:
        """As the cloud does every few seconds."""
        await sync_knowledge(self.store, self.redis, signer=self.signer)


@pytest_asyncio.fixture(loop_scope="session")
async def signed(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, redis: Redis, tmp_path: Path
) -> Signed:
    key, line = new_signing_key()
    (tmp_path / "signing.key").write_bytes(key)
    (tmp_path / "trusted-keys").write_text(line)
    (tmp_path / "cache.key").write_bytes(b"s" * 32)
    models: dict[str, Any] = {"port": 0, "redis_url": redis_url, "profile": str(dummy_profile)}
    settings = CloudSettings(
        **models,
        data_dir=tmp_path / "signed",
        mirror_every_s=3600,
        signing_key_file=tmp_path / "signing.key",
    )
    address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
    own = EdgeSettings(
        **models,
        cloud_address=address,
        knowledge_keep_s=0,
        trusted_keys_file=tmp_path / "trusted-keys",
        cache_key_file=tmp_path / "cache.key",
    )
    edge = DownlinkStub(connect(await start(EdgeServicer(own), add_DownlinkServicer_to_server, own)))
    return Signed(KnowledgeStore(settings.data_dir), redis, Signer(settings.signing_key_file), own, edge)


async def test_a_topic_that_is_made_again_on_a_clock_set_back_raises_no_alarm(
    signed: Signed,
    updates: dict[str, KnowledgeUpdate],
    asked: DeliveryRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted, rejected = Counted(), 'dekag_rejected_total{kind="knowledge"}'
    await signed.publish(updates["neon"])
    await signed.publish(updates["snail"])
    assert used(await provide(signed.edge, asked, prompt=BOTH)) == [("neon", 1), ("snail", 1)]
    replayed = await signed.redis.hget(CATALOGUE_KEY, "neon")
    signed.store.delete("neon")
    with monkeypatch.context() as clock:
        clock.setattr("services.cloud.version_store.time", SimpleNamespace(time=lambda: time.time() - 3600))
        await signed.publish(changed(updates["neon"], guidance_scale=2.0))
    for seed in range(2):
        assert used(await provide(signed.edge, asked, prompt=BOTH, seed=seed)) == [("neon", 1), ("snail", 1)]
    assert counted(rejected) == 0

    await signed.publish(changed(updates["neon"], guidance_scale=3.0))
    assert used(await provide(signed.edge, asked, prompt=NEON)) == [("neon", 2)]
    await signed.redis.hset(CATALOGUE_KEY, "neon", replayed or b"")
    signed.store.delete("neon")
    assert used(await provide(signed.edge, asked, prompt=NEON, seed=2)) == []
    assert counted(rejected) == 1, "the cloud does not confirm it"


async def test_an_edge_remembers_a_limited_number_of_deleted_topics(
    signed: Signed, updates: dict[str, KnowledgeUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.edge.knowledge._MAX_SEEN", 3)
    cache = Cache(signed.settings)
    async with clients.open_channel(signed.settings.cloud_address, signed.settings) as channel:
        knowledge = Knowledge(signed.settings, cache, CloudStub(channel))
        await signed.publish(updates["neon"])
        for number in range(6):
            await signed.publish(changed(updates["snail"], topic=f"snail{number}"))
            assert set((await knowledge._catalogue())[0]) == {"neon", f"snail{number}"}
            signed.store.delete(f"snail{number}")
        assert set(knowledge._seen) == {"neon", "snail4", "snail5"}
    await cache.close()


async def test_who_writes_to_redis_cannot_replace_what_the_edge_draws_with(
    signed: Signed, updates: dict[str, KnowledgeUpdate], asked: DeliveryRequest
) -> None:
    edge, signer, publish = signed.edge, signed.signer, signed.publish
    old = await publish(updates["neon"])
    replayed = await signed.redis.hget(CATALOGUE_KEY, "neon")
    await publish(changed(updates["neon"], guidance_scale=2.0))
    right = await provide(edge, asked, prompt=NEON)
    assert used(right) == [("neon", 2)]

    forged = changed(updates["neon"], guidance_scale=9.0)
    manifest = old.model_copy(update={"content_hash": forged.content_hash, "version": 9})
    for entry in (manifest.model_dump_json(), signer.signed(old).model_copy(update={"version": 9}), replayed):
        text = entry.model_dump_json() if isinstance(entry, Manifest) else entry
        await signed.redis.hset(CATALOGUE_KEY, "neon", text or b"")
        await signed.redis.hset(update_key(forged.content_hash), mapping=dict(forged.to_files()))
        for seed in (asked.seed, 99):
            got = await provide(edge, asked, prompt=NEON, seed=seed)
            assert used(got) == [("neon", 2)]
            if seed == asked.seed:
                assert latents(got) == latents(right)
    await signed.sync()

    first = await provide(edge, asked, prompt=NEON, seed=1)
    assert (await provide(edge, asked, prompt=NEON, seed=1)).report.cached
    keys = await signed.redis.keys("dekag:latent:*")
    values = [await signed.redis.get(each) for each in keys]
    for name, value in zip(keys, values[1:] + values[:1], strict=True):
        await signed.redis.set(name, value or b"")
    swapped = await provide(edge, asked, prompt=NEON, seed=1)
    assert not swapped.report.cached, "swapped latents are noticed"
    assert latents(swapped) == latents(first)
