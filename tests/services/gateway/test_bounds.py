"""What a client can send, and how long it may take to: every bound, on real servers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from structlog.testing import capture_logs

from dekag.api.limits import MAX_SEEDS
from services.common import converters
from services.common.converters import DeliveryRequest
from services.common.security import MAX_METADATA_BYTES
from services.common.server import MAX_ARRIVING, MAX_CONNECTIONS
from services.common.settings import CommonSettings
from services.gateway import server
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2 import DistillRequest, GenerateRequest, GetKnowledgeRequest, JobId
from services.proto.downlink_pb2 import LinkConditions, ProvideRequest, SymbolFrame, TransmissionHeader
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server
from tests.chain import serving
from tests.services.answers import is_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/v1/images/generations"
WAIT_S = 60
Connect = Callable[[str], Any]


@asynccontextmanager
async def gateway(**settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway with these settings and nothing behind it."""
    nothing = {"redis_url": "", "user_address": "127.0.0.1:1", "cloud_address": "127.0.0.1:1"}
    async with serving(create_app(GatewaySettings(**nothing | settings))) as client:
        yield client


async def said(client: httpx2.AsyncClient, *parts: bytes) -> bytes:
    """Everything that comes back on a connection of its own until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionResetError:  # closed while parts were still under way
        return b""
    finally:
        writer.close()


async def test_oversized_headers_and_urls_get_431() -> None:
    async with gateway(max_header_bytes=2000) as client:
        assert (await client.get("/healthz", headers={"X-Long": "x" * 1500})).status_code == 200
        for answer in (
            await client.get("/healthz", headers={"X-Long": "x" * 2000}),
            await client.get("/healthz", headers={f"X-{i}": "x" * 20 for i in range(90)}),
            await client.get("/healthz?" + "x" * 2000),
            await client.get("/" + "x" * 2000),
        ):
            assert "2000 bytes" in is_problem(answer, 431)["detail"]


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", b"GET / HTTP/1.1\r\nX-Many: 1\r\n"]
)
async def test_endless_headers_are_cut_off(start: bytes) -> None:
    async with gateway(max_header_bytes=2000) as client:
        more = b"X-More: 2\r\n" if start.endswith(b"\n") else b"x" * 50
        answer = await said(client, start + more * 100, more * 100)
        assert answer == b"" or (b" 431 " in answer and b"application/problem+json" in answer)
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{{".encode(),
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode(),
    ],
)
async def test_slow_requests_get_408_and_are_closed(part: bytes) -> None:
    async with gateway(receive_timeout_s=0.3) as client:
        answer = await said(client, part)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"connection: close" in answer.lower()


async def test_slow_second_request_on_a_connection_gets_408() -> None:
    async with gateway(receive_timeout_s=0.3) as client:
        answer = await said(client, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in answer


async def test_receive_timeout_does_not_limit_the_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with gateway(receive_timeout_s=0.1, deadline_s=0.7, user_address=address) as client:
            is_problem(await client.post(PATH, json={"prompt": "a boat"}), 504)


async def test_every_operation_says_what_a_slow_service_makes_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=99) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with gateway(deadline_s=0.3, user_address=address, cloud_address=address) as client:
            slow = set()
            for path, operations in (await client.get("/openapi.json")).json()["paths"].items():
                for method, operation in operations.items():
                    url, body = re.sub(r"{\w+}", "x", path), {}
                    if "requestBody" in operation and path.startswith("/v1/"):
                        examples = operation["requestBody"]["content"]["application/json"]["examples"]
                        body = {"json": next(iter(examples.values()))["value"]}
                    status = str((await client.request(method, url, **body)).status_code)
                    assert status in operation["responses"], (method, path, status)
                    slow |= {path} if status == "504" else set()
            assert len(slow) > 10


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux has the option")
async def test_connections_of_clients_that_do_not_read_are_closed() -> None:
    async with gateway(receive_timeout_s=0.5, max_connections=2) as client:
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", client.base_url.port))
        with silent:
            silent.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            async with asyncio.timeout(WAIT_S):
                while (await client.get("/healthz")).status_code == 200:  # its own place is the second one
                    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    line = await reader.readline()
                    writer.close()
                    if b" 200 " in line:  # a third one is let in
                        return
                    await asyncio.sleep(0.1)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes little of a response that its client does not read; otherwise, megabytes."""
    made = server.BoundedHttp.connection_made

    def connection_made(self: server.BoundedHttp, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(server.BoundedHttp, "connection_made", connection_made)


@contextmanager
def unread(
    client: httpx2.AsyncClient, *requests: dict[str, Any], path: str = PATH
) -> Iterator[socket.socket]:
    """A connection with these POST requests, whose client has small buffers and has read nothing yet."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", client.base_url.port))
        for body in map(json.dumps, requests):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall((head + body).encode())
        slow.setblocking(False)
        yield slow


async def test_a_reader_that_takes_a_little_now_and_then_is_cut_off(
    small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SLOWEST_READER", 2**20)
    async with gateway(deadline_s=0.5) as client:
        with unread(client) as slow:
            slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)

            async def read_slowly() -> None:
                while await asyncio.get_running_loop().sock_recv(slow, 100):  # noqa: ASYNC110 - it is slow
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(read_slowly(), WAIT_S)  # the end of the connection
        assert (await client.get("/healthz")).status_code == 200


async def test_a_slow_reader_of_a_stream_keeps_no_slot(small_buffers: None, chain: Any) -> None:
    addresses = {f"{name}_address": chain.addresses[name] for name in ("user", "cloud")}
    stream = {"prompt": "a slow boat", "size": "256x256", "n": 6, "seed": 1, "stream": True, "details": True}
    limits = {"max_in_flight": 1, "max_waiting": 1, "deadline_s": 15, "receive_timeout_s": 60}
    async with gateway(**addresses, **limits) as client:
        with unread(client, stream) as slow:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(WAIT_S):
                assert (await loop.sock_recv(slow, 17)).startswith(b"HTTP/1.1 200 OK")
            asking = asyncio.create_task(client.post(PATH, json={"prompt": "a fast boat", "size": "64x64"}))
            while not asking.done():
                await asyncio.wait({asking}, timeout=0.2)
                assert await loop.sock_recv(slow, 1000), "slow, but not silent"
            assert asking.result().status_code == 200


async def test_slow_readers_keep_no_places_of_pictures(small_buffers: None, chain: Any) -> None:
    png = io.BytesIO()
    Image.effect_noise((128, 128), 90).convert("RGB").save(png, "png")
    body = {"picture": base64.b64encode(png.getvalue()).decode(), "seed": 1, "details": True}
    address = chain.addresses["user"]
    async with gateway(user_address=address, receive_timeout_s=60) as client, AsyncExitStack() as stack:
        with capture_logs() as logs:

            def answered() -> int:
                return sum(line.get("path") == "/v1/pictures" for line in logs)

            for _ in range(4):
                stack.enter_context(unread(client, *[body] * 4, path="/v1/pictures"))
            count = -1
            async with asyncio.timeout(WAIT_S):
                while answered() != count or not count:  # until each waits for its reader
                    count = answered()
                    await asyncio.sleep(2)
        assert count < 4 * 4
        assert (await client.post("/v1/pictures", json=body)).status_code == 200


async def test_connections_beyond_the_limit_get_503() -> None:
    async with gateway(max_connections=3) as client:
        open_ones = [await asyncio.open_connection("127.0.0.1", client.base_url.port) for _ in range(3)]
        reader, writer = open_ones[0]
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), WAIT_S)  # so the gateway knows all three
        assert (await said(client)).startswith(b"HTTP/1.1 503 ")
        for _, writer in open_ones:
            writer.close()
        async with asyncio.timeout(WAIT_S):
            while (await client.get("/healthz")).status_code != 200:
                pass


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]:80", "10.1.2.3:8080", "LOCALHOST:80", "box"]
)
async def test_gateway_without_keys_accepts_its_own_host_names(host: str) -> None:
    async with gateway(allowed_hosts="localhost, box") as client:
        assert (await client.get("/v1/nothing", headers={"Host": host})).status_code == 404


@pytest.mark.parametrize(
    "host", ["example.org", "localhost.example.org", "127.0.0.1.example.org", "[::1", ":80"]
)
async def test_dns_rebinding_is_refused(host: str) -> None:
    async with gateway() as client:
        is_problem(await client.get("/v1/nothing", headers={"Host": host}), 421)


async def test_cross_origin_requests_are_refused() -> None:
    """A browser sends these without asking first, so they must not do anything."""
    async with gateway() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            headers = {"Origin": "https://example.org", "Content-Type": kind}
            answer = await client.post(PATH, content=b'{"prompt": "a boat"}', headers=headers)
            is_problem(answer, 415)
        answer = await client.options(
            PATH, headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        )
        assert not any(name.startswith("access-control") for name in answer.headers)


async def test_every_answer_has_security_headers() -> None:
    async with gateway() as client:
        answers = [
            await client.get(path) for path in ("/healthz", "/docs", "/v1/nothing", "/", "/web/main.js")
        ]
        answers.append(await client.post(PATH, content=b"x" * 70_000))
        assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 413]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        for words in (
            "default-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ):
            assert words in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers  # not over plain HTTP


class Held(DownlinkServicer):
    """Sends one frame and then nothing until it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Provide(self, request: ProvideRequest, context: Any) -> AsyncIterator[SymbolFrame]:  # noqa: N802
        yield SymbolFrame(header=TransmissionHeader(channel_uses=1))
        await self.go_on.wait()


async def held(start: Callable[..., Awaitable[str]], **settings: Any) -> tuple[Held, str]:
    servicer = Held()
    address = await start(
        servicer, add_DownlinkServicer_to_server, CommonSettings(port=0, redis_url="", **settings)
    )
    return servicer, address


async def test_grpc_requests_beyond_the_limit_are_refused(
    start: Callable[..., Awaitable[str]], connect: Connect, asked: DeliveryRequest
) -> None:
    servicer, address = await held(start, max_requests=2)
    stub, request = DownlinkStub(connect(address)), converters.request_to_proto(asked)
    calls = [stub.Provide(request) for _ in range(2)]
    for call in calls:
        assert await call.read() != grpc.aio.EOF
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Provide(request).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    servicer.go_on.set()
    for call in calls:
        assert await call.read() == grpc.aio.EOF


async def test_watching_health_takes_no_places_of_requests_and_is_bounded(
    start: Callable[..., Awaitable[str]], connect: Connect, asked: DeliveryRequest
) -> None:
    servicer, address = await held(start, max_requests=2)
    servicer.go_on.set()
    health = health_pb2_grpc.HealthStub(connect(address))  # type: ignore[attr-defined]
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_CONNECTIONS)]
    for watch in watches:
        assert await watch.read() != grpc.aio.EOF
    another = health.Watch(health_pb2.HealthCheckRequest())
    assert await another.read() != grpc.aio.EOF
    async with asyncio.timeout(WAIT_S):
        while not (ended := [watch for watch in watches if watch.done()]):  # noqa: ASYNC110 - the oldest made room
            await asyncio.sleep(0.05)
    assert [await watch.code() for watch in ended] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    watches.append(another)
    stub = DownlinkStub(connect(address))
    assert await stub.Provide(converters.request_to_proto(asked)).read() != grpc.aio.EOF
    await health.Check(health_pb2.HealthCheckRequest())  # which have a share of their own
    for watch in watches:
        watch.cancel()


