"""The services in this process, on free ports, over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import torch
from fastapi import FastAPI
from grpc import aio
from peft import get_peft_model
from redis.asyncio import Redis

from dekag.cala import CalaConfig
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec
from dekag.generation.models import folder_hash
from dekag.generation.profile import load_profile
from dekag.link import LinkConditions
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.cloud.distiller import Distiller
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings, DistillerSettings
from services.common import clients
from services.common.converters import DeliveryRequest
from services.common.request_context import begin_request
from services.common.server import Server
from services.common.settings import CommonSettings
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import make_credentials
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings

Start = Callable[..., Awaitable[str]]
RATES = (1 / 768, 1 / 384, 1 / 192, 1 / 96)
# PSNR rises by 4 dB with each doubling of the rate, and by the SNR
QUALITY = {
    "cbrs": RATES,
    "snrs_db": [0, 20],
    "directs": [0, 1],
    "taus_s": [1e-7, 1e-6],
    "mean_db": [[[[10 + snr + 4 * i for i in range(4)] for snr in (0, 20)]] * 2] * 2,
    "spread_db": [[[[0.0] * 4] * 2] * 2] * 2,
}


def adapters(codec: Path, seed: int, **info: Any) -> TransmissionKnowledge:
    """Untrained adapters of the codec in that folder that do something."""
    torch.manual_seed(seed)
    adapted = get_peft_model(JsccCodec.load(codec), CalaConfig(rank=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    known = {"base_hash": folder_hash(codec), "config": {}, "scores": {"psnr_db": 20.5 + seed}, **info}
    return TransmissionKnowledge.new(known, adapted)


@pytest.fixture(scope="session")
def adapted_profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile, with adapters of its own that say what quality to expect."""
    folder = tmp_path_factory.mktemp("profile") / "with-adapters"
    shutil.copytree(dummy_profile, folder)
    adapters(folder / "codec", 1, quality=QUALITY).save(folder / "cala")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "adapters": "cala"}))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the knowledge of this checkout, and no gateway draws unasked unless a test wants it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEKAG_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("DEKAG_WATCH_SHARE", "0")
        yield


@asynccontextmanager
async def _emptied(url: str) -> AsyncIterator[Redis]:
    begin_request(None, None)
    async with Redis.from_url(url) as redis:
        await redis.flushdb()
        yield redis
        await redis.flushdb()


@pytest_asyncio.fixture(loop_scope="session")
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """An empty Redis."""
    forget_orders()
    async with _emptied(redis_url) as redis:
        yield redis


@pytest_asyncio.fixture(loop_scope="session")
async def own_redis(redis_url: str) -> AsyncIterator[Redis]:
    """An empty database of its own: the cloud of the other tests' chain forgets what it has no topic of."""
    async with _emptied(redis_url.removesuffix("/0") + "/1") as redis:
        yield redis


@asynccontextmanager
async def starter() -> AsyncIterator[Start]:
    """A function that runs a servicer and returns its address; all are stopped, last first, in the end."""
    torch.set_num_threads(1)
    servers: list[Server] = []

    async def start(
        servicer: Any, add: Any, settings: CommonSettings | None = None, name: str = "service"
    ) -> str:
        server = Server(settings or CommonSettings(port=0, redis_url=""), servicer, add, name)
        servers.append(server)
        port = await server.start()
        await server.load()
        return f"127.0.0.1:{port}"

    try:
        yield start
    finally:
        for server in reversed(servers):
            await server.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def start() -> AsyncIterator[Start]:
    """Runs servicers for one test."""
    async with starter() as run:
        yield run


@pytest_asyncio.fixture(loop_scope="session")
async def connect() -> AsyncIterator[Callable[[str], Any]]:
    """Opens channels for one test."""
    channels = []

    def open_channel(address: str) -> Any:
        channels.append(clients.open_channel(address, CommonSettings()))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


@dataclass
class Chain:
    """Addresses and stubs of a whole chain."""

    addresses: dict[str, str]
    cloud: CloudStub
    edge: DownlinkStub
    channel: DownlinkStub
    user: UserStub


async def _start_chain(
    start: Start, profile: Path, redis_url: str, own: Callable[[str], dict[str, Any]] = lambda _: {}
) -> dict[str, str]:
    def models(name: str) -> dict[str, Any]:
        return {"port": 0, "redis_url": redis_url, "profile": str(profile), **own(name)}

    cloud = CloudSettings(**models("cloud"))
    found = {"cloud": await start(CloudServicer(cloud), add_CloudServicer_to_server, cloud, "cloud")}
    edge = EdgeSettings(**models("edge"), cloud_address=found["cloud"])
    found["edge"] = await start(EdgeServicer(edge), add_DownlinkServicer_to_server, edge, "edge")
    channel = ChannelSettings(port=0, downlink_address=found["edge"], **own("channel"))
    found["channel"] = await start(
        ChannelServicer(channel), add_DownlinkServicer_to_server, channel, "channel"
    )
    user = UserSettings(**models("user"), downlink_address=found["channel"])
    found["user"] = await start(UserServicer(user), add_UserServicer_to_server, user, "user")
    return found


