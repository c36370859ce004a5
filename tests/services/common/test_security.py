"""No port is open to everyone beyond loopback; services ask for certificates, Redis for users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx2
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from redis.backoff import NoBackoff
from redis.retry import Retry

from dekag.client import Client, UnreachableError
from dekag.errors import FileError
from services.common import metrics
from services.common.errors import SettingError
from services.common.healthcheck import healthy
from services.common.security import CA, CERTIFICATE, KEY, check_exposure, is_loopback, read
from services.common.server import Server
from services.common.settings import CommonSettings
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import make_credentials
from services.launcher.stack import SERVICES
from services.proto.cloud_pb2 import ListJobsRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub
from tests.chain import serving, start_chain, starter
from tests.processes import free_port

ONCE = Retry(NoBackoff(), 0)
PATH = "/v1/images/generations"
ASK = {"prompt": "a boat", "size": "64x64", "seed": 1}
KEY_OF_ALICE, LINE = new_key("alice")


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
async def test_loopback_addresses_are_recognised(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
async def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "published_on", "refused"),
    [
        ("127.0.0.1", "", False),
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("10.0.0.1", "", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("0.0.0.0", "nowhere", False),
    ],
)
async def test_insecure_exposed_port_is_refused(host: str, published_on: str, refused: bool) -> None:
    settings = CommonSettings(host=host, published_on=published_on)
    check_exposure(settings, host, "it", safe=True, fix="x")
    if not refused:
        check_exposure(settings, host, "it", safe=False, fix="x")
        return
    with pytest.raises(SettingError, match="do this"):
        check_exposure(settings, host, "it", safe=False, fix="do this")


async def test_a_service_does_not_listen_beyond_loopback_without_tls(credentials_dir: Path) -> None:
    port = free_port()
    server = Server(CommonSettings(host="0.0.0.0", port=port), Nothing(), add_DownlinkServicer_to_server)
    with pytest.raises(SettingError, match="dekag credentials"):
        await server.start()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await server.stop()
    settings = CommonSettings(host="0.0.0.0", port=0, tls_dir=credentials_dir / "edge")
    safe = Server(settings, Nothing(), add_DownlinkServicer_to_server)
    assert await safe.start()
    await safe.stop()


def test_a_distiller_that_lacks_its_password_says_so_and_ends(tmp_path: Path) -> None:
    missing = tmp_path / "redis-password"
    ended = subprocess.run(
        [sys.executable, "-m", "services.cloud.distiller"],
        env=os.environ
        | {"DEKAG_REDIS_URL": "redis://127.0.0.1:1/0", "DEKAG_REDIS_PASSWORD_FILE": str(missing)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 1
    assert str(missing) in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("service", [*SERVICES, "metrics"])
def test_insecure_process_ends_and_says_what_would_secure_it(service: str, closed_port: int) -> None:
    environment = {"DEKAG_HOST": "0.0.0.0", "DEKAG_PORT": str(closed_port), "DEKAG_REDIS_URL": "none"}
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
    environment = {"DEKAG_HOST": "0.0.0.0", "DEKAG_PORT": str(closed_port), "DEKAG_REDIS_URL": "none"}
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
    dummy_profile: Path, credentials_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Secured]:
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(LINE)
    async with starter() as start:
        addresses = await start_chain(
            start, dummy_profile, "", lambda name: {"tls_dir": credentials_dir / name}
        )
        settings = GatewaySettings(
            redis_url="",
            user_address=addresses["user"],
            cloud_address=addresses["cloud"],
            tls_dir=credentials_dir / "gateway",
            https_dir=credentials_dir / "gateway",
            api_keys_file=keys,
        )
        async with serving(create_app(settings), ca_file=credentials_dir / "gateway" / CA) as client:
            yield Secured(addresses, client)


def shown(home: Path | None, authority: Path) -> grpc.ChannelCredentials:
    """Credentials of a client that believes ``authority``, with a certificate only if there is a home."""
    (root,) = read(authority, CA, setting="DEKAG_TLS_DIR")
    certificate, key = read(home, CERTIFICATE, KEY, setting="DEKAG_TLS_DIR") if home else (None, None)
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
async def test_service_refuses_callers_without_certificate(
    secured: Secured, credentials_dir: Path, foreign: Path, service: str
) -> None:
    address = secured.addresses[service]
    refused = dict.fromkeys(("own", "health", "reflection"), grpc.StatusCode.UNAVAILABLE)
    async with grpc.aio.insecure_channel(address) as channel:
        assert await answers(channel, service) == refused
    for home in (None, foreign / "user"):
        async with grpc.aio.secure_channel(address, shown(home, credentials_dir / "user")) as channel:
            assert await answers(channel, service) == refused
    async with grpc.aio.secure_channel(address, shown(credentials_dir / "user", foreign / "user")) as channel:
        assert await answers(channel, service) == refused, "a client believes no other authority"
    async with grpc.aio.secure_channel(
        address, shown(credentials_dir / "operator", credentials_dir / "operator")
    ) as channel:
        found = await answers(channel, service)
    own = found.pop("own")
    # operators may look at jobs, which the cloud knows without Redis
    assert own is (grpc.StatusCode.OK if service == "cloud" else grpc.StatusCode.PERMISSION_DENIED)
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


async def test_the_gateway_speaks_https_only(secured: Secured, credentials_dir: Path, foreign: Path) -> None:
    url = str(secured.client.base_url)
    assert url.startswith("https://")
    async with httpx2.AsyncClient(trust_env=False) as plain:
        with pytest.raises(httpx2.TransportError):
            await plain.get(f"{url.replace('https', 'http')}/healthz")

    def ask(authority: Path) -> int:
        with Client(url, api_key=KEY_OF_ALICE, ca_file=authority / "ca" / CA) as client:
            return len(client.image("a boat", seed=1, size="64x64").png or b"")

    assert await asyncio.to_thread(ask, credentials_dir) > 0
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(ask, foreign)
    with pytest.raises(FileError, match=r"ca\.crt cannot be read"):
        await asyncio.to_thread(ask, credentials_dir / "nothing")


async def test_the_health_check_shows_a_certificate(secured: Secured, credentials_dir: Path) -> None:
    def check(target: str, tls_dir: Path | None) -> bool:
        return healthy(target, 10, str(tls_dir) if tls_dir else None)

    for service, address in secured.addresses.items():
        assert await asyncio.to_thread(check, address, credentials_dir / service)
    assert not await asyncio.to_thread(check, address, None)
    assert not await asyncio.to_thread(check, address, credentials_dir / "nothing")
    assert await asyncio.to_thread(check, f"{secured.client.base_url}/readyz", None)


def test_metrics_ask_for_a_certificate(credentials_dir: Path, foreign: Path, closed_port: int) -> None:
    settings = CommonSettings(
        metrics_port=closed_port, metrics_host="0.0.0.0", tls_dir=credentials_dir / "edge", port=0
    )
    metrics.serve(settings)

    def scrape(home: Path | None) -> str:
        context = ssl.create_default_context(cafile=credentials_dir / "ca" / CA)
        if home is not None:
            context.load_cert_chain(home / CERTIFICATE, home / KEY)
        with httpx2.Client(verify=context, trust_env=False) as client:
            return client.get(f"https://127.0.0.1:{closed_port}/metrics").text

    assert "dekag_request_seconds" in scrape(credentials_dir / "operator")
    for home in (None, foreign / "operator"):
        with pytest.raises(httpx2.TransportError):
            scrape(home)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{closed_port}/metrics", trust_env=False)
    assert "dekag_request_seconds" in scrape(credentials_dir / "operator"), "those refused do no harm"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:9464"},
        {"Host": "["},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_metrics_are_not_served_to_web_pages(headers: dict[str, str], closed_port: int) -> None:
    metrics.serve(CommonSettings(metrics_port=closed_port, port=0))
    url = f"http://127.0.0.1:{closed_port}/metrics"
    assert httpx2.get(url, headers=headers, trust_env=False).status_code == 403
    for host in ("127.0.0.1", "localhost:9464", "cloud:9464", "[::1]:9464"):
        assert httpx2.get(url, headers={"Host": host}, trust_env=False).status_code == 200


@pytest.mark.parametrize("tls", [False, True])
def test_silent_connections_keep_nobody_from_the_metrics(
    tls: bool, credentials_dir: Path, closed_port: int
) -> None:
    home = credentials_dir / "edge" if tls else None
    metrics.serve(CommonSettings(metrics_port=closed_port, port=0, tls_dir=home, receive_timeout_s=60))
    context = ssl.create_default_context(cafile=credentials_dir / "ca" / CA)
    context.load_cert_chain(credentials_dir / "operator" / CERTIFICATE, credentials_dir / "operator" / KEY)
    silent = [
        socket.create_connection(("127.0.0.1", closed_port)) for _ in range(metrics.MAX_CONNECTIONS + 10)
    ]
    with httpx2.Client(verify=context, trust_env=False) as client:
        answer = client.get(f"{'https' if tls else 'http'}://127.0.0.1:{closed_port}/metrics")
    assert "dekag_request_seconds" in answer.text
    time.sleep(0.5)
    closed = []
    for each in silent:
        each.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            closed.append(each.recv(1))
        each.close()
    assert closed == [b""] * 11, "one for each that came when all places were taken"


@pytest.mark.parametrize("tls", [False, True])
def test_a_silent_connection_to_the_metrics_is_closed(
    tls: bool, credentials_dir: Path, closed_port: int
) -> None:
    home = credentials_dir / "edge" if tls else None
    metrics.serve(CommonSettings(metrics_port=closed_port, port=0, tls_dir=home, receive_timeout_s=0.5))
    with socket.create_connection(("127.0.0.1", closed_port), timeout=30) as silent:
        assert silent.recv(1) == b""


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


@pytest.mark.parametrize("what", ["no key", "another's", "with a password"])
def test_invalid_https_key_is_refused_at_start(what: str, credentials_dir: Path, tmp_path: Path) -> None:
    for name in (CERTIFICATE, KEY):
        (tmp_path / name).write_bytes((credentials_dir / "gateway" / name).read_bytes())
    settings = GatewaySettings(redis_url="", https_dir=tmp_path)
    make_server(create_app(settings))
    if what == "no key":
        (tmp_path / KEY).write_text("no key")
    elif what == "another's":
        (tmp_path / KEY).write_bytes((credentials_dir / "edge" / KEY).read_bytes())
    else:
        key = serialization.load_pem_private_key((tmp_path / KEY).read_bytes(), None)
        form, locked = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        (tmp_path / KEY).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    with pytest.raises(SettingError, match=r"DEKAG_HTTPS_DIR: .* without a password"):
        make_server(create_app(settings))