async def without_message(channel: grpc.aio.Channel, count: int) -> list[Any]:
    """Calls that the server has seen begin, and whose message does not arrive."""
    silent = [channel.stream_unary("/dekag.v1.Downlink/Provide")() for _ in range(count)]
    for call in silent:
        await call.wait_for_connection()
    return silent


async def test_calls_without_a_message_end_and_free_their_places(
    start: Callable[..., Awaitable[str]], connect: Connect, asked: DeliveryRequest
) -> None:
    servicer, address = await held(start, max_requests=2, receive_timeout_s=0.5)
    servicer.go_on.set()
    channel = connect(address)
    silent = await without_message(channel, 2)
    for call in silent:
        async with asyncio.timeout(WAIT_S):
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stub = DownlinkStub(channel)
    assert await stub.Provide(converters.request_to_proto(asked)).read() != grpc.aio.EOF


async def test_calls_without_a_message_keep_nobody_out(
    start: Callable[..., Awaitable[str]], connect: Connect, asked: DeliveryRequest
) -> None:
    servicer, address = await held(start, max_requests=2, receive_timeout_s=600)
    servicer.go_on.set()
    silent = await without_message(connect(address), MAX_ARRIVING + 5)
    stub = DownlinkStub(connect(address))
    for _ in range(3):
        assert await stub.Provide(converters.request_to_proto(asked)).read() != grpc.aio.EOF
    health = health_pb2_grpc.HealthStub(connect(address))  # type: ignore[attr-defined]
    await health.Check(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(WAIT_S):
        while sum(call.done() for call in silent) < 5:  # noqa: ASYNC110 - the oldest made room
            await asyncio.sleep(0.05)
    ended = [call for call in silent if call.done()]
    assert {await call.code() for call in ended} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len(silent) - len(ended) > MAX_ARRIVING // 2
    for call in silent:
        call.cancel()


async def test_oversized_grpc_metadata_is_refused(
    start: Callable[..., Awaitable[str]], connect: Connect, asked: DeliveryRequest
) -> None:
    servicer, address = await held(start)
    servicer.go_on.set()
    stub, request = DownlinkStub(connect(address)), converters.request_to_proto(asked)
    small, large = (("x-long", "x" * size) for size in (MAX_METADATA_BYTES // 2, MAX_METADATA_BYTES + 1))
    assert await stub.Provide(request, metadata=[small]).read() != grpc.aio.EOF
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Provide(request, metadata=[large]).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_oversized_grpc_messages_are_refused(
    start: Callable[..., Awaitable[str]], connect: Connect
) -> None:
    _, address = await held(start, max_message_bytes=2**16)
    with pytest.raises(grpc.RpcError) as caught:
        await DownlinkStub(connect(address)).Provide(ProvideRequest(prompt="x" * 2**16)).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_silent_grpc_connection_is_closed(start: Callable[..., Awaitable[str]]) -> None:
    _, address = await held(start, receive_timeout_s=0.3)
    reader, writer = await asyncio.open_connection(*address.split(":"))
    while await asyncio.wait_for(reader.read(4096), WAIT_S):  # the server's own greeting
        pass
    writer.close()


async def test_oversized_seeds_prompts_and_triggers_are_refused(chain: Any) -> None:
    asked = GenerateRequest(prompt="a boat", seeds=range(MAX_SEEDS + 1), width=64, height=64)
    with pytest.raises(grpc.RpcError, match="seeds"):
        await chain.cloud.Generate(asked).read()
    for request in (
        DistillRequest(topic="x", prompts=["a boat"] * 1001),
        DistillRequest(topic="x", prompts=["a" * 1001]),
        DistillRequest(topic="x" * 33),
        DistillRequest(topic="neon", triggers=["x"] * 101),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await chain.cloud.Distill(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


MARK = "zzmark"
HOSTILE = [
    f"../../{MARK}",
    f"/etc/{MARK}",
    f"..\\{MARK}",
    f"file:///{MARK}",
    f"{MARK}\0",
    f"{MARK}.pkl",
    f"{{{{{MARK}}}}}",
    f"{{{MARK}.__class__}}",
    f"%({MARK})s",
    f"${{{MARK}}}",
    f"%2e%2e%2f{MARK}",
]
_touched: list[str] | None = None
_hooked = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _touched is None:
        return
    if event.startswith(("open", "os.", "shutil.", "glob.", "subprocess.", "tempfile.", "import", "pickle.")):
        _touched.append(f"{event} {arguments!r}")


@contextmanager
def touched() -> Iterator[list[str]]:
    """What this process, which holds all services, opens, starts, imports and unpickles meanwhile."""
    global _touched, _hooked
    if not _hooked:  # a hook stays for good
        sys.addaudithook(_note)
        _hooked = True
    _touched = []
    try:
        yield _touched
    finally:
        _touched = None


async def test_audit_hook_notes_opened_and_unpickled_files(tmp_path: Path) -> None:
    with touched() as found:
        (tmp_path / MARK).write_text("x")
        pickle.loads(pickle.dumps(Path))  # noqa: S301 - our own
    assert any(MARK in each for each in found)
    assert any(each.startswith("pickle") for each in found)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_names_from_clients_open_no_file(client: httpx2.AsyncClient, chain: Any, text: str) -> None:
    body = {"prompt": "a boat", "size": "64x64", "seed": 1}
    link = {"fading": "trace", "trace": text}
    segment = text.replace("%", "%25").replace("/", "%2F").replace("\0", "%00").replace("\\", "%5C")
    with touched() as found:
        answers = [
            await client.post(PATH, json=body | {"prompt": text}),
            await client.post(PATH, json=body | {"knowledge": text}),
            await client.post(PATH, json=body | {"knowledge": [text]}),
            await client.post(PATH, json=body | {"link": link}),
            await client.post(PATH, json=body | {"link": {"fading": text}}),
            await client.post(PATH, json=body | {"image_format": text, "delivery": "conventional"}),
            await client.post(PATH, json=body | {"size": text}),
            await client.post("/v1/knowledge", json={"topic": text}),
            await client.post("/v1/knowledge", json={"topic": "mine", "prompts": [text]}),
            await client.post("/v1/knowledge", json={"topic": "mine", "prompts": ["a"], "triggers": [text]}),
            await client.delete(f"/v1/knowledge/{segment}"),
            await client.delete(f"/v1/jobs/{segment}"),
        ]
        folders = ("v1/reports", "v1/knowledge", "v1/jobs", "docs-assets")
        answers += [await client.get(f"/{folder}/{segment}") for folder in folders]
        answers.append(await client.get(f"/v1/knowledge/{segment}/samples"))
        answers.append(await client.get(f"/v1/jobs/{segment}/events"))
        for call in (
            chain.user.Receive(ProvideRequest(prompt="a boat", knowledge=[text], width=64, height=64)),
            chain.user.Receive(ProvideRequest(prompt="a boat", link=LinkConditions(trace=text))),
            chain.cloud.GetKnowledge(GetKnowledgeRequest(topic=text, samples=True)),
            chain.cloud.Distill(DistillRequest(topic=text)),
            chain.cloud.GetJob(JobId(id=text)),
            chain.cloud.CancelJob(JobId(id=text)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert [each for each in found if MARK in each] == []
    assert [each for each in found if each.startswith("pickle")] == []
    assert {answer.status_code for answer in answers} <= {200, 404, 405, 422}
    assert (await health(chain.addresses["cloud"])) == health_pb2.HealthCheckResponse.SERVING


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)
