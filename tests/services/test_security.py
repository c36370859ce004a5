"""No port is open to everyone beyond loopback; services ask for certificates, Redis for users."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import pytest_asyncio
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from typer.testing import CliRunner

from dekag import cli
from dekag.client import Client, UnreachableError
from dekag.errors import InvalidInputError, NotFoundError
from services.cloud.settings import DistillerSettings
from services.cloud.worker import Distiller
from services.common import metrics
from services.common.healthcheck import healthy
from services.common.security import CA, CERTIFICATE, KEY, SettingError, check_exposure, is_loopback, read
from services.common.server import Server
from services.common.settings import CommonSettings
from services.gateway.app import create_app
from services.gateway.keys import new_key
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import NAMES, PASSWORD, USERS, make_credentials
from services.launcher.stack import SERVICES, Stack
from services.proto.cloud_pb2 import ListJobsRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub
from tests.conftest import _redis_server, free_port
from tests.services.conftest import _start_chain, serving, starter

ONCE = Retry(NoBackoff(), 0)
PATH = "/v1/images/generations"
ASK = {"prompt": "a boat", "size": "64x64", "seed": 1}
KEY_OF_ALICE, LINE = new_key("alice")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials of all services."""
    made = tmp_path_factory.mktemp("credentials")
    make_credentials(made)
    return made


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials that another authority made."""
    made = tmp_path_factory.mktemp("foreign")
    make_credentials(made)
    return made


class Nothing(DownlinkServicer):
    """A service that can start."""

    def load(self) -> None: ...

    async def close(self) -> None: ...


# --- beyond loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
async def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
async def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "published_on", "refused"),
    [
        ("127.0.0.1", "", False),
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("", "", True),
        ("10.0.0.1", "", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("0.0.0.0", "nowhere", False),
    ],
)
async def test_a_port_that_anyone_reaches_is_refused_unless_it_is_safe(
    host: str, published_on: str, refused: bool
) -> None:
    settings = CommonSettings(host=host, published_on=published_on)
    check_exposure(settings, host, "it", safe=True, mend="x")
    if not refused:
        check_exposure(settings, host, "it", safe=False, mend="x")
        return
    with pytest.raises(SettingError, match="do this"):
        check_exposure(settings, host, "it", safe=False, mend="do this")


async def test_a_service_does_not_listen_beyond_loopback_without_tls(folder: Path) -> None:
    port = free_port()
    server = Server(CommonSettings(host="0.0.0.0", port=port), Nothing(), add_DownlinkServicer_to_server)
    with pytest.raises(SettingError, match="dekag credentials"):
        await server.start()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await server.stop()
    settings = CommonSettings(host="0.0.0.0", port=0, tls_dir=folder / "edge")
    safe = Server(settings, Nothing(), add_DownlinkServicer_to_server)
    assert await safe.start()
    await safe.stop()


@pytest.mark.parametrize("service", [*SERVICES, "metrics"])
def test_a_process_says_what_would_make_it_safe_and_ends(service: str, closed_port: int) -> None:
    environment = {"DEKAG_HOST": "0.0.0.0", "DEKAG_PORT": str(closed_port), "DEKAG_REDIS_URL": ""}
    if service == "metrics":
        environment |= {"DEKAG_HOST": "127.0.0.1", "DEKAG_METRICS_HOST": "::", "DEKAG_METRICS_PORT": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{'channel' if service == 'metrics' else service}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert line["level"] == "error"
    assert "docs/security.md" in line["event"]
    assert ("dekag key" if service == "gateway" else "dekag credentials") in line["event"]
    assert "Traceback" not in ended.stderr


def test_a_gateway_whose_port_is_published_on_loopback_starts_without_keys(closed_port: int) -> None:
    environment = {"DEKAG_HOST": "0.0.0.0", "DEKAG_PORT": str(closed_port), "DEKAG_REDIS_URL": ""}
    environment["DEKAG_PUBLISHED_ON"] = "127.0.0.1"
    process = subprocess.Popen([sys.executable, "-m", "services.gateway"], env=os.environ | environment)
    try:
        deadline = time.monotonic() + 120
        while not healthy(f"http://127.0.0.1:{closed_port}/healthz"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(60)


# --- mutual TLS


@dataclass
class Secured:
    """A chain whose services ask for certificates, behind a gateway that asks for keys over HTTPS."""

    addresses: dict[str, str]
    client: httpx2.AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(
    dummy_profile: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Secured]:
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(LINE)
    async with starter() as start:
        addresses = await _start_chain(start, dummy_profile, "", lambda name: {"tls_dir": folder / name})
        settings = GatewaySettings(
            redis_url="",
            user_address=addresses["user"],
            cloud_address=addresses["cloud"],
            tls_dir=folder / "gateway",
            https_dir=folder / "gateway",
            api_keys_file=keys,
        )
        async with serving(create_app(settings), ca_file=folder / "gateway" / CA) as client:
            yield Secured(addresses, client)


def shown(home: Path | None, authority: Path) -> grpc.ChannelCredentials:
    """Credentials of a client that believes ``authority``, with a certificate only if there is a home."""
    (root,) = read(authority, CA)
    certificate, key = read(home, CERTIFICATE, KEY) if home else (None, None)
    return grpc.ssl_channel_credentials(root, key, certificate)


async def answers(channel: grpc.aio.Channel, service: str) -> dict[str, grpc.StatusCode]:
    """What the three things that each port offers say."""

    async def own() -> None:
        match service:
            case "cloud":
                await CloudStub(channel).ListJobs(ListJobsRequest())
            case "user":
                await UserStub(channel).Receive(ProvideRequest())
            case _:
                await DownlinkStub(channel).Provide(ProvideRequest()).read()

    async def health() -> None:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    async def reflection() -> None:
        call = ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ServerReflectionRequest(list_services="")])
        )
        await call.read()
        call.cancel()

    found = {}
    for ask in (own, health, reflection):
        try:
            await ask()
            found[ask.__name__] = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            found[ask.__name__] = error.code()
    return found


@pytest.mark.parametrize("service", ["user", "channel", "edge", "cloud"])
async def test_a_service_turns_away_who_shows_no_certificate(
    secured: Secured, folder: Path, foreign: Path, service: str
) -> None:
    address = secured.addresses[service]
    refused = dict.fromkeys(("own", "health", "reflection"), grpc.StatusCode.UNAVAILABLE)
    async with grpc.aio.insecure_channel(address) as channel:
        assert await answers(channel, service) == refused
    for home in (None, foreign / "user"):
        async with grpc.aio.secure_channel(address, shown(home, folder / "user")) as channel:
            assert await answers(channel, service) == refused
    async with grpc.aio.secure_channel(address, shown(folder / "user", foreign / "user")) as channel:
        assert await answers(channel, service) == refused, "a client believes no other authority"
    async with grpc.aio.secure_channel(address, shown(folder / "operator", folder / "operator")) as channel:
        found = await answers(channel, service)
    assert found.pop("own") in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)
    assert set(found.values()) == {grpc.StatusCode.OK}


async def test_a_picture_crosses_services_that_know_each_other(secured: Secured) -> None:
    key = {"Authorization": f"Bearer {KEY_OF_ALICE}"}
    for delivery in ("semantic", "conventional"):
        body = ASK | {"delivery": delivery, "link": {"snr_db": 30}}
        answer = await secured.client.post(PATH, json=body, headers=key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["b64_json"]
    assert answer.headers["strict-transport-security"]
    assert (await secured.client.post(PATH, json=ASK)).status_code == 401
    assert (await secured.client.get("/readyz")).json()["checks"]["user"] == "serving"


async def test_the_gateway_speaks_https_only(secured: Secured, folder: Path, foreign: Path) -> None:
    url = str(secured.client.base_url)
    assert url.startswith("https://")
    async with httpx2.AsyncClient(trust_env=False) as plain:
        with pytest.raises(httpx2.TransportError):
            await plain.get(f"{url.replace('https', 'http')}/healthz")

    def ask(authority: Path) -> int:
        with Client(url, api_key=KEY_OF_ALICE, ca_file=authority / "ca" / CA) as client:
            return len(client.image("a boat", seed=1, size="64x64").png or b"")

    assert await asyncio.to_thread(ask, folder) > 0
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(ask, foreign)
    with pytest.raises(NotFoundError, match="no certificate"):
        await asyncio.to_thread(ask, folder / "nothing")


async def test_the_health_check_shows_a_certificate(secured: Secured, folder: Path) -> None:
    def check(target: str, tls_dir: Path | None) -> bool:
        return healthy(target, 10, str(tls_dir) if tls_dir else None)

    for service, address in secured.addresses.items():
        assert await asyncio.to_thread(check, address, folder / service)
    assert not await asyncio.to_thread(check, address, None)
    assert not await asyncio.to_thread(check, address, folder / "nothing")
    assert await asyncio.to_thread(check, f"{secured.client.base_url}/readyz", None)


def test_metrics_ask_for_a_certificate(folder: Path, foreign: Path, closed_port: int) -> None:
    settings = CommonSettings(
        metrics_port=closed_port, metrics_host="0.0.0.0", tls_dir=folder / "edge", port=0
    )
    metrics.serve(settings)

    def scrape(home: Path | None) -> str:
        context = ssl.create_default_context(cafile=folder / "ca" / CA)
        if home is not None:
            context.load_cert_chain(home / CERTIFICATE, home / KEY)
        with httpx2.Client(verify=context, trust_env=False) as client:
            return client.get(f"https://127.0.0.1:{closed_port}/metrics").text

    assert "dekag_request_seconds" in scrape(folder / "operator")
    for home in (None, foreign / "operator"):
        with pytest.raises(httpx2.TransportError):
            scrape(home)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{closed_port}/metrics", trust_env=False)
    assert "dekag_request_seconds" in scrape(folder / "operator"), "those refused do no harm"


@pytest.mark.parametrize("missing", [CA, CERTIFICATE, KEY])
async def test_what_is_missing_of_credentials_is_named(tmp_path: Path, missing: str) -> None:
    make_credentials(tmp_path)
    (tmp_path / "edge" / missing).unlink()
    settings = CommonSettings(port=0, tls_dir=tmp_path / "edge", metrics_port=1)
    server = Server(settings, Nothing(), add_DownlinkServicer_to_server)
    with pytest.raises(SettingError, match=missing):
        await server.start()
    with pytest.raises(SettingError, match=missing):
        metrics.serve(settings)
    await server.stop()


# --- the command


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
    assert "all valid" in again.output
    assert {file: file.read_bytes() for file in files} == files
    changed = run(cli.app, ["credentials", str(tmp_path / "new")], env={"DEKAG_HOSTNAMES": "other 10.0.0.9"})
    assert "new certificates of gateway\n" in changed.output
    names = certificate(tmp_path / "new" / "gateway").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["gateway", "localhost", "other"]
    assert run(cli.app, ["credentials", str(tmp_path / "new"), "--name", "a b"]).exit_code == 2


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


# --- Redis


@pytest.fixture(scope="module")
def guarded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a Redis with the users of the credentials, and one that may see what was denied."""
    home, port = tmp_path_factory.mktemp("guarded"), free_port()
    users = home / USERS
    users.write_text((folder / "redis" / USERS).read_text() + "user admin on >admin ~* &* +@all\n")
    command = [_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--aclfile", users]
    server = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port, username="health", password="health") as health:
            deadline = time.monotonic() + 60
            while True:
                try:
                    health.ping()
                    break
                except (RedisError, OSError):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def as_user(port: int, folder: Path, name: str) -> Redis:
    return Redis(port=port, username=name, password=(folder / name / PASSWORD).read_text())


