"""Knowledge on disk: whole or not at all, once for each job, mirrored to Redis whatever Redis lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dekag.errors import ConflictError, ExhaustedError, NotFoundError
from services.cloud import version_store
from services.cloud.housekeeping import Housekeeping, check_quotas
from services.cloud.owners import Owners
from services.cloud.redis_mirror import sync_knowledge
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore, figures
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
from tests.trust.killing import residue

pytestmark = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).parents[3]
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


async def test_a_writer_whose_basis_was_replaced_is_refused(store: KnowledgeStore) -> None:
    info = {"topic": "neon", "base_hash": "b" * 64, "triggers": ["neon"]}
    assert store.publish("job1", info, "a" * 64, {}, b"", after=0).version == 1
    with pytest.raises(ConflictError, match="version 0 of topic 'neon' is no longer current"):
        store.publish("job2", info, "c" * 64, {}, b"", after=0)
    assert store.publish("job2", info, "c" * 64, {}, b"", after=1).version == 2
    store.delete("neon")
    with pytest.raises(ConflictError, match="version 2"):
        store.publish("job3", info, "d" * 64, {}, b"", after=2)
    assert store.topics() == {}


async def test_earlier_versions_are_kept_up_to_a_number_and_an_age(store: KnowledgeStore) -> None:
    for number in range(5):
        publish(store, f"job{number}", content="abcde"[number])
    assert store.prune(keep=3, keep_s=0) == {"neon": [2, 1]}
    assert list(store.versions("neon")) == [3, 4, 5]
    assert store.prune(keep=3, keep_s=3600) == {}
    assert store.prune(keep=3, keep_s=1e-9) == {"neon": [4, 3]}
    assert store.find("neon").version == 5, "the current one is never deleted"
    assert publish(store, "job9").version == 6


KILLED = """
import os, sys
from pathlib import Path
from services.cloud.version_store import _staging
with _staging(Path(sys.argv[1])) as new:
    (new / "files").mkdir()
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
    print("ready", flush=True)
    sys.stdin.read()
"""


async def test_leftovers_of_killed_processes_are_swept_and_no_others(
    store: KnowledgeStore, tmp_path: Path
) -> None:
    root = tmp_path / "data" / "knowledge"
    publish(store, "job1")
    command = [sys.executable, "-c", KILLED, str(root)]
    killed = subprocess.run([*command, "killed"], cwd=ROOT)  # noqa: ASYNC221
    assert killed.returncode == -9
    assert len(list(root.glob(".new-*"))) == 1
    living = subprocess.Popen(  # noqa: ASYNC220
        [*command, "lives"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert living.stdout is not None
    assert living.stdout.readline() == "ready\n"
    (root / ".gone-1").mkdir()
    store.tidy(keep=10, keep_s=1e9)
    assert len(list(root.glob(".*"))) == 1, "that of the process that lives"
    living.communicate("")
    assert list(root.iterdir()) == [root / "neon"]


async def test_what_was_quarantined_or_set_aside_is_kept_up_to_a_number(
    store: KnowledgeStore, tmp_path: Path
) -> None:
    for number in range(3):
        publish(store, f"job{number}")
        store.quarantine("neon", 1)
        store.keep_aside(f"job{number}", {"knowledge.json": b"{}"}, b"PNG", f"topic{number}")
    data = tmp_path / "data"
    store.tidy(keep=2, keep_s=1e9)
    assert len(list((data / "knowledge" / "neon").iterdir())) == 2
    assert len(list((data / "aside").iterdir())) == 2
    store.tidy(keep=2, keep_s=-1)
    assert list((data / "knowledge").iterdir()) == list((data / "aside").iterdir()) == []


async def test_a_folder_of_a_topic_without_versions_is_deleted(store: KnowledgeStore, tmp_path: Path) -> None:
    publish(store, "job1")
    root = tmp_path / "data" / "knowledge"
    (root / "gone").mkdir()  # of a process that was killed before it published
    store.tidy(keep=10, keep_s=1e9)
    assert list(root.iterdir()) == [root / "neon"]


async def test_a_topic_is_published_while_folders_are_tidied(
    store: KnowledgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = version_store._Versions.commit

    def tidy_first(*given: Any) -> bool:
        monkeypatch.undo()
        store.tidy(keep=10, keep_s=1e9)
        return commit(*given)

    monkeypatch.setattr(version_store._Versions, "commit", tidy_first)
    assert publish(store, "job1").version == 1
    assert list(store.versions("neon")) == [1]


async def test_housekeeping_frees_the_places_of_what_was_killed(tmp_path: Path) -> None:
    settings = CloudSettings(data_dir=tmp_path, max_topics=1)
    (tmp_path / "knowledge" / "gone").mkdir(parents=True)
    (tmp_path / ".new-cloud.id").write_text("of a process that was killed")
    Owners(tmp_path).claim("gone", "alice", admin=False, exists=False)
    os.utime(tmp_path / "owners" / "gone", (1.0, 1.0))
    assert residue(tmp_path) == [".new-cloud.id", "knowledge/gone", "owners", "owners/gone"]
    with pytest.raises(ExhaustedError, match="1 topics"):
        check_quotas(settings, "neon")
    housekeeping = Housekeeping(settings)
    for _ in range(2):
        housekeeping.tidy()
    check_quotas(settings, "neon")
    assert residue(tmp_path) == ["owners"]


async def test_redis_holds_the_files_of_the_latest_updates_and_names_all(
    store: KnowledgeStore, redis: Redis
) -> None:
    big = "x" * 700_000
    info = {"base_hash": "b" * 64, "triggers": ["neon"]}
    for number, topic in enumerate(["first", "second"]):
        files = {"update.safetensors": big.encode()}
        store.publish(f"job{number}", {"topic": topic, **info}, "ac"[number] * 64, files, b"PNG")
    assert await sync_knowledge(store, redis, 1) == ["first", "second"]
    assert await sync_knowledge(store, redis, 1) == []
    assert sorted(await redis.hkeys(CATALOGUE_KEY)) == [b"first", b"second"]
    assert await redis.keys(update_key("*")) == [update_key("c" * 64).encode()]
    store.delete("second")
    assert await sync_knowledge(store, redis, 1) == ["first", "second"]
    assert await redis.hlen(update_key("a" * 64)) == 1


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


async def test_topics_read_no_more_than_the_highest_version_that_is_whole(
    store: KnowledgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for topic in ("neon", "snail"):
        for number in range(4):
            publish(store, f"job{number}", topic, content="abcd"[number])
    read: list[bytes] = []
    parse = Manifest.parse

    def counted(text: bytes) -> Manifest | None:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(Manifest, "parse", counted)
    assert {topic: each.version for topic, each in store.topics().items()} == {"neon": 4, "snail": 4}
    assert len(read) == 2
    (tmp_path / "data" / "knowledge" / "neon" / "4" / "manifest.json").write_text("{}")
    assert {topic: each.version for topic, each in store.topics().items()} == {"neon": 3, "snail": 4}
    assert len(read) == 2 + 3
    assert store.current_version("neon") == 3


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
    assert figures({"x" * 65: 1, "x" * 64: 2}) == {"x" * 64: 2}
    assert len(figures({str(number): number for number in range(1000)})) == 32
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
