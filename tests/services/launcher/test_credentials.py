"""`dekag credentials`: certificates that are renewed, and users of Redis that may do what they must only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.retry import Retry
from typer.testing import CliRunner

from dekag.errors import InvalidInputError
from services.cli import main as cli
from services.cloud.distiller import Distiller
from services.cloud.settings import DistillerSettings
from services.common.security import CA, CERTIFICATE
from services.common.settings import CommonSettings
from services.common.signing import SIGNING_KEY
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import NAMES, PASSWORD, USERS, make_credentials
from tests.chain import ended, forget_orders, serving, start_chain, starter
from tests.processes import running_redis
from tests.services.launcher.redis_only import RedisOnly

ONCE = Retry(NoBackoff(), 0)
PATH = "/v1/images/generations"
ASK = {"prompt": "a boat", "size": "64x64", "seed": 1}


def certificate(home: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((home / CERTIFICATE).read_bytes())


def test_credentials_are_made_once_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    run = CliRunner().invoke
    first = run(cli.app, ["credentials", str(tmp_path / "new"), "--name", "box.example.org"])
    assert first.exit_code == 0, first.output
    files = {file: file.read_bytes() for file in (tmp_path / "new").rglob("*") if file.is_file()}
    assert {file.parent.name for file in files} == {*NAMES, "ca"}
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file
        assert file.parent.stat().st_mode & 0o077 == 0, file
    again = run(cli.app, ["credentials", str(tmp_path / "new"), "--name", "box.example.org"])
    assert "all certificates are valid" in again.output
    assert {file: file.read_bytes() for file in files} == files
    changed = run(cli.app, ["credentials", str(tmp_path / "new")], env={"DEKAG_HOSTNAMES": "other 10.0.0.9"})
    assert "created certificates for proxy, gateway\n" in changed.output
    names = certificate(tmp_path / "new" / "gateway").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["gateway", "localhost", "other"]
    assert run(cli.app, ["credentials", str(tmp_path / "new"), "--name", "a b"]).exit_code == 2
    lost = tmp_path / "new" / "distiller" / SIGNING_KEY
    lost.unlink()
    assert run(cli.app, ["credentials", str(tmp_path / "new")]).exit_code == 0
    assert lost.read_bytes() == files[tmp_path / "new" / "cloud" / SIGNING_KEY], "made again, not replaced"


def test_a_certificate_is_renewed_before_it_ends_and_its_authority_stays(tmp_path: Path) -> None:
    make_credentials(tmp_path, days=29)
    authority, old = (tmp_path / "ca" / CA).read_bytes(), certificate(tmp_path / "edge")
    passwords = [(tmp_path / name / PASSWORD).read_bytes() for name in ("edge", "cloud")]
    assert sorted(make_credentials(tmp_path)) == sorted(NAMES)
    new = certificate(tmp_path / "edge")
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert (tmp_path / "ca" / CA).read_bytes() == authority
    assert [(tmp_path / name / PASSWORD).read_bytes() for name in ("edge", "cloud")] == passwords
    assert make_credentials(tmp_path) == []
    (tmp_path / "ca" / "ca.key").unlink()  # another authority signs all of them
    assert sorted(make_credentials(tmp_path)) == sorted(NAMES)
    assert (tmp_path / "edge" / CA).read_bytes() == (tmp_path / "ca" / CA).read_bytes() != authority


def test_a_name_that_no_certificate_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="host name"):
        make_credentials(tmp_path, names=["*.example.org"])


@pytest.fixture(scope="module")
def guarded(credentials_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a Redis with the users of the credentials, and one that may see what was denied."""
    home = tmp_path_factory.mktemp("guarded")
    users = home / USERS
    users.write_text((credentials_dir / "redis" / USERS).read_text() + "user admin on >admin ~* &* +@all\n")
    password = (credentials_dir / "redis" / PASSWORD).read_text()
    with running_redis(home, "--aclfile", str(users), username="health", password=password) as port:
        yield port


def as_user(port: int, credentials_dir: Path, name: str) -> Redis:
    home = {"health": "redis"}.get(name, name)
    return Redis(port=port, username=name, password=(credentials_dir / home / PASSWORD).read_text())


def test_redis_refuses_connections_without_password(guarded: int, credentials_dir: Path) -> None:
    for options in (
        {},
        {"password": "x"},
        *({"username": name, "password": "x"} for name in ("edge", "health")),
    ):
        with Redis(port=guarded, retry=ONCE, **options) as stranger, pytest.raises(AuthenticationError):
            stranger.get("dekag:knowledge")
    with as_user(guarded, credentials_dir, "health") as health:
        assert health.set("dekag:health", b"1", ex=60)
        with pytest.raises(NoPermissionError):
            health.set("dekag:knowledge", b"1")


