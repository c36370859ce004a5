"""Knowledge on disk: whole or not at all, once for each job, mirrored to Redis whatever Redis lost."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis.asyncio import Redis

from dekag.errors import NotFoundError
from services.cloud.redis_mirror import sync_knowledge
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore, figures
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key

pytestmark = pytest.mark.asyncio(loop_scope="session")
HISTORY = b'{"prompts": ["a red boat"], "scores": {"loss": 0.5}}'


def publish(store: KnowledgeStore, job: str, topic: str = "neon", content: str = "a") -> Manifest:
    info = {"topic": topic, "base_hash": "b" * 64, "triggers": ["neon"]}
    files = {"knowledge.json": b"{}", "update.safetensors": content.encode(), "history.json": HISTORY}
    return store.publish(job, info, content * 64, files, b"PNG" + content.encode())


@pytest.fixture
def redis(own_redis: Redis) -> Redis:
    return own_redis


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeStore:
    return KnowledgeStore(tmp_path / "data")


async def test_versions_count_up_and_the_highest_is_current(store: KnowledgeStore) -> None:
    assert store.topics() == {}
    first, second = publish(store, "job1", content="a"), publish(store, "job2", content="c")
    assert (first.version, second.version) == (1, 2)
    assert store.topics() == {"neon": second}
    assert store.find("neon") == second
    assert store.find("neon", first.content_hash) == first
    assert list(store.versions("neon")) == [1, 2]
    assert store.files(first) == {"knowledge.json": b"{}", "update.safetensors": b"a"}
    assert store.history(first) == {"history.json": HISTORY}
    assert first.scores == {"loss": 0.5}
    assert first.size_bytes == 3, "what edges receive"
    assert store.samples(second) == b"PNGc"


async def test_a_job_publishes_once(store: KnowledgeStore) -> None:
    first = publish(store, "job1")
    assert publish(store, "job1") == first
    assert store.made_by("neon", "job1") == first
    assert store.made_by("neon", "job2") is None
    assert list(store.versions("neon")) == [1]


async def test_workers_that_publish_at_once_get_versions_of_their_own(store: KnowledgeStore) -> None:
    start = threading.Barrier(8)

    def work(i: int) -> int:
        start.wait()
        return publish(store, f"job{i}", content="abcdef01"[i]).version

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(1, 9))


async def test_missing_topic_or_version_is_named(store: KnowledgeStore) -> None:
    with pytest.raises(NotFoundError, match="none yet"):
        store.find("neon")
    publish(store, "job1", topic="snail")
    with pytest.raises(NotFoundError, match="there is snail"):
        store.find("neon")
    with pytest.raises(NotFoundError, match="content hash"):
        store.find("snail", "f" * 64)


async def test_delete_leaves_nothing(store: KnowledgeStore, tmp_path: Path) -> None:
    manifest = publish(store, "job1")
    store.delete("neon")
    assert store.topics() == {}
    assert not list((tmp_path / "data" / "knowledge").iterdir())
    with pytest.raises(NotFoundError):
        store.delete("neon")
    with pytest.raises(NotFoundError):
        store.files(manifest)


async def test_half_written_and_damaged_versions_are_not_seen(store: KnowledgeStore, tmp_path: Path) -> None:
    first = publish(store, "job1")
    folder = tmp_path / "data" / "knowledge" / "neon"
    (folder / "2").mkdir()
    (folder / "3").mkdir()
    (folder / "3" / "manifest.json").write_text("{}")
    assert store.find("neon") == first


async def test_the_places_of_what_is_no_version_are_not_taken(store: KnowledgeStore, tmp_path: Path) -> None:
    first = publish(store, "job1")
    folder = tmp_path / "data" / "knowledge" / "neon"
    for name, manifest in {
        "2": b"garbage \xff",
        "3": first.model_dump_json().encode(),  # says to be another version
        "4": first.model_copy(update={"version": 4, "topic": "../../x"}).model_dump_json().encode(),
        "9999999999999999999999": b"{}",
        "\u0663": b"{}",
        "\u00b2": b"{}",
    }.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_bytes(manifest)
    assert list(store.versions("neon")) == [1]
    assert publish(store, "job2", content="c").version == 5
    assert store.find("neon").job == "job2"


async def test_scores_that_no_json_holds_are_left_out(store: KnowledgeStore) -> None:
    scores = {"a": 1, "b": float("nan"), "c": 10**400, "d": "x", "e": 0.5, "f": float("-inf")}
    assert figures(scores) == {"a": 1, "e": 0.5}
    info = {"topic": "neon", "base_hash": "b" * 64, "triggers": ["neon"]}
    for job, history in enumerate((b"{}", b"[]", b"{", b'{"scores": []}', b'{"scores": {"a": NaN}}')):
        files = {"knowledge.json": b"{}", "history.json": history}
        assert store.publish(str(job), info, "a" * 64, files, b"").scores == {}
    manifest = store.publish("without", info, "a" * 64, {"knowledge.json": b"{}"}, b"")
    assert (manifest.scores, store.history(manifest)) == ({}, {})


async def test_redis_mirrors_the_disk(store: KnowledgeStore, redis: Redis) -> None:
    first, snail = publish(store, "job1"), publish(store, "job2", topic="snail", content="d")
    assert await sync_knowledge(store, redis) == ["neon", "snail"]
    assert await sync_knowledge(store, redis) == []
    assert Manifest.parse(await redis.hget(CATALOGUE_KEY, "neon") or b"") == first
    files = await redis.hgetall(update_key(first.content_hash))
    assert files == {name.encode(): data for name, data in store.files(first).items()}
    assert b"history.json" not in files

    second = publish(store, "job3", content="e")
    assert await sync_knowledge(store, redis) == ["neon"]
    assert Manifest.parse(await redis.hget(CATALOGUE_KEY, "neon") or b"") == second
    assert 0 < await redis.ttl(update_key(first.content_hash)) <= 3600, "edges may still be fetching it"

    for loss in (
        redis.flushdb(),
        redis.delete(update_key(snail.content_hash)),
        redis.hset(CATALOGUE_KEY, "snail", b"{}"),
        redis.hset(CATALOGUE_KEY, "ghost", snail.model_dump_json()),
    ):
        await loss
        assert await sync_knowledge(store, redis)
        assert set(await redis.hgetall(CATALOGUE_KEY)) == {b"neon", b"snail"}
        assert await redis.exists(update_key(snail.content_hash), update_key(second.content_hash)) == 2
        assert await sync_knowledge(store, redis) == []

    store.delete("snail")
    await sync_knowledge(store, redis)
    assert set(await redis.hgetall(CATALOGUE_KEY)) == {b"neon"}


async def test_a_cloud_that_is_looking_at_redis_ends_all_the_same(redis_url: str, tmp_path: Path) -> None:
    for step in range(40):
        settings = CloudSettings(redis_url=redis_url, data_dir=tmp_path, mirror_every_s=3600)
        cloud = CloudServicer(settings)
        await asyncio.sleep(step / 4000)  # until its first look is at another point
        async with asyncio.timeout(60):
            await cloud.close()


async def test_invalid_catalogue_in_redis_is_replaced(store: KnowledgeStore, redis: Redis) -> None:
    manifest = publish(store, "job1")
    await redis.hset(CATALOGUE_KEY, mapping={b"\xff\xfe": b"\x00", b"neon": b"\xff", b"": b"{}"})
    assert sorted(await sync_knowledge(store, redis)) == ["", "neon", "\ufffd\ufffd"]
    assert set(await redis.hgetall(CATALOGUE_KEY)) == {b"neon"}
    assert await sync_knowledge(store, redis) == []
    for make in (redis.set(CATALOGUE_KEY, b"x"), redis.rpush(CATALOGUE_KEY, b"x")):
        await redis.delete(CATALOGUE_KEY)
        await make
        assert await sync_knowledge(store, redis) == ["neon"]
        assert Manifest.parse(await redis.hget(CATALOGUE_KEY, "neon") or b"") == manifest