@pytest.fixture(scope="session")
def start_chain() -> Callable[..., Awaitable[dict[str, str]]]:
    """Runs cloud, edge, channel and user with ``start``; returns their addresses.

    Its last argument gives settings of one of them by its name.
    """
    return _start_chain


@pytest.fixture(scope="session")
def scored_profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with the real encoders."""
    profile, folder = load_profile(dummy_profile), tmp_path_factory.mktemp("scored")
    scorer = load_profile("embedded").scorer
    assert scorer is not None
    scored = profile.model_copy(update={"scorer": scorer})
    (folder / "profile.json").write_text(scored.model_dump_json(exclude_none=True))
    return folder


@pytest.fixture(scope="session")
def credentials_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials of all services."""
    made = tmp_path_factory.mktemp("credentials")
    make_credentials(made)
    return made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chain(dummy_profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    """cloud, edge, channel and user with dummy models and a real Redis."""
    async with starter() as start:
        addresses = await _start_chain(start, dummy_profile, redis_url)
        open_channels = {
            name: clients.open_channel(address, CommonSettings()) for name, address in addresses.items()
        }
        yield Chain(
            addresses,
            CloudStub(open_channels["cloud"]),
            DownlinkStub(open_channels["edge"]),
            DownlinkStub(open_channels["channel"]),
            UserStub(open_channels["user"]),
        )
        for channel in open_channels.values():
            await channel.close()


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task until it ends: redis-py swallows a cancellation now and then."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)


@asynccontextmanager
async def serving(app: FastAPI, *, ca_file: Path | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of ``app``, which a real server serves on a free port; over HTTPS if an authority is named."""
    server = make_server(app, port=0)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(
        base_url=f"{'https' if ca_file else 'http'}://127.0.0.1:{port}",
        verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
        timeout=60,
        trust_env=False,
    ) as client:
        yield client
    server.should_exit = True
    await task


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(chain: Chain, redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway in front of the chain."""
    settings = GatewaySettings(
        user_address=chain.addresses["user"], cloud_address=chain.addresses["cloud"], redis_url=redis_url
    )
    async with serving(create_app(settings)) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def alone() -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway without Redis whose user and cloud services cannot be reached."""
    settings = GatewaySettings(user_address="127.0.0.1:1", cloud_address="127.0.0.1:1", redis_url="")
    async with serving(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def gateway_url(client: httpx2.AsyncClient) -> str:
    """Where that gateway answers."""
    return str(client.base_url).rstrip("/")


def forget_orders() -> None:
    """Jobs of tests before stay on the disk, from where the cloud would queue them again."""
    shutil.rmtree(Path(os.environ["DEKAG_DATA_DIR"]) / "jobs", ignore_errors=True)


@pytest_asyncio.fixture(loop_scope="session")
async def empty(redis_url: str) -> None:
    """Nothing is cached or queued."""
    forget_orders()
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()


@pytest_asyncio.fixture(loop_scope="session")
async def distiller(empty: None, dummy_profile: Path, redis_url: str) -> AsyncIterator[None]:
    """A worker for the chain's cloud."""
    settings = DistillerSettings(redis_url=redis_url, profile=str(dummy_profile), distill_threads=1)
    serving = asyncio.create_task(Distiller(settings).serve())
    yield
    await ended(serving)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def connected() -> AsyncIterator[Callable[[str], aio.Channel]]:
    """Opens channels for the whole session."""
    channels: list[aio.Channel] = []

    def open_channel(address: str) -> aio.Channel:
        channels.append(clients.open_channel(address, CommonSettings()))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture(scope="session")
def channels(chain: Chain, connected: Callable[[str], aio.Channel]) -> dict[str, aio.Channel]:
    """A channel to each service of the chain."""
    return {name: connected(address) for name, address in chain.addresses.items()}


@pytest.fixture
def asked() -> DeliveryRequest:
    """A plain semantic request."""
    return DeliveryRequest(
        prompt="a red fox by the sea",
        seed=7,
        width=128,
        height=128,
        delivery="semantic",
        cbr=1 / 96,
        link=LinkConditions(snr_db=15, fading="rayleigh"),
        measure=True,
    )
