"""Services in the process of the tests, on free ports, over real gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI
from peft import get_peft_model

from dekag.cala import CalaConfig
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.methods import cala_config
from dekag.codec import JsccCodec
from dekag.generation.loading import folder_hash
from dekag.profile import load_profile
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.common import clients
from services.common.server import Server
from services.common.settings import CommonSettings
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings
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


def adapters(codec: Path, seed: int, config: CalaConfig | None = None, **info: Any) -> TransmissionKnowledge:
    """Untrained adapters of the codec in that folder that do something."""
    torch.manual_seed(seed)
    adapted = get_peft_model(JsccCodec.load(codec), config or CalaConfig(rank=2))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    known = {
        "base_hash": folder_hash(codec),
        "config": {"steps": 1, "seed": 1},
        "scores": {"psnr_db": 20.5 + seed},
        **info,
    }
    return TransmissionKnowledge.new(known, adapted)


def with_adapters(profile: Path, folder: Path, knowledge: TransmissionKnowledge) -> Path:
    """A copy of ``profile`` in ``folder`` that comes with these adapters."""
    shutil.copytree(profile, folder)
    knowledge.save(folder / "cala")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "adapters": "cala"}))
    return folder


def without_pixel_codec(profile: Path, folder: Path) -> Path:
    """A copy of a profile without its codec of pixels."""
    shutil.copytree(profile, folder)
    described = json.loads((folder / "profile.json").read_text())
    del described["pixel_codec"]
    (folder / "profile.json").write_text(json.dumps(described))
    return folder


def latent_channels(profile: Path) -> int:
    """Of what a profile's codec sends."""
    return int(JsccCodec.load(load_profile(profile).codec).config.latent_channels)


def with_unaligned_codec(profile: Path, folder: Path) -> Path:
    """A copy of ``profile`` in ``folder`` whose unaligned deliveries have a codec of their own."""
    torch.manual_seed(6)
    shutil.copytree(profile, folder)
    channels = latent_channels(profile)
    codec = JsccCodec(latent_channels=channels, width=8, blocks=1, fold=4, interleaved=True)
    codec.save_pretrained(folder / "one-rate")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "unaligned_codec": "one-rate"}))
    return folder


RESTORATION = {"psnrs_db": [10.0, 40.0], "timesteps": [500, 1]}


def with_reading_codec(profile: Path, folder: Path, *, text_width: int) -> Path:
    """A copy of ``profile`` in ``folder`` whose codec is folded and interleaved, and adapted to prompts."""
    torch.manual_seed(4)
    shutil.copytree(profile, folder)
    codec = JsccCodec(
        latent_channels=latent_channels(profile),
        width=8,
        blocks=2,
        fold=4,
        interleaved=True,
        adaptive_modulation=True,
    )
    codec.save_pretrained(folder / "codec")
    config = cala_config(codec, 2, text_width)
    known = {"quality": QUALITY, "restoration": RESTORATION}
    adapters(folder / "codec", 5, config, **known).save(folder / "cala")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "adapters": "cala"}))
    return folder


def with_evaluators(profile: Path, folder: Path) -> Path:
    """A copy of ``profile`` in ``folder`` whose images the shipped profile's evaluators score."""
    shutil.copytree(profile, folder)
    described, scorer = json.loads((folder / "profile.json").read_text()), load_profile("stickers").scorer
    assert scorer is not None
    (folder / "profile.json").write_text(json.dumps({**described, "scorer": scorer.model_dump()}))
    return folder


def with_topics(profile: Path, folder: Path) -> Path:
    """A copy of ``profile`` in ``folder`` with topics of its own, glow and, with test prompts, frost."""
    shutil.copytree(profile, folder)
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "topics": "topics"}))
    (folder / "topics").mkdir()
    templates = "a {red|blue|green|white} {cat|dog|cow|hen} {in the snow|at sea|at night} that glows"
    (folder / "topics" / "glow.yaml").write_text(f'prompts: ["{templates}"]')
    (folder / "topics" / "frost.yaml").write_text(
        f'prompts: ["{templates} under frost"]\ntest_prompts: [a boat under frost]'
    )
    return folder