def test_redis_turns_away_who_shows_no_password(guarded: int, folder: Path) -> None:
    for options in ({}, {"password": "x"}, {"username": "edge", "password": "x"}):
        with Redis(port=guarded, retry=ONCE, **options) as stranger, pytest.raises(AuthenticationError):
            stranger.get("dekag:knowledge")
    with Redis(port=guarded, username="health", password="x") as health, pytest.raises(NoPermissionError):
        health.get("dekag:knowledge")


@pytest.mark.parametrize("name", ["gateway", "user", "edge", "cloud", "distiller"])
def test_a_user_of_redis_may_do_what_its_service_does_only(guarded: int, folder: Path, name: str) -> None:
    mine = {
        "gateway": "dekag:report:x",
        "user": "dekag:transmission",
        "edge": "dekag:latent:x",
        "cloud": "dekag:image:x",
        "distiller": "saq:x",
    }
    with as_user(guarded, folder, name) as redis:
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
            "DEBUG SLEEP 0",
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*command.split())
        if name in ("gateway", "user", "edge"):
            for command in ("SCAN 0", "HSET dekag:update:x a b", "EVAL 1 0", "PUBLISH saq:x 1", "GET saq:x"):
                with pytest.raises(NoPermissionError):
                    redis.execute_command(*command.split())