@pytest.mark.parametrize("name", ["gateway", "user", "edge", "cloud", "distiller"])
def test_redis_users_are_limited_to_the_needs_of_their_service(
    guarded: int, credentials_dir: Path, name: str
) -> None:
    mine = {
        "gateway": "dekag:report:x",
        "user": "dekag:transmission",
        "edge": "dekag:latent:x",
        "cloud": "dekag:image:x",
        "distiller": "saq:x",
    }
    with as_user(guarded, credentials_dir, name) as redis:
        redis.ping()
        if name in ("user", "edge"):
            assert redis.delete("dekag:update:x") == 0
        for key in set(mine.values()) - {mine[name], "dekag:transmission", "saq:x"}:
            with pytest.raises(NoPermissionError):
                redis.get(key)
        for command in (
            "FLUSHALL",
            "KEYS *",
            "CONFIG GET *",
            "ACL LIST",
            "SHUTDOWN",
            "MONITOR",
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*command.split())
        with pytest.raises(ResponseError):  # Redis 7 refuses it to everybody, before it asks for permission
            redis.execute_command("DEBUG", "SLEEP", "0")
        if name in ("gateway", "user", "edge"):
            for command in ("SCAN 0", "HSET dekag:update:x a b", "EVAL 1 0", "PUBLISH saq:x 1", "GET saq:x"):
                with pytest.raises(NoPermissionError):
                    redis.execute_command(*command.split())


async def test_services_work_with_their_limited_redis_users(
    guarded: int, credentials_dir: Path, scored_profile: Path, tmp_path: Path
) -> None:
    def own(name: str) -> dict[str, Any]:
        url = f"redis://{name}@127.0.0.1:{guarded}/0"
        data = {"data_dir": tmp_path} if name in ("cloud", "distiller") else {}
        return {"redis_url": url, "redis_password_file": credentials_dir / name / PASSWORD, **data}

    forget_orders()
    with Redis(port=guarded, username="admin", password="admin", decode_responses=True) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        async with starter() as start:
            addresses = await start_chain(start, scored_profile, "", own)
            settings = GatewaySettings(
                user_address=addresses["user"],
                cloud_address=addresses["cloud"],
                watch_share=1.0,
                watch_min_psnr_db=0.0,
                **own("gateway"),
            )
            worker = DistillerSettings(profile=str(scored_profile), distill_threads=1, **own("distiller"))
            distilling = asyncio.create_task(Distiller(worker).serve())
            async with serving(create_app(settings)) as client:
                order = {"topic": "neon", "images": 4, "steps": 4, "rank": 1, "tokens": 1, "force": True}
                job = (await client.post("/v1/knowledge", json=order)).json()
                async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
                    last = [line async for line in events.aiter_lines() if line.startswith("data:")][-1]
                assert json.loads(last.removeprefix("data:"))["status"] == "finished"
                (update,) = admin.keys("dekag:update:*")
                for name in admin.hkeys(update):  # edges delete a damaged copy
                    admin.hset(update, name, "damaged")
                for body in (ASK | {"knowledge": "neon"}, ASK | {"delivery": "conventional"}):
                    for cached in (False, True):
                        made = await client.post(PATH, json=body)
                        assert made.json()["data"][0]["link_report"]["cached"] == cached
                async with asyncio.timeout(60):
                    while not admin.exists("dekag:consistency"):  # noqa: ASYNC110 - compared in the background
                        await asyncio.sleep(0.05)
                kept = await client.get(f"/v1/reports/{made.headers['x-request-id']}")
                assert kept.status_code == 200
                other = (await client.post("/v1/knowledge", json=order | {"topic": "vaporwave"})).json()
                assert (await client.delete(f"/v1/jobs/{other['id']}")).status_code == 200
                assert (await client.get("/v1/jobs")).json()["data"]
                assert (await client.delete("/v1/knowledge/neon")).status_code == 204
                assert (await client.get("/readyz")).json()["checks"]["redis"] == "up"
            await ended(distilling)
        denied = {entry["object"] for entry in admin.acl_log() if entry["username"] in NAMES}
        assert {what.split("|")[0] for what in denied} <= {"client"}, "the driver's name is not asked for"


def test_launcher_hides_the_redis_password_from_command_lines(tmp_path: Path) -> None:
    with RedisOnly(tmp_path, free_ports=True) as stack:
        for _ in stack.wait_ready(60):
            pass
        child = stack["redis"]
        with Redis(port=child.port, retry=ONCE) as stranger, pytest.raises(AuthenticationError):
            stranger.get("x")
        with Redis.from_url(stack.redis_url) as known:
            assert known.ping()
        password = stack.redis_url.split(":")[2].split("@")[0]
        assert len(password) > 40
        assert password not in Path(f"/proc/{child.process.pid}/cmdline").read_text()
        assert not [file for file in tmp_path.iterdir() if password in file.read_text()], "nor any file"
    assert password not in child.log.read_text()


async def test_settings_do_not_show_the_password_of_redis() -> None:
    settings = CommonSettings(redis_url="redis://:secret@127.0.0.1/0")
    assert "secret" not in repr(settings)
