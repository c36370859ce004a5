"""Calls to several replicas of a service: who is asked, and that no call fails when one goes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from dekag.errors import UnavailableError
from services.common import clients, metrics
from services.common.errors import SettingError
from services.common.request_context import begin_request
from services.common.server import Server
from services.common.settings import CommonSettings
from services.proto.downlink_pb2 import ProvideRequest, SymbolFrame, TransmissionHeader
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub, add_DownlinkServicer_to_server

pytestmark = pytest.mark.asyncio(loop_scope="session")
PROVIDE = ("dekag.v1.Downlink", "Provide")
SETTINGS = CommonSettings(port=0, redis_url="", drain_s=0.2, connection_age_s=1.0)


class Replica(DownlinkServicer):
    """Answers with its name, which is the hash of a codec here; fails each seed's first call if it should."""

    def __init__(self, name: str, *, work_s: float = 0.0, fails_first: bool = False) -> None:
        self.name, self._work_s, self._fails_first = name, work_s, fails_first
        self._seen: set[int] = set()

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Provide(self, request: ProvideRequest, context: Any) -> AsyncIterator[SymbolFrame]:  # noqa: N802
        await asyncio.sleep(self._work_s)
        if self._fails_first and request.seed not in self._seen:
            self._seen.add(request.seed)
            raise UnavailableError("not now")
        yield SymbolFrame(header=TransmissionHeader(codec_hash=self.name))


@asynccontextmanager
async def replicas(*servicers: Replica, host: str = "127.0.0.1") -> AsyncIterator[tuple[list[Server], str]]:
    """The running servers and their addresses; all but those that the test has stopped are stopped."""
    settings = SETTINGS.model_copy(update={"host": host})
    servers = [Server(settings, each, add_DownlinkServicer_to_server) for each in servicers]
    ports = [await server.start() for server in servers]
    for server in servers:
        await server.load()
    yield servers, ",".join(f"{host}:{port}" for port in ports)
    for server in servers:
        with suppress(Exception):
            await server.stop()


async def ask(channel: aio.Channel, seed: int = 0, **fields: Any) -> str:
    """Name of the replica that answered."""
    begin_request(None, 30)
    request = ProvideRequest(seed=seed, **fields)
    (frame,) = [each async for each in clients.stream(DownlinkStub(channel).Provide, request, "edge")]
    return str(frame.header.codec_hash)


async def all_answer(channel: aio.Channel, names: set[str]) -> None:
    """Waits until each of these replicas, and no other one, has answered one of the last calls."""
    async with asyncio.timeout(60):
        while {await ask(channel) for _ in range(4 * len(names))} != names:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.05)


async def test_replicas_are_asked_in_turn() -> None:
    async with (
        replicas(Replica("a"), Replica("b"), Replica("c")) as (_, address),
        clients.open_channel(address, SETTINGS) as channel,
    ):
        await all_answer(channel, {"a", "b", "c"})
        answered = Counter([await ask(channel) for _ in range(60)])
        assert min(answered.values()) >= 16, answered


async def test_a_replica_that_loads_is_left_out() -> None:
    loading = Server(SETTINGS, Replica("b"), add_DownlinkServicer_to_server)
    async with replicas(Replica("a")) as (_, address):
        addresses = f"{address},127.0.0.1:{await loading.start()}"
        async with clients.open_channel(addresses, SETTINGS) as channel:
            assert {await ask(channel) for _ in range(20)} == {"a"}
            await loading.load()
            await all_answer(channel, {"a", "b"})
    await loading.stop()


@pytest.mark.parametrize("work_s", [0.0, 0.3])
async def test_no_call_fails_while_a_replica_stops(work_s: float) -> None:
    async with (
        replicas(Replica("a", work_s=work_s), Replica("b", work_s=work_s)) as (servers, address),
        clients.open_channel(address, SETTINGS) as channel,  # without retries
    ):
        await all_answer(channel, {"a", "b"})
        calls, stopping = [], asyncio.create_task(servers[0].stop())
        while not stopping.done() or len(calls) < 100:
            calls.append(asyncio.create_task(ask(channel)))
            await asyncio.sleep(0.01)
        assert set(await asyncio.gather(*calls)) <= {"a", "b"}
        assert {await ask(channel) for _ in range(10)} == {"b"}


async def test_all_calls_of_a_broken_connection_are_repeated() -> None:
    calls = 32
    name = "service.Provide"
    before = metrics.RETRIES.labels(name)._value.get()
    async with (
        replicas(Replica("a", fails_first=True)) as (_, address),
        clients.open_channel(address, SETTINGS, retryable=[PROVIDE], simultaneous=calls) as channel,
    ):
        assert await asyncio.gather(*(ask(channel, seed) for seed in range(calls))) == ["a"] * calls
    assert metrics.RETRIES.labels(name)._value.get() - before == calls


async def test_calls_of_any_size_are_repeated() -> None:
    async with (
        replicas(Replica("a", fails_first=True)) as (_, address),
        clients.open_channel(address, SETTINGS, retryable=[PROVIDE]) as channel,
    ):
        assert await ask(channel, prompt="x" * 2**20) == "a"


async def test_a_list_has_no_name_for_certificates(credentials_dir: Path) -> None:
    settings = CommonSettings(tls_dir=credentials_dir / "gateway")
    with pytest.raises(SettingError, match="must have one host name"):
        clients.open_channel("10.0.0.1:1,10.0.0.2:1", settings)


class Names(asyncio.DatagramProtocol):
    """A DNS server with one name, whose IPv4 addresses are ``addresses``."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, client: Any) -> None:
        end = data.index(0, 12) + 5
        (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
        found = self.addresses if kind == 1 else []  # 1: A
        header = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(found), 0, 0)
        answers = b"".join(
            struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address) for address in found
        )
        self._transport.sendto(header + data[12:end] + answers, client)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Names], Awaitable[None]]]:
    """Makes channels resolve names with a server of the test's own."""
    transports = []

    async def serve(names: Names) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 0))
        transports.append(transport)
        port = transport.get_extra_info("sockname")[1]
        monkeypatch.setattr(clients, "target", lambda address: f"dns://127.0.0.1:{port}/{address}")

    yield serve
    for transport in transports:
        transport.close()


async def test_new_replicas_of_a_name_are_found(resolved: Callable[[Names], Awaitable[None]]) -> None:
    names = Names(["127.0.0.1"])
    await resolved(names)
    async with replicas(Replica("a")) as (_, address):
        port = int(address.rpartition(":")[2])
        second = Server(
            SETTINGS.model_copy(update={"host": "127.0.0.2", "port": port}),
            Replica("b"),
            add_DownlinkServicer_to_server,
        )
        async with clients.open_channel(f"edge.example:{port}", SETTINGS) as channel:
            assert {await ask(channel) for _ in range(5)} == {"a"}
            await second.start()
            await second.load()
            names.addresses = ["127.0.0.1", "127.0.0.2"]
            await all_answer(channel, {"a", "b"})  # once the connection has reached its age
            names.addresses = ["127.0.0.2"]
            await all_answer(channel, {"b"})
        await second.stop()
