"""A Redis that answers PING and does not do what is needed: health says so and why, as refusals do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from structlog.testing import capture_logs

from services.cli.doctor import redis as doctor_of_redis
from services.cloud.distiller import Distiller
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings, DistillerSettings
from services.common import redis_state
from services.common.cache import Cache
from services.common.healthcheck import healthy
from services.common.redis_state import RedisProbe
from services.common.settings import CommonSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.launcher import stack as launcher
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server
from tests.chain import ended, serving, starter
from tests.processes import free_port, running_redis

pytestmark = pytest.mark.asyncio(loop_scope="session")
FULL = "refuses to write, as its memory is full (maxmemory)"
REPLICA = "refuses to write, as it is a read-only replica (READONLY)"
UNSAVED = "refuses to write, as it could not save to its disk (MISCONF)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("redis")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """Of a Redis of its own, whose settings a test may change."""
    with running_redis(folder) as port:
        yield port


@pytest.fixture
def admin(port: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """That Redis, as it was again after the test; and nothing waits before it looks again."""
    monkeypatch.setattr(redis_state, "CHECK_INTERVAL_S", 0.0)
    with Redis(port=port, decode_responses=True) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("save", "")
        client.config_set("dir", str(folder))
        client.execute_command("ACL", "DELUSER", "limited")
        client.config_set("requirepass", "")
        client.flushall()


def fill(admin: Redis) -> None:
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", 1)


def make_replica(admin: Redis) -> None:
    admin.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))


def fail_to_save(admin: Redis) -> None:
    """As a full disk would: Redis cannot save what it holds, and refuses to take more."""
    admin.set("held", "1")
    admin.config_set("dir", "/proc")
    admin.config_set("save", "1 1")
    admin.bgsave()
    deadline = time.monotonic() + 30
    while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def limit(admin: Redis, *rules: str) -> None:
    admin.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "+@all", *rules)


BROKEN: list[tuple[Callable[[Redis], None], str, str]] = [
    (fill, "", FULL),
    (make_replica, "", REPLICA),
    (fail_to_save, "", UNSAVED),
    (lambda admin: limit(admin, "-set"), "limited:pw@", "denies its user this operation"),
    (lambda admin: limit(admin, "resetkeys", "~other:*"), "limited:pw@", "denies its user this operation"),
    (lambda admin: limit(admin), "limited:wrong@", "rejects the user or the password"),
    (lambda admin: admin.config_set("requirepass", "pw") and admin.auth("pw"), "", "requires one"),  # type: ignore[arg-type]
]
NAMES = ["full", "replica", "unsaved", "no-set", "other-keys", "wrong-password", "no-password"]


@pytest.mark.parametrize(("spoil", "user", "said"), BROKEN, ids=NAMES)
async def test_redis_that_rejects_writes_is_reported(
    admin: Redis, port: int, spoil: Callable[[Redis], None], user: str, said: str
) -> None:
    if not user:
        cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{port}/0"))
        assert await cache.problem() == ""
        await cache.close()
    await asyncio.to_thread(spoil, admin)
    cache = Cache(CommonSettings(redis_url=f"redis://{user}127.0.0.1:{port}/0"))
    assert said in await cache.problem()
    with capture_logs() as logs:
        await cache.set("dekag:report:x", b"1", 60)
    assert said in logs[0]["redis"]
    await cache.close()


async def test_missing_database_and_foreign_server_are_reported(admin: Redis, port: int) -> None:
    cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{port}/99"))
    assert "does not have the database number" in await cache.problem()
    with capture_logs() as logs:  # it was taken for a key of another type, without a word
        assert await cache.get("x") is None
    assert "does not have the database number" in logs[0]["redis"]
    await cache.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    other = server.sockets[0].getsockname()[1]
    cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{other}/0"))
    assert "something else answers" in await cache.problem()
    await cache.close()
    server.close()


async def test_scripts_and_deletes_are_tried_only_where_needed(admin: Redis, port: int) -> None:
    limit(admin, "-eval")
    async with AsyncRedis.from_url(f"redis://limited:pw@127.0.0.1:{port}/0") as redis:
        assert await RedisProbe(redis, "dekag:outcome:").problem() == ""
        assert "eval" in await RedisProbe(redis, "dekag:outcome:", scripts=True).problem()
        limit(admin, "-del")
        assert "del" in await RedisProbe(redis, "dekag:outcome:").problem()
        assert await RedisProbe(redis, "dekag:outcome:", deletes=False).problem() == ""


async def test_redis_is_tried_once_a_second_and_nothing_stays(
    admin: Redis, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_state, "CHECK_INTERVAL_S", 1000.0)
    admin.config_resetstat()
    async with AsyncRedis.from_url(f"redis://127.0.0.1:{port}/0") as redis:
        redis_probe = RedisProbe(redis, "dekag:report:", deletes=False)
        assert set(await asyncio.gather(*(redis_probe.problem() for _ in range(50)))) == {""}
    assert admin.info("commandstats")["cmdstat_set"]["calls"] == 1
    (key,) = admin.keys()
    assert key.startswith("dekag:report:")
    assert 0 < admin.ttl(key) <= 5


@asynccontextmanager
async def system(profile: Path, port: int, data_dir: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A cloud and a gateway that use the Redis of the test; there is no user service."""
    async with starter() as start:
        url = f"redis://127.0.0.1:{port}/0"
        settings = CloudSettings(port=0, redis_url=url, profile=str(profile), data_dir=data_dir)
        cloud = await start(CloudServicer(settings), add_CloudServicer_to_server, settings, "cloud")
        of_gateway = GatewaySettings(
            redis_url=url, cloud_address=cloud, user_address=f"127.0.0.1:{free_port()}"
        )
        async with serving(create_app(of_gateway)) as client:
            yield client


