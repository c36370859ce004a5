"""Knowledge damaged on the cloud's disk is restored from Redis, or put aside."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.cala.artifact import TransmissionKnowledge
from dekag.errors import NotFoundError
from dekag.makd.update import KnowledgeUpdate
from services.cloud.redis_mirror import sync_adapters, sync_knowledge
from services.cloud.repair import Repair
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLES = b"a picture"
NO_ADAPTERS = TransmissionStore(Path("/nowhere"))


@pytest.fixture
def redis(own_redis: Redis) -> Redis:
    return own_redis


@pytest.fixture
def store(tmp_path: Path) -> KnowledgeStore:
    """Two versions of neon, of different content, and one of snail."""
    store = KnowledgeStore(tmp_path / "data")
    for job, (topic, seed) in enumerate((("neon", 1), ("neon", 2), ("snail", 3))):
        update = update_of(topic, seed)
        store.publish(str(job), update.info, update.content_hash, update.saved_files(), SAMPLES)
    return store


def update_of(topic: str, seed: int) -> KnowledgeUpdate:
    """An untrained update."""
    generator = torch.Generator().manual_seed(seed)
    info = {"topic": topic, "triggers": [topic], "base_hash": "b" * 64, "guidance_scale": 1.5}
    lora = {
        "layer.lora_A.weight": torch.randn(4, 64, generator=generator),
        "layer.lora_B.weight": torch.randn(64, 4, generator=generator),
    }
    history = {"prompts": [f"a {topic} boat"], "scores": {"clip_after": 0.5}}
    return KnowledgeUpdate.new(info, torch.zeros(0, 0), lora, bits=4, history=history)


def flip_a_byte(folder: Path) -> None:
    path = max((folder / "files").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = next((folder / "files").iterdir())
    path.write_bytes(path.read_bytes()[:10])


def lose_a_file(folder: Path) -> None:
    next((folder / "files").iterdir()).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"{")


DAMAGE = [flip_a_byte, truncate, lose_a_file, garble_the_manifest]
Damage = Callable[[Path], None]


def folder_of(store: KnowledgeStore, manifest: Manifest) -> Path:
    return next(
        folder
        for topic, version, folder in store.folders()
        if (topic, version) == (manifest.topic, manifest.version)
    )


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damaged_version_is_restored_from_redis(
    store: KnowledgeStore, redis: Redis, damage: Damage
) -> None:
    await sync_knowledge(store, redis)
    manifest = store.find("neon")
    files = store.files(manifest)
    repair = Repair(store, NO_ADAPTERS, redis)
    await repair.check()
    damage(folder_of(store, manifest))
    await repair.check()
    assert store.find("neon") == manifest
    assert store.files(manifest) == files
    assert store.samples(manifest) == SAMPLES
    assert KnowledgeUpdate.from_files(files | store.history(manifest)).history["prompts"] == ["a neon boat"]
    assert await sync_knowledge(store, redis) == []
    assert store.versions("neon").keys() == {1, 2}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("copy", ["none", "no redis", "damaged", "of another version"])
async def test_unrecoverable_version_is_set_aside_for_its_predecessor(
    store: KnowledgeStore, redis: Redis, damage: Damage, copy: str
) -> None:
    latest, before = store.find("neon"), store.versions("neon")[1]
    if copy == "damaged":
        await sync_knowledge(store, redis)
        await redis.hset(update_key(latest.content_hash), "knowledge.json", b"{}")
    elif copy == "of another version":
        await redis.hset(CATALOGUE_KEY, "neon", before.model_dump_json())
    damage(folder_of(store, latest))
    await Repair(store, NO_ADAPTERS, None if copy == "no redis" else redis).check()
    assert store.versions("neon") == {1: before}
    assert await sync_knowledge(store, redis) != []
    assert Manifest.parse(await redis.hget(CATALOGUE_KEY, "neon") or b"") == before
    aside = list((store.folders()[0][2].parent).glob(".damaged-2-*"))
    assert len(aside) == 1, "people can still look at it"


async def test_a_version_of_another_format_is_set_aside_with_what_to_do(store: KnowledgeStore) -> None:
    update = update_of("neon", 4)
    old = KnowledgeUpdate.new({**update.info, "format": 1}, torch.zeros(0, 0), update.lora)
    store.publish("old", old.info, old.content_hash, old.to_files(), SAMPLES)
    with capture_logs() as logs:
        await Repair(store, NO_ADAPTERS, None).check()
    assert store.find("neon").version == 2
    (said,) = [line["why"] for line in logs if line["event"] == "damaged knowledge quarantined"]
    assert "format 1, which is no longer read: make it anew, with `dekag distill neon`" in said


async def test_topic_without_any_intact_version_disappears_alone(store: KnowledgeStore) -> None:
    flip_a_byte(folder_of(store, store.find("snail")))
    await Repair(store, NO_ADAPTERS, None).check()
    with pytest.raises(NotFoundError):
        store.find("snail")
    assert store.find("neon").version == 2


async def test_full_check_finds_damage_that_keeps_the_file_date(store: KnowledgeStore, redis: Redis) -> None:
    await sync_knowledge(store, redis)
    manifest = store.find("neon")
    files, folder = store.files(manifest), folder_of(store, manifest)
    repair = Repair(store, NO_ADAPTERS, redis)
    await repair.check()
    dates = {path: path.stat().st_mtime_ns for path in (folder / "files").iterdir()}
    flip_a_byte(folder)
    for path, date in dates.items():  # as a disk that reads other bits than were written
        os.utime(path, ns=(date, date))
    await repair.check()
    assert store.files(manifest) != files
    await repair.verify()
    assert store.files(manifest) == files


async def overwrite(redis: Redis, key: str) -> None:
    await redis.hset(key, "knowledge.json", b"{}")


async def lose_a_field(redis: Redis, key: str) -> None:
    await redis.hdel(key, "knowledge.json")


async def write_a_text(redis: Redis, key: str) -> None:
    await redis.set(key, b"a text where files should be")


@pytest.mark.parametrize("damage", [overwrite, lose_a_field, write_a_text])
async def test_a_damaged_copy_in_redis_is_written_anew(
    store: KnowledgeStore,
    redis: Redis,
    tmp_path: Path,
    damage: Callable[[Redis, str], Awaitable[None]],
) -> None:
    transmission = TransmissionStore(tmp_path / "data")
    adapters = transmission.publish(TransmissionKnowledge.load("models/stickers/cala"))
    repair = Repair(store, transmission, redis)

    async def mirrored() -> None:
        await sync_knowledge(store, redis)
        await sync_adapters(transmission, redis)

    await mirrored()
    damaged = [update_key(each.content_hash) for each in (store.find("neon"), adapters)]
    whole = update_key(store.find("snail").content_hash)
    before = {key: await redis.hgetall(key) for key in (*damaged, whole)}
    await repair.verify()
    for key in damaged:
        assert await redis.exists(key), "what is whole stays"
        await damage(redis, key)
    await mirrored()
    await repair.verify()
    assert not await redis.exists(*damaged)
    assert await redis.exists(whole)
    await mirrored()
    assert {key: await redis.hgetall(key) for key in (*damaged, whole)} == before


async def test_what_is_deleted_during_a_look_stays_deleted(
    store: KnowledgeStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sync_knowledge(store, redis)
    seen = store.folders()
    store.delete("neon")
    monkeypatch.setattr(store, "folders", lambda: seen)
    await Repair(store, NO_ADAPTERS, redis).check()
    assert store.topics().keys() == {"snail"}


async def test_what_is_deleted_just_before_it_is_restored_stays_deleted(store: KnowledgeStore) -> None:
    manifest = store.find("neon")
    files = store.files(manifest)
    store.delete("neon")
    store.restore(manifest, files)
    assert store.topics().keys() == {"snail"}
    assert not list((folder_of(store, store.find("snail")).parents[1]).glob(".new-*"))
