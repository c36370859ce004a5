"""One cloud for each data folder, and one data folder for each Redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dekag.errors import UnavailableError
from services.cloud.demand import BUDGET_KEY, DEMAND_KEY
from services.cloud.distiller import Distiller
from services.cloud.drift import CONSISTENCY_KEY
from services.cloud.leases import LEASE_KEY, FolderLease, RedisLease, other_cloud
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings, DistillerSettings
from services.common import clients
from services.common.errors import SettingError
from services.common.knowledge import CATALOGUE_KEY
from services.proto.cloud_pb2 import DecideRequest, DistillRequest
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from tests.chain import starter
from tests.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")
Settings = Callable[..., CloudSettings]
QUEUED = "saq:distill:queued"
HELD = "the cloud of another data folder .process {} on .*, DEKAG_DATA_DIR {}.* uses the same Redis"


@pytest_asyncio.fixture(loop_scope="session")
async def redis(new_database: Callable[[], str]) -> AsyncIterator[Redis]:
    async with Redis.from_url(new_database()) as redis:
        yield redis


@pytest.fixture
def settings(dummy_profile: Path, redis: Redis, tmp_path: Path) -> Settings:
    """Of a cloud with a data folder of that name."""
    of_redis = redis.connection_pool.connection_kwargs
    url = f"redis://{of_redis['host']}:{of_redis['port']}/{of_redis['db']}"

    def make(folder: str, **changes: object) -> CloudSettings:
        given = {"port": 0, "redis_url": url, "profile": str(dummy_profile), "data_dir": tmp_path / folder}
        return CloudSettings(**given | {"mirror_every_s": 0.1} | changes)

    return make


async def until(servicer: CloudServicer, *, may_write: bool) -> None:
    """Waits until that cloud knows whether it may write to Redis."""
    async with asyncio.timeout(60):
        while bool((await servicer.parts())["distillation"]) == may_write:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_folder_has_one_cloud_and_keeps_its_name(tmp_path: Path) -> None:
    first = FolderLease(tmp_path / "new" / "data")
    with pytest.raises(SettingError, match=f"another cloud .process {os.getpid()} on .* uses DEKAG_DATA_DIR"):
        FolderLease(tmp_path / "new" / "data")
    first.close()
    again, other = FolderLease(tmp_path / "new" / "data"), FolderLease(tmp_path / "other")
    assert again.name == first.name != other.name
    again.close()
    other.close()


async def test_the_lease_of_redis_is_one_folders_until_it_ends(redis: Redis, tmp_path: Path) -> None:
    mine, theirs = (RedisLease(redis, name, tmp_path / name, 60) for name in ("mine", "theirs"))
    assert await mine.take() == await mine.take() == ""
    assert str(tmp_path / "mine") in await theirs.take()
    await theirs.give_back()
    assert await RedisLease(redis, "mine", tmp_path, 60).take() == "", "a cloud that crashed starts again"
    await mine.give_back()
    assert await theirs.take() == ""
    assert await mine.take()
    assert 0 < await redis.pttl(LEASE_KEY) <= 60_000
    await redis.pexpire(LEASE_KEY, 1)
    await asyncio.sleep(0.05)
    assert await mine.take() == "", "the other crashed, and does not start again"


async def test_a_distiller_waits_while_redis_is_another_folders(
    redis: Redis, settings: Settings, tmp_path: Path
) -> None:
    theirs, mine = settings("theirs"), settings("mine")
    (lease := FolderLease(mine.data_dir)).close()
    assert await other_cloud(redis, mine.data_dir) == "", "no cloud is there"
    held = RedisLease(redis, lease.name, mine.data_dir, 600)
    await held.take()
    assert await other_cloud(redis, mine.data_dir) == "", "its own cloud is"
    assert str(mine.data_dir) in await other_cloud(redis, theirs.data_dir), "a folder without a cloud yet"
    given = {name: getattr(theirs, name) for name in ("redis_url", "profile", "data_dir")}
    health = tmp_path / "healthy"
    distiller = Distiller(DistillerSettings(**given, health_file=health, distill_threads=1))
    serving = asyncio.create_task(distiller.serve())
    await redis.rpush(QUEUED, "theirs")  # type: ignore[misc]  # typed for both clients
    await asyncio.sleep(3)
    assert not health.exists()
    assert await redis.lrange(QUEUED, 0, -1) == [b"theirs"]  # type: ignore[misc]
    await held.give_back()
    async with asyncio.timeout(60):
        while not health.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    serving.cancel()
    await asyncio.wait({serving})


@pytest.mark.parametrize("value", [b"", b"\xff\xfe" * 500, b"one-word", b" "])
async def test_any_value_can_be_in_redis(redis: Redis, tmp_path: Path, value: bytes) -> None:
    await redis.set(LEASE_KEY, value, px=1000)
    reason = await RedisLease(redis, "mine", tmp_path, 1).take()
    assert len(reason) < 600


async def test_a_cloud_with_another_folder_does_not_start(redis: Redis, settings: Settings) -> None:
    one, two = settings("one"), settings("two")
    async with starter() as start:
        await start(CloudServicer(one), add_CloudServicer_to_server, one)
        with pytest.raises(SettingError, match=HELD.format(os.getpid(), one.data_dir)):
            await start(CloudServicer(two), add_CloudServicer_to_server, two)
    assert await redis.get(LEASE_KEY) is None, "given back"
    async with starter() as start:
        await start(CloudServicer(two), add_CloudServicer_to_server, two)


async def test_a_cloud_whose_redis_became_anothers_neither_writes_nor_distils(
    redis: Redis, settings: Settings, tmp_path: Path
) -> None:
    """As after a failure of Redis, during which both started."""
    async with starter() as start:
        servicer = CloudServicer(mine := settings("mine"))
        address = await start(servicer, add_CloudServicer_to_server, mine)
        await redis.flushdb()
        await redis.set(LEASE_KEY, f"other process 1 on far, DEKAG_DATA_DIR {tmp_path}")
        await until(servicer, may_write=False)
        for key in (CATALOGUE_KEY, DEMAND_KEY, CONSISTENCY_KEY):
            await redis.hset(key, "theirs", b"{}")  # type: ignore[misc]  # typed for both clients
        order = DistillRequest(topic="snail")
        async with clients.open_channel(address, mine) as channel:
            with pytest.raises(UnavailableError, match=HELD.format(1, tmp_path)):
                await clients.call(CloudStub(channel).Distill, order, "cloud")
            asked = DecideRequest(topics=["snail"])
            await clients.call(CloudStub(channel).Decide, asked, "cloud")
        await asyncio.sleep(5 * mine.mirror_every_s)
        for key in (CATALOGUE_KEY, DEMAND_KEY, CONSISTENCY_KEY):
            assert await redis.hkeys(key) == [b"theirs"], key  # type: ignore[misc]  # as above
        assert not await redis.exists(BUDGET_KEY, QUEUED)
        await redis.delete(LEASE_KEY)
        await until(servicer, may_write=True)


async def test_a_folder_without_room_gets_its_name_later(tmp_path: Path) -> None:
    (tmp_path / ".new-cloud.id").mkdir()  # so that none can be written
    lease = FolderLease(tmp_path)
    assert not (tmp_path / "cloud.id").exists()
    (tmp_path / ".new-cloud.id").rmdir()
    lease.keep_name()
    assert (tmp_path / "cloud.id").read_text() == lease.name
    lease.close()
    (tmp_path / "cloud.id").write_bytes(b"\xff one two")
    again = FolderLease(tmp_path)
    assert (tmp_path / "cloud.id").read_text() == again.name != lease.name
    again.close()


async def test_a_cloud_starts_and_stops_without_redis(settings: Settings) -> None:
    away = settings("data", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    async with starter() as start:
        await start(CloudServicer(away), add_CloudServicer_to_server, away)
