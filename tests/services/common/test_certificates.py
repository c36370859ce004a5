"""Certificates and API keys are replaced while services run, and their end is announced."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common import clients
from services.common.certificates import Certificates
from services.common.health import check_health
from services.common.security import CA, CERTIFICATE, KEY
from services.common.server import Server
from services.common.settings import CommonSettings
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import make_credentials
from services.proto.downlink_pb2_grpc import DownlinkServicer, add_DownlinkServicer_to_server
from tests.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")
SOON_S = 10.0
ALONE: dict[str, Any] = {"user_address": "127.0.0.1:1", "cloud_address": "127.0.0.1:1", "redis_url": ""}


class Idle(DownlinkServicer):
    """A service that answers health checks."""

    def load(self) -> None: ...

    async def close(self) -> None: ...


def put(credentials: Path, service: str, folder: Path) -> Path:
    """Puts a service's credentials into its folder, each file with one rename."""
    folder.mkdir(exist_ok=True)
    for name in (CA, KEY, CERTIFICATE):
        shutil.copy(credentials / service / name, new := folder / f".{name}")
        new.replace(folder / name)
    return folder


async def soon(true: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def accepted(address: str, credentials: Path) -> bool:
    """Whether a service accepts and is accepted by a client with these credentials."""
    files = [(credentials / "user" / name).read_bytes() for name in (CA, KEY, CERTIFICATE)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(*files)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=2)
        except grpc.FutureTimeoutError:
            return False
    return True


async def test_a_service_and_its_clients_take_new_certificates(tmp_path: Path, credentials_dir: Path) -> None:
    make_credentials(tmp_path / "new")  # of another authority
    server_folder = put(credentials_dir, "edge", tmp_path / "edge")
    client_folder = put(credentials_dir, "channel", tmp_path / "channel")
    settings = CommonSettings(port=0, redis_url="", tls_dir=server_folder, grace_s=0)
    server = Server(settings, Idle(), add_DownlinkServicer_to_server)
    address = f"localhost:{await server.start()}"
    await server.load()
    peer = clients.Peer(address, settings.model_copy(update={"tls_dir": client_folder}))
    try:
        assert (await check_health(peer, "the edge", 5)).state == "serving"
        assert await asyncio.to_thread(accepted, address, credentials_dir)
        assert not await asyncio.to_thread(accepted, address, tmp_path / "new")
        put(tmp_path / "new", "channel", client_folder)
        put(tmp_path / "new", "edge", server_folder)
        await soon(lambda: accepted(address, tmp_path / "new"))
        assert not await asyncio.to_thread(accepted, address, credentials_dir)
        async with asyncio.timeout(SOON_S):
            while (await check_health(peer, "the edge", 5)).state != "serving":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        await peer.close()
        await server.stop()


async def test_the_gateway_takes_a_new_certificate_and_revokes_a_key(
    tmp_path: Path, credentials_dir: Path
) -> None:
    make_credentials(tmp_path / "new")
    folder, file = put(credentials_dir, "gateway", tmp_path / "https"), tmp_path / "api-keys"
    (alice, alices), (_, bobs) = new_key("alice"), new_key("bob")
    file.write_text(f"{alices}\n{bobs}\n")
    settings = GatewaySettings(**ALONE, https_dir=folder, api_keys_file=file)
    server = make_server(create_app(settings), port=(port := free_port()))
    serving = asyncio.create_task(server.serve())

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port)).strip()

    def status() -> int:
        headers = {"Authorization": f"Bearer {alice}"}
        return httpx2.get(f"https://127.0.0.1:{port}/v1/demand", headers=headers, verify=False).status_code

    try:
        async with asyncio.timeout(30):
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        first = (credentials_dir / "gateway" / CERTIFICATE).read_text().strip()
        assert await asyncio.to_thread(shown) == first
        assert await asyncio.to_thread(status) == 503, "accepted; no cloud answers"
        put(tmp_path / "new", "gateway", folder)
        await soon(lambda: shown() != first)
        file.write_text("half a line")
        await asyncio.sleep(1.2)
        assert await asyncio.to_thread(status) == 503, "an invalid file changes nothing"
        file.write_text(f"{bobs}\n")
        await soon(lambda: status() == 401)
    finally:
        server.should_exit = True
        await serving


async def test_the_end_of_a_certificate_is_announced(tmp_path: Path) -> None:
    make_credentials(tmp_path / "soon", days=20)
    make_credentials(tmp_path / "late", days=40)
    folder = put(tmp_path / "soon", "edge", tmp_path / "edge")
    own = {"setting": "DEKAG_TLS_DIR of this test"}  # others' certificates are checked meanwhile
    with capture_logs() as logs:
        certificates = Certificates(folder, own["setting"])
    assert [line["event"] for line in logs] == ["the certificate expires soon"]
    ends = REGISTRY.get_sample_value("dekag_certificate_ends_timestamp_seconds", own)
    assert ends is not None
    assert abs(ends - time.time() - 20 * 86_400) < 3600
    assert certificates.problem == ""
    with capture_logs() as logs:
        Certificates(put(tmp_path / "late", "edge", folder), "DEKAG_TLS_DIR")
    assert logs == []


async def test_readiness_names_a_certificate_that_has_expired(tmp_path: Path) -> None:
    make_credentials(tmp_path / "new", days=-0.02)  # type: ignore[arg-type]
    folder = put(tmp_path / "new", "gateway", tmp_path / "https")
    app = create_app(GatewaySettings(**ALONE, https_dir=folder))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["certificates"] == "expired"
    assert "expired 0.0 days ago; renew it" in answer.json()["reasons"]["certificates"]
