"""What every service gets from the shared server: readiness, errors, ids, deadlines, shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from structlog.testing import capture_logs

from dekag.errors import (
    DeadlineError,
    DekagError,
    ExhaustedError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
    NumericalError,
    UnavailableError,
)
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.common import clients, converters, errors
from services.common.converters import DeliveryRequest
from services.common.errors import SettingError
from services.common.health import CHAIN
from services.common.request_context import begin_request, request_id, time_remaining
from services.common.server import Server
from services.common.settings import CommonSettings
from services.proto.downlink_pb2 import ProvideRequest, SymbolBlock, SymbolFrame, TransmissionHeader
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server

pytestmark = pytest.mark.asyncio(loop_scope="session")
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]


class ScriptedDownlink(DownlinkServicer):
    """Does what the test says."""

    def __init__(self, script: Callable[[], AsyncIterator[SymbolFrame]]) -> None:
        self.script = script
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self) -> None:
        self.may_load.wait(10)

    async def close(self) -> None: ...

    async def Provide(self, request: ProvideRequest, context: Any) -> AsyncIterator[SymbolFrame]:  # noqa: N802
        async for frame in self.script():
            yield frame


def raising(error: BaseException) -> ScriptedDownlink:
    async def script() -> AsyncIterator[SymbolFrame]:
        raise error
        yield SymbolFrame()

    return ScriptedDownlink(script)


async def through_channels(
    start: Start, connect: Connect, source: ScriptedDownlink, hops: int = 2
) -> DownlinkStub:
    """A stub of the last of ``hops`` channels above ``source``."""
    address = await start(source, add_DownlinkServicer_to_server)
    for _ in range(hops):
        settings = ChannelSettings(port=0, downlink_address=address)
        address = await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)
    return DownlinkStub(connect(address))


async def drain(stub: DownlinkStub, asked: DeliveryRequest) -> list[SymbolFrame]:
    return [f async for f in clients.stream(stub.Provide, converters.request_to_proto(asked), "channel")]


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("link.cbr", "between 0 and 1 \N{MICRO SIGN}", "na\u00efve \x00"),
        NotFoundError("no such topic"),
        MismatchError("codec a is not codec b"),
        UnavailableError("the store is away"),
        DeadlineError("too late"),
        ExhaustedError("64 requests wait"),
        NumericalError("generate gave a value that is not finite for seed 7 with model 0123456789ab"),
    ],
)
async def test_errors_cross_hops_unchanged(
    start: Start, connect: Connect, asked: DeliveryRequest, error: DekagError
) -> None:
    stub = await through_channels(start, connect, raising(error))
    with pytest.raises(type(error)) as caught:
        await drain(stub, asked)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "field", None) == getattr(error, "field", None)
    assert getattr(caught.value, "allowed", None) == getattr(error, "allowed", None)


@pytest.mark.parametrize(
    "error", [RuntimeError("secret path"), DekagError("secret path"), KeyError("secret path")]
)
async def test_internal_errors_reveal_nothing(
    start: Start, connect: Connect, asked: DeliveryRequest, error: Exception
) -> None:
    stub = await through_channels(start, connect, raising(error))
    begin_request("find-me", 10)
    with capture_logs() as logs, pytest.raises(errors.InternalError) as caught:
        await drain(stub, asked)
    assert "secret" not in str(caught.value)
    assert "find-me" in str(caught.value)
    failures = [entry for entry in logs if entry["event"] == "request failed"]
    assert len(failures) == 1, "only where it broke"
    assert failures[0]["exc_info"]


@pytest.mark.parametrize("hops", [0, 2])
async def test_a_broken_stream_is_an_internal_error(
    start: Start, connect: Connect, asked: DeliveryRequest, hops: int
) -> None:
    async def script() -> AsyncIterator[SymbolFrame]:
        yield SymbolFrame(header=TransmissionHeader(channel_uses=2**32 - 1))

    stub = await through_channels(start, connect, ScriptedDownlink(script), max(hops, 1))
    with pytest.raises(errors.InternalError):
        await drain(stub, asked)


async def test_what_is_not_finite_is_logged_once_and_told(
    start: Start, connect: Connect, asked: DeliveryRequest
) -> None:
    error = NumericalError("decode gave a value that is not finite for seed 7")
    stub = await through_channels(start, connect, raising(error))
    with capture_logs() as logs, pytest.raises(NumericalError):
        await drain(stub, asked)
    assert [entry["error"] for entry in logs if entry["event"] == "value not finite"] == [str(error)]


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xff", b"\x00" * 50])
@pytest.mark.parametrize("method", ["Provide", "GetTransmissionKnowledge"])
async def test_unparsable_message_is_an_invalid_argument(
    start: Start, connect: Connect, method: str, data: bytes
) -> None:
    channel = connect(await start(raising(NotFoundError("x")), add_DownlinkServicer_to_server))
    kind = channel.unary_stream if method == "Provide" else channel.unary_unary
    call = kind(f"/dekag.v1.Downlink/{method}")(data)
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (anext(aiter(call)) if method == "Provide" else call)
        async with asyncio.timeout(60):  # the answer arrives before the line is written
            while not (lines := [each for each in logs if each["event"] == "request"]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = errors.from_rpc(caught.value, "edge", "id")
    assert isinstance(told, InvalidInputError)
    assert told.field == "request"
    assert method in told.allowed
    (line,) = lines
    assert (line["status"], line["received_bytes"]) == ("INVALID_ARGUMENT", len(data))


async def test_a_peer_that_is_not_there_is_unavailable(
    start: Start, connect: Connect, asked: DeliveryRequest, closed_port: int
) -> None:
    settings = ChannelSettings(port=0, downlink_address=f"127.0.0.1:{closed_port}")
    address = await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)
    with pytest.raises(UnavailableError, match="edge service cannot be reached"):
        await drain(DownlinkStub(connect(address)), asked)


async def test_every_error_has_its_http_status() -> None:
    assert {kind.__name__: http for kind, (_, http) in errors.STATUS.items()} == {
        "InvalidInputError": 422,
        "NotFoundError": 404,
        "MismatchError": 409,
        "ConflictError": 409,
        "UnavailableError": 503,
        "CallerError": 503,
        "DeadlineError": 504,
        "ExhaustedError": 429,
        "InternalError": 500,
        "NumericalError": 500,
    }
    assert errors.http_status(errors.public(ValueError("x"), "id")) == 500
    assert errors.http_status(errors.public(TimeoutError(), "id")) == 504


async def test_hostile_error_details_become_internal() -> None:
    for details in (b"", b"[]", b"{}", b'{"type": "Exception", "message": "x"}', b"\xff"):
        rpc_error = grpc.aio.AioRpcError(
            grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata((errors.ERROR_KEY, details))
        )
        assert isinstance(errors.from_rpc(rpc_error, "edge", "id"), errors.InternalError)


async def test_id_and_deadline_reach_the_last_hop(
    start: Start, connect: Connect, asked: DeliveryRequest
) -> None:
    seen: list[tuple[str, float | None]] = []

    async def script() -> AsyncIterator[SymbolFrame]:
        seen.append((request_id.get(), time_remaining()))
        raise NotFoundError("enough")
        yield SymbolFrame()

    stub = await through_channels(start, connect, ScriptedDownlink(script))
    begin_request("abc.DEF-1_2", 5)
    with pytest.raises(NotFoundError):
        await drain(stub, asked)
    (name, left), *_ = seen
    assert name == "abc.DEF-1_2"
    assert left is not None
    assert 3 < left < 5.1  # gRPC rounds what is left up, by up to one percent
    begin_request("-", None)


@pytest.mark.parametrize("given", [None, "", "-", "a b", "x" * 65, "\N{SNOWMAN}", b"\xff\xfe", "a\nb"])
async def test_hostile_request_ids_are_replaced(given: str | bytes | None) -> None:
    name = begin_request(given, None)
    assert len(name) == 32
    assert name != begin_request(given, None)


async def test_deadline_ends_the_whole_chain(start: Start, connect: Connect, asked: DeliveryRequest) -> None:
    ended = asyncio.Event()

    async def script() -> AsyncIterator[SymbolFrame]:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        yield SymbolFrame()

    stub = await through_channels(start, connect, ScriptedDownlink(script))
    begin_request("slow", 0.3)
    with pytest.raises(DeadlineError):
        await drain(stub, asked)
    await asyncio.wait_for(ended.wait(), 2)
    begin_request("-", None)


async def test_cancellation_reaches_the_last_hop(
    start: Start, connect: Connect, asked: DeliveryRequest
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def script() -> AsyncIterator[SymbolFrame]:
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        yield SymbolFrame()

    stub = await through_channels(start, connect, ScriptedDownlink(script))
    begin_request("-", None)
    task = asyncio.create_task(drain(stub, asked))
    await asyncio.wait_for(begun.wait(), 5)
    task.cancel()
    await asyncio.wait_for(ended.wait(), 2)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_health_says_when_models_are_loaded_and_requests_wait_for_that(
    connect: Connect, asked: DeliveryRequest
) -> None:
    source = raising(NotFoundError("loaded"))
    source.may_load.clear()
    server = Server(CommonSettings(port=0, redis_url=""), source, add_DownlinkServicer_to_server)
    channel = connect(f"127.0.0.1:{await server.start()}")
    health, stub = health_pb2_grpc.HealthStub(channel), DownlinkStub(channel)
    loading = asyncio.create_task(server.load())
    assert (
        await health.Check(health_pb2.HealthCheckRequest())
    ).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(UnavailableError, match="loading"):
        await drain(stub, asked)
    source.may_load.set()
    await loading
    assert (
        await health.Check(health_pb2.HealthCheckRequest())
    ).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(NotFoundError, match="loaded"):
        await drain(stub, asked)
    await server.stop()


async def test_shutdown_finishes_what_is_in_flight(connect: Connect, asked: DeliveryRequest) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def script() -> AsyncIterator[SymbolFrame]:
        begun.set()
        await release.wait()
        yield SymbolFrame(header=TransmissionHeader(channel_uses=1))

    server = Server(
        CommonSettings(port=0, redis_url=""), ScriptedDownlink(script), add_DownlinkServicer_to_server
    )
    stub = DownlinkStub(connect(f"127.0.0.1:{await server.start()}"))
    await server.load()
    call = asyncio.create_task(drain(stub, asked))
    await asyncio.wait_for(begun.wait(), 5)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    with pytest.raises(UnavailableError):
        await drain(stub, asked)
    release.set()
    assert len(await call) == 1
    await stopping


async def test_health_watchers_do_not_delay_shutdown(connect: Connect) -> None:
    server = Server(CommonSettings(port=0, redis_url=""), raising(KeyError()), add_DownlinkServicer_to_server)
    health = health_pb2_grpc.HealthStub(connect(f"127.0.0.1:{await server.start()}"))
    await server.load()
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await asyncio.wait_for(server.stop(), 5)


async def test_reflection_streams_do_not_delay_shutdown(connect: Connect) -> None:
    server = Server(CommonSettings(port=0, redis_url=""), raising(KeyError()), add_DownlinkServicer_to_server)
    stub = ServerReflectionStub(connect(f"127.0.0.1:{await server.start()}"))
    asking = stub.ServerReflectionInfo()
    for _ in range(2):
        await asking.write(ServerReflectionRequest(list_services=""))
        services = (await asking.read()).list_services_response.service
        assert "dekag.v1.Downlink" in [each.name for each in services]
    await asyncio.wait_for(server.stop(), 5)


async def test_a_port_in_use_is_an_error(closed_port: int) -> None:
    first = Server(CommonSettings(port=closed_port), raising(KeyError()), add_DownlinkServicer_to_server)
    await first.start()
    second = Server(CommonSettings(port=closed_port), raising(KeyError()), add_DownlinkServicer_to_server)
    with pytest.raises(
        SettingError, match=f"cannot listen on 127.0.0.1:{closed_port}: DEKAG_PORT must be free"
    ):
        await second.start()
    await second.stop()
    await first.stop()


async def test_the_log_says_how_many_bytes_crossed(
    start: Start, connect: Connect, asked: DeliveryRequest
) -> None:
    frames = [
        SymbolFrame(header=TransmissionHeader(channel_uses=2, codec_hash="x" * 300)),
        SymbolFrame(symbols=SymbolBlock(iq=bytes(16))),
    ]

    async def script() -> AsyncIterator[SymbolFrame]:
        for frame in frames:
            yield frame

    stub = DownlinkStub(connect(await start(ScriptedDownlink(script), add_DownlinkServicer_to_server)))
    begin_request("counted", 10)
    with capture_logs() as logs:
        assert await drain(stub, asked) == frames
    (line,) = [entry for entry in logs if entry["event"] == "request"]  # before the stream's end is sent
    assert line["received_bytes"] == converters.request_to_proto(asked).ByteSize()
    assert line["sent_bytes"] == sum(frame.ByteSize() for frame in frames)


async def status_of(address: str, connect: Connect) -> str:
    request = health_pb2.HealthCheckRequest(service=CHAIN)
    answer = await health_pb2_grpc.HealthStub(connect(address)).Check(request)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def becomes(status: str, address: str, connect: Connect) -> None:
    async with asyncio.timeout(30):
        while await status_of(address, connect) != status:  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.05)


async def test_health_follows_the_service_below(start: Start, connect: Connect, closed_port: int) -> None:
    def below() -> Server:
        settings = CommonSettings(port=closed_port, redis_url="")
        return Server(settings, raising(RuntimeError()), add_DownlinkServicer_to_server)

    address = f"127.0.0.1:{closed_port}"
    for _ in range(2):
        settings = ChannelSettings(port=0, downlink_address=address)
        address = await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)
    assert await status_of(address, connect) == "NOT_SERVING"
    for _ in range(2):
        server = below()
        await server.start()
        await server.load()
        await becomes("SERVING", address, connect)
        await server.stop()
        await becomes("NOT_SERVING", address, connect)


@pytest.mark.parametrize(
    ("error", "retryable", "calls"),
    [
        (UnavailableError("not now"), True, 3),
        (UnavailableError("not now"), False, 1),
        (ExhaustedError("too many"), True, 1),
        (InvalidInputError("prompt", "shorter", "long"), True, 1),
    ],
)
async def test_only_safe_calls_are_repeated_after_passing_errors(
    start: Start, error: DekagError, retryable: bool, calls: int, asked: DeliveryRequest
) -> None:
    seen: list[float | None] = []

    async def script() -> AsyncIterator[SymbolFrame]:
        seen.append(time_remaining())
        if len(seen) < 3:
            raise error
        yield SymbolFrame(header=TransmissionHeader(channel_uses=1))

    address = await start(ScriptedDownlink(script), add_DownlinkServicer_to_server)
    methods = [("dekag.v1.Downlink", "Provide")] if retryable else []
    begin_request(None, 30)
    async with clients.open_channel(address, CommonSettings(), retryable=methods) as channel:
        if calls == 3:
            assert len(await drain(DownlinkStub(channel), asked)) == 1
        else:
            with pytest.raises(type(error)):
                await drain(DownlinkStub(channel), asked)
    assert len(seen) == calls
    assert all(left is not None and left <= 30 for left in seen), "attempts share the deadline"


@pytest.mark.slow
async def test_hanging_peer_is_given_up_before_the_deadline(closed_port: int, asked: DeliveryRequest) -> None:
    env = os.environ | {"DEKAG_PORT": str(closed_port), "DEKAG_DOWNLINK_ADDRESS": "127.0.0.1:1"}
    process = subprocess.Popen([sys.executable, "-m", "services.channel"], env=env)  # noqa: ASYNC220
    try:
        async with clients.open_channel(f"127.0.0.1:{closed_port}", CommonSettings()) as channel:
            stub = DownlinkStub(channel)
            await answers(stub, asked)
            process.send_signal(signal.SIGSTOP)
            for _ in range(2):
                assert str(await refusal(stub, asked)) == "the channel service cannot be reached"
            process.send_signal(signal.SIGCONT)
            await answers(stub, asked)
    finally:
        process.kill()
        process.wait()


async def answers(stub: DownlinkStub, asked: DeliveryRequest) -> None:
    """Waits until the channel says that it has no edge."""
    async with asyncio.timeout(60):
        while "edge service" not in str(await refusal(stub, asked)):  # noqa: ASYNC110 - no event either
            await asyncio.sleep(0.2)


async def refusal(stub: DownlinkStub, asked: DeliveryRequest) -> UnavailableError:
    begin_request(None, 60)
    with pytest.raises(UnavailableError) as raised:
        await drain(stub, asked)
    return raised.value
