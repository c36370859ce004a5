"""A certificate decides what its owner may call: all pairs, over real gRPC with real certificates."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import httpx2
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty

from dekag.errors import NotFoundError
from services.common import clients
from services.common.callers import MAY_CALL
from services.common.errors import CallerError, SettingError
from services.common.security import CA, CERTIFICATE, KEY
from services.common.server import Server
from services.common.settings import CommonSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import NAMES
from services.proto import cloud_pb2, cloud_pb2_grpc, downlink_pb2, downlink_pb2_grpc, user_pb2, user_pb2_grpc

SERVED: dict[str, tuple[Any, Any, Any]] = {
    "cloud": (cloud_pb2, cloud_pb2_grpc, "Cloud"),
    "edge": (downlink_pb2, downlink_pb2_grpc, "Downlink"),
    "channel": (downlink_pb2, downlink_pb2_grpc, "Downlink"),
    "user": (user_pb2, user_pb2_grpc, "User"),
}
METHODS = {
    name: tuple(messages.DESCRIPTOR.services_by_name[service].methods)
    for name, (messages, _, service) in SERVED.items()
}


def servicer(name: str) -> Any:
    """A servicer whose methods only say that they have been reached."""

    async def unary(_: Any, request: object, context: object) -> None:
        raise NotFoundError("reached")

    async def stream(_: Any, request: object, context: object) -> AsyncIterator[object]:
        raise NotFoundError("reached")
        yield

    async def close(_: Any) -> None: ...

    _, stubs, service = SERVED[name]
    methods = {each.name: stream if each.server_streaming else unary for each in METHODS[name]}
    members = {**methods, "load": lambda self: None, "close": close}
    return type("Reached", (getattr(stubs, f"{service}Servicer"),), members)()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def addresses(credentials_dir: Path) -> AsyncIterator[dict[str, str]]:
    """The four services, each with its own certificate."""
    servers, found = [], {}
    for name, (_, stubs, service) in SERVED.items():
        settings = CommonSettings(port=0, redis_url="", tls_dir=credentials_dir / name, grace_s=0)
        add = getattr(stubs, f"add_{service}Servicer_to_server")
        servers.append(server := Server(settings, servicer(name), add, name))
        found[name] = f"localhost:{await server.start()}"
        await server.load()
    yield found
    for server in servers:
        await server.stop()


async def answer(channel: grpc.aio.Channel, method: Any) -> grpc.StatusCode:
    """The status with which a call is answered."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = cast("Any", kind)(path, Empty.SerializeToString, Empty.FromString)(Empty(), timeout=20)
    try:
        await (call.read() if method.server_streaming else call)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("caller", NAMES)
async def test_each_certificate_calls_what_the_table_allows_and_nothing_else(
    addresses: dict[str, str], credentials_dir: Path, caller: str
) -> None:
    files = [(credentials_dir / caller / name).read_bytes() for name in (CA, KEY, CERTIFICATE)]
    for service, address in addresses.items():
        async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*files)) as channel:
            found = {method.name: await answer(channel, method) for method in METHODS[service]}
        allowed = MAY_CALL.get(caller, {}).get(service, ())
        assert found == {
            method.name: grpc.StatusCode.NOT_FOUND
            if method.name in allowed
            else grpc.StatusCode.PERMISSION_DENIED
            for method in METHODS[service]
        }


def test_the_table_names_services_and_methods_that_exist() -> None:
    assert set(NAMES) >= MAY_CALL.keys()
    for services in MAY_CALL.values():
        for service, methods in services.items():
            assert {method.name for method in METHODS[service]} >= set(methods)


@pytest.mark.parametrize(
    ("service", "method", "callers"),
    [
        ("cloud", "PublishKnowledge", {"gateway"}),
        ("cloud", "PublishTransmissionKnowledge", {"gateway"}),
        ("cloud", "DeleteKnowledge", {"gateway"}),
        ("cloud", "Distill", {"gateway"}),
        ("cloud", "Generate", {"edge"}),
        ("cloud", "Decide", {"edge"}),
        ("edge", "Provide", {"channel"}),
        ("channel", "Provide", {"user"}),
        ("user", "Receive", {"gateway"}),
    ],
)
def test_what_changes_or_costs_something_has_one_caller(service: str, method: str, callers: set[str]) -> None:
    assert {name for name, table in MAY_CALL.items() if method in table.get(service, ())} == callers


async def test_the_refusal_names_the_certificate_and_those_allowed(
    addresses: dict[str, str], credentials_dir: Path
) -> None:
    settings = CommonSettings(tls_dir=credentials_dir / "edge")
    async with clients.open_channel(addresses["cloud"], settings, only_serving=False) as channel:
        stub = cloud_pb2_grpc.CloudStub(channel)
        with pytest.raises(CallerError) as refused:
            await clients.call(stub.PublishKnowledge, cloud_pb2.PublishKnowledgeRequest(), "cloud")
    assert str(refused.value) == (
        "the cloud service refuses PublishKnowledge with the certificate of edge; allowed: gateway"
    )


async def test_a_gateway_that_is_given_another_certificate_answers_503(
    addresses: dict[str, str], credentials_dir: Path, tmp_path: Path
) -> None:
    for name in (CA, KEY, CERTIFICATE):
        shutil.copy(credentials_dir / "gateway" / name, tmp_path / name)
    settings = GatewaySettings(
        redis_url="", user_address=addresses["user"], cloud_address=addresses["cloud"], tls_dir=tmp_path
    )
    app = create_app(settings)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        assert (await client.get("/v1/transmission")).status_code == 404, "reached"
        for name in (CA, KEY, CERTIFICATE):
            shutil.copy(credentials_dir / "user" / name, tmp_path / name)
        async with asyncio.timeout(20):
            while (refused := await client.get("/v1/transmission")).status_code == 404:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        drawn = await client.post("/v1/images/generations", json={"prompt": "a boat"})
    for response in (refused, drawn):
        assert response.status_code == 503, response.text
        assert response.headers["retry-after"]
        assert "with the certificate of user; allowed: gateway" in response.json()["detail"]


@pytest.mark.parametrize("service", ["gateway", *SERVED])
async def test_a_service_does_not_start_with_the_certificate_of_another(
    credentials_dir: Path, service: str
) -> None:
    wrong = credentials_dir / "operator"
    says = f"DEKAG_TLS_DIR: .* is the certificate of operator; its common name must be {service}"
    if service == "gateway":
        with pytest.raises(SettingError, match=says):
            create_app(GatewaySettings(redis_url="", tls_dir=wrong))
        return
    _, stubs, name = SERVED[service]
    settings = CommonSettings(port=0, redis_url="", tls_dir=wrong)
    server = Server(settings, servicer(service), getattr(stubs, f"add_{name}Servicer_to_server"), service)
    with pytest.raises(SettingError, match=says):
        await server.start()
    await server.stop()