async def test_readiness_reports_and_jobs_say_what_redis_really_answered(
    admin: Redis, port: int, folder: Path, dummy_profile: Path, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    async with system(dummy_profile, port, data_dir) as client:

        async def found() -> tuple[dict[str, str], dict[str, str]]:
            for _ in range(5):  # on a busy machine, a health check may take longer than its limit
                answer = (await client.get("/readyz")).json()
                if answer["checks"]["cloud"] == "serving":
                    break
            return answer["checks"], answer["reasons"]

        well = {"user": "unreachable", "cloud": "serving", "distillation": "serving", "redis": "up"}
        assert (await found())[0] == well
        assert (await client.get("/v1/reports/nobody")).status_code == 404
        order = {"topic": "neon", "images": 8}
        for spoil, said in ((fill, FULL), (fail_to_save, UNSAVED), (make_replica, REPLICA)):
            await asyncio.to_thread(spoil, admin)
            checks, reasons = await found()
            assert checks == well | {"distillation": "not_serving", "redis": "down"}
            assert reasons["redis"] == f"Redis {said}"
            assert reasons["distillation"] == f"distillation needs Redis, which {said}"
            kept = await client.get("/v1/reports/nobody")
            assert (kept.status_code, kept.json()["detail"]) == (
                503,
                f"reports are kept in Redis, which {said}",
            )
            started = await client.post("/v1/knowledge", json=order)
            assert started.status_code == 503, started.text
            assert started.json()["detail"] == f"distillation needs Redis, which {said}"
            admin.config_set("maxmemory", 0)
            admin.config_set("save", "")
            admin.config_set("dir", str(folder))
            admin.execute_command("REPLICAOF", "NO", "ONE")
            assert (await found())[0] == well, "and it recovers"

        # the disk is no matter of Redis's
        data_dir.rename(tmp_path / "gone")
        data_dir.write_text("a file in its place")
        checks, reasons = await found()
        assert checks == well | {"distillation": "not_serving"}
        assert reasons["distillation"].startswith(f"DEKAG_DATA_DIR {data_dir} cannot be written: ")
        started = await client.post("/v1/knowledge", json=order)
        assert started.status_code == 503
        assert "DEKAG_DATA_DIR" in started.json()["detail"]
        assert "Redis" not in started.json()["detail"]


async def test_reasons_are_for_those_with_a_key(admin: Redis, port: int, tmp_path: Path) -> None:
    from services.gateway.api_keys import new_key

    key, line = new_key("alice")
    (file := tmp_path / "keys").write_text(line)
    nobody = f"127.0.0.1:{free_port()}"
    settings = GatewaySettings(
        api_keys_file=file, redis_url="none", user_address=nobody, cloud_address=nobody
    )
    async with serving(create_app(settings)) as client:
        told = (await client.get("/readyz", headers={"Authorization": f"Bearer {key}"})).json()
        assert told["reasons"]["user"] == "the user service cannot be reached"
        for headers in ({}, {"Authorization": "Bearer dekag_wrong"}):
            untold = (await client.get("/readyz", headers=headers)).json()
            assert untold == told | {"reasons": {}}


async def test_a_distiller_is_unhealthy_while_redis_refuses_and_says_why(
    admin: Redis, port: int, dummy_profile: Path, tmp_path: Path
) -> None:
    fill(admin)
    alive = tmp_path / "alive"
    settings = DistillerSettings(
        redis_url=f"redis://127.0.0.1:{port}/0",
        profile=str(dummy_profile),
        data_dir=tmp_path / "data",
        health_file=alive,
    )

    async def until(what: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not what():  # noqa: ASYNC110 - a file and a log have no event
                await asyncio.sleep(0.05)

    with capture_logs() as logs:
        working = asyncio.create_task(Distiller(settings).serve())
        await until(lambda: [line for line in logs if line["event"] == f"no job can run: Redis {FULL}"])
        assert not healthy(f"file:{alive}")
        admin.config_set("maxmemory", 0)
        await until(lambda: healthy(f"file:{alive}"))
        await ended(working)


async def test_doctor_and_launcher_try_the_redis_that_is_named(
    admin: Redis, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEKAG_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    assert (await asyncio.to_thread(doctor_of_redis)).ok
    fill(admin)
    wrong = await asyncio.to_thread(doctor_of_redis)
    assert not wrong.ok
    assert FULL in wrong.detail
    with pytest.raises(launcher.LaunchError, match="DEKAG_REDIS_URL refuses to write"):
        launcher.Stack(tmp_path, free_ports=True)._start_redis({})