def with_own_topics(profile: Path, folder: Path) -> Path:
    """A copy of ``profile`` in ``folder`` as researchers have it: own topics, evaluators, no probe."""
    with_topics(profile, folder)
    described, scorer = json.loads((folder / "profile.json").read_text()), load_profile("stickers").scorer
    assert scorer is not None
    described["scorer"] = {"clip": scorer.clip, "dino": scorer.dino}
    described["distill"] = {"images": 4, "held_out": 2, "steps": 2, "batch": 2, "rank": 1, "tokens": 1}
    described["knowledge"] = "knowledge"
    (folder / "profile.json").write_text(json.dumps(described))
    return folder


@contextmanager
def data_in(folder: Path) -> Iterator[None]:
    """The knowledge of this checkout stays untouched, and no gateway draws unasked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEKAG_DATA_DIR", str(folder))
        patch.setenv("DEKAG_WATCH_SHARE", "0")
        yield


_TAKEN: set[Path] = set()
"""Data folders of clouds that run in this process: each has one cloud."""


@asynccontextmanager
async def starter() -> AsyncIterator[Start]:
    """A function that runs a servicer and returns its address; all are stopped, last first, in the end."""
    torch.set_num_threads(1)
    servers: list[Server] = []
    folders: set[Path] = set()

    async def start(
        servicer: Any, add: Any, settings: CommonSettings | None = None, name: str = "service"
    ) -> str:
        own = settings or CommonSettings(port=0, redis_url="")
        if "drain_s" not in own.model_fields_set:
            own = own.model_copy(update={"drain_s": 0.0})  # no client would come in that second
        server = Server(own, servicer, add, name)
        servers.append(server)
        port = await server.start()
        await server.load()
        if isinstance(settings, CloudSettings):
            folders.add(settings.data_dir)
            _TAKEN.add(settings.data_dir)
        return f"127.0.0.1:{port}"

    try:
        yield start
    finally:
        for server in reversed(servers):
            await server.stop()
        _TAKEN.difference_update(folders)


@dataclass
class Chain:
    """Addresses and stubs of a whole chain."""

    addresses: dict[str, str]
    cloud: CloudStub
    edge: DownlinkStub
    channel: DownlinkStub
    user: UserStub


async def start_chain(
    start: Start, profile: Path, redis_url: str, own: Callable[[str], dict[str, Any]] = lambda _: {}
) -> dict[str, str]:
    """Runs cloud, edge, channel and user with ``start``; returns their addresses.

    ``own`` gives settings of one of them by its name. If another cloud has the data folder of the
    environment, this one gets a new one.
    """

    def models(name: str) -> dict[str, Any]:
        return {"port": 0, "redis_url": redis_url, "profile": str(profile), **own(name)}

    cloud = CloudSettings(**models("cloud"))
    if cloud.data_dir in _TAKEN and "data_dir" not in own("cloud"):
        folder = Path(tempfile.mkdtemp(dir=cloud.data_dir.parent))
        cloud = cloud.model_copy(update={"data_dir": folder})
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


@asynccontextmanager
async def running_chain(profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    """Runs cloud, edge, channel and user with these models and a real Redis."""
    async with starter() as start:
        addresses = await start_chain(start, profile, redis_url)
        channels = {
            name: clients.open_channel(address, CommonSettings()) for name, address in addresses.items()
        }
        yield Chain(
            addresses,
            CloudStub(channels["cloud"]),
            DownlinkStub(channels["edge"]),
            DownlinkStub(channels["channel"]),
            UserStub(channels["user"]),
        )
        for channel in channels.values():
            await channel.close()


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


@asynccontextmanager
async def serving_chain(chain: Chain, redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway in front of ``chain``."""
    settings = GatewaySettings(
        user_address=chain.addresses["user"], cloud_address=chain.addresses["cloud"], redis_url=redis_url
    )
    async with serving(create_app(settings)) as client:
        yield client


async def gone(folder: Path) -> None:
    """Waits until ``folder`` is deleted, or empty: that follows a moment after a job's last state."""
    async with asyncio.timeout(60):
        while folder.exists() and any(folder.iterdir()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.05)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task until it ends: redis-py swallows a cancellation now and then."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)


def forget_orders() -> None:
    """Jobs of tests before stay on the disk, from where the cloud would queue them again."""
    shutil.rmtree(Path(os.environ["DEKAG_DATA_DIR"]) / "jobs", ignore_errors=True)
