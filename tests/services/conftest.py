"""What the tests of all services share; those of a whole chain are in tests/conftest.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dekag.link import LinkConditions
from dekag.profile import load_profile
from services.common import clients
from services.common.converters import DeliveryRequest
from services.common.request_context import begin_request
from services.common.settings import CommonSettings
from services.launcher.credentials import make_credentials
from tests.chain import Start, forget_orders, starter


@pytest.fixture(scope="session", autouse=True)
def _own_data(own_data: None) -> None:
    """No test touches the knowledge of this checkout, and no gateway draws unasked unless a test wants it."""


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


@pytest.fixture(scope="session")
def _second_database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest_asyncio.fixture(loop_scope="session")
async def own_redis(_second_database: str) -> AsyncIterator[Redis]:
    """An empty database of its own: the cloud of the other tests' chain forgets what it has no topic of."""
    async with _emptied(_second_database) as redis:
        yield redis


@pytest.fixture
def own_redis_url(own_redis: Redis, _second_database: str) -> str:
    """Where that is."""
    return _second_database


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
        channels.append(clients.open_channel(address, CommonSettings(), only_serving=False))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture(scope="session")
def scored_profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models with the real encoders."""
    profile, folder = load_profile(dummy_profile), tmp_path_factory.mktemp("scored")
    scorer = load_profile("stickers").scorer
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


@pytest.fixture(scope="session")
def gateway_url(client: httpx2.AsyncClient) -> str:
    """Where that gateway answers."""
    return str(client.base_url).rstrip("/")


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
