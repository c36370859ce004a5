"""Places for watches of health and for reflection: who holds many keeps nobody out. Over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.common import clients
from services.common.security import channel_credentials
from services.common.server import MAX_CONNECTIONS, MAX_REFLECTIONS, Server
from services.common.settings import CommonSettings
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server

pytestmark = pytest.mark.asyncio(loop_scope="session")
OPTIONS = [("grpc.use_local_subchannel_pool", 1)]
WAIT_S = 60
Open = Callable[[aio.Channel], Awaitable[Any]]


class Nothing(DownlinkServicer):
    """A servicer that only has a health."""

    def load(self) -> None: ...

    async def close(self) -> None: ...


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[int]:
    """The port of a channel service."""
    known = {"port": 0, "redis_url": "", "grace_s": 0, "drain_s": 0, **settings}
    server = Server(CommonSettings(**known), Nothing(), add_DownlinkServicer_to_server, "channel")
    port = await server.start()
    await server.load()
    yield port
    await server.stop()


async def watch(channel: aio.Channel) -> Any:
    """A watch of the health that has begun."""
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
    return call


async def reflect(channel: aio.Channel) -> Any:
    """A stream of reflection that has begun."""
    call = ServerReflectionStub(channel).ServerReflectionInfo()  # type: ignore[no-untyped-call]
    await call.write(ServerReflectionRequest(list_services=""))
    assert await call.read() != aio.EOF
    return call


async def ended(calls: Sequence[Any], count: int) -> list[Any]:
    """As many of the calls that have ended."""
    async with asyncio.timeout(WAIT_S):
        while len(found := [call for call in calls if call.done()]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize(("begin", "most"), [(watch, MAX_CONNECTIONS), (reflect, MAX_REFLECTIONS)])
async def test_one_certificate_does_not_keep_another_out(
    credentials_dir: Path, begin: Open, most: int
) -> None:
    async with serving(tls_dir=credentials_dir / "channel") as port:

        def channel(name: str) -> aio.Channel:
            credentials = channel_credentials(credentials_dir / name)
            assert credentials is not None
            return aio.secure_channel(f"localhost:{port}", credentials, options=OPTIONS)

        async with channel("operator") as attackers, channel("user") as users:
            taken = [await begin(attackers) for _ in range(most)]
            callers = [await begin(users) for _ in range(3)]
            for call in await ended(taken, 3):
                assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "made room for another" in await call.details()
            more = [await begin(attackers) for _ in range(most)]
            await ended([*taken, *more], most + 3)
            assert not any(call.done() for call in callers), "they do not make room for who has more"


async def test_one_address_does_not_keep_another_out() -> None:
    async with (
        serving(host="::", published_on="nowhere") as port,
        aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as attackers,
        clients.open_channel(f"[::1]:{port}", CommonSettings()) as users,
    ):
        taken = [await watch(attackers) for _ in range(MAX_CONNECTIONS)]
        with pytest.raises(grpc.RpcError) as caught:  # clients call only whom they can watch
            await DownlinkStub(users).Provide(ProvideRequest(), wait_for_ready=True, timeout=WAIT_S).read()
        assert caught.value.code() is grpc.StatusCode.INTERNAL, "the method has been reached"
        taken += [await watch(attackers) for _ in range(10)]
        await ended(taken, 11)


@pytest.mark.parametrize("begin", [watch, reflect])
async def test_held_streams_end_with_the_age_of_connections(begin: Open) -> None:
    async with (
        serving(connection_age_s=0.1) as port,
        aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel,
    ):
        (call,) = await ended([await begin(channel)], 1)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_watch_without_a_message_ends() -> None:
    async with (
        serving(receive_timeout_s=0.2) as port,
        aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel,
    ):
        (call,) = await ended([channel.stream_stream("/grpc.health.v1.Health/Watch")()], 1)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