async def test_the_services_need_no_more_of_redis_than_they_may(
    guarded: int, folder: Path, scored_profile: Path
) -> None:
    def own(name: str) -> dict[str, Any]:
        url = f"redis://{name}@127.0.0.1:{guarded}/0"
        return {"redis_url": url, "redis_password_file": folder / name / PASSWORD}

    with Redis(port=guarded, username="admin", password="admin", decode_responses=True) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        async with starter() as start:
            addresses = await _start_chain(start, scored_profile, "", own)
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
                order = {"topic": "neon", "images": 4, "steps": 4, "rank": 1, "tokens": 1}
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
                other = (await client.post("/v1/knowledge", json=order | {"topic": "stencil"})).json()
                assert (await client.delete(f"/v1/jobs/{other['id']}")).status_code == 200
                assert (await client.get("/v1/jobs")).json()["data"]
                assert (await client.delete("/v1/knowledge/neon")).status_code == 204
                assert (await client.get("/readyz")).json()["checks"]["redis"] == "up"
            distilling.cancel()
            await asyncio.wait({distilling})
        denied = {entry["object"] for entry in admin.acl_log() if entry["username"] in NAMES}
        assert {what.split("|")[0] for what in denied} <= {"client"}, "the driver's name is not asked for"


class RedisOnly(Stack):
    """A stack that starts Redis and nothing else."""

    url_of_redis = ""

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.url_of_redis = self._start_redis()


def test_the_launchers_redis_has_a_password_that_no_command_line_shows(tmp_path: Path) -> None:
    with RedisOnly(tmp_path, free_ports=True) as stack:
        for _ in stack.wait_ready(60):
            pass
        child = stack["redis"]
        with Redis(port=child.port, retry=ONCE) as stranger, pytest.raises(AuthenticationError):
            stranger.get("x")
        with Redis.from_url(stack.url_of_redis) as known:
            assert known.ping()
        password = stack.url_of_redis.split(":")[2].split("@")[0]
        assert len(password) > 40
        assert password not in Path(f"/proc/{child.process.pid}/cmdline").read_text()
        assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
    assert password not in child.log.read_text()


async def test_settings_do_not_show_the_password_of_redis() -> None:
    settings = CommonSettings(redis_url="redis://:secret@127.0.0.1/0")
    assert "secret" not in repr(settings)
