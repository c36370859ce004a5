"""A whole chain with tiny models, knowledge and adapters, and the count of what is thrown at it.

Chain, database of Redis, folder of data and settings are this package's own: nothing is left for other tests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
import structlog
from grpc import aio

from services.cloud.version_store import KnowledgeStore
from services.common import clients
from services.common.settings import CommonSettings
from tests.chain import Chain, data_in, running_chain, serving_chain, with_adapters
from tests.hostile.artifacts import tiny_adapters, tiny_update
from tests.hostile.budgets import is_thorough
from tests.hostile.tally import INPUTS, PICTURES, Tally


@pytest.hookimpl(trylast=True)  # after Hypothesis has read which profile is wanted
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record", default=False) and not is_thorough():
        raise pytest.UsageError("--record needs --hypothesis-profile=thorough, as `make test-fuzz` gives it")


@pytest.fixture(scope="package", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No log lines, which would fill the disk; a cache that is asked again at once after a failure."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with data_in(tmp_path_factory.mktemp("data")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEKAG_REDIS_RETRY_S", "0")
        patch.setenv("DEKAG_MAX_QUEUE", "1000")
        yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.fixture(scope="package")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts what this run tries; nothing is recorded of one in which a test failed."""
    counted = Tally()
    yield counted
    if _records(request, "test_rest") and not request.session.testsfailed:
        counted.write(INPUTS)


@pytest.fixture(scope="package")
def picture_tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The same for hostile pictures."""
    counted = Tally()
    yield counted
    if _records(request, "test_pictures") and not request.session.testsfailed:
        counted.write(PICTURES)


def _records(request: pytest.FixtureRequest, module: str) -> bool:
    """Whether to record, and the tests of a module are part of the run: a part alone replaces no other's."""
    asked = request.config.getoption("--record", default=False)
    return bool(asked) and any(item.path.stem == module for item in request.session.items)


@pytest.fixture(scope="package")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile, with adapters that know what quality to expect."""
    folder = tmp_path_factory.mktemp("hostile") / "profile"
    return with_adapters(dummy_profile, folder, tiny_adapters(dummy_profile / "codec"))


@pytest.fixture(scope="module", autouse=True)
def _taught(profile: Path) -> None:
    """The cloud has knowledge of the topic neon, whatever tests before have deleted."""
    update = tiny_update(profile)
    store = KnowledgeStore(Path(os.environ["DEKAG_DATA_DIR"]))
    store.publish("0" * 32, update.info, update.content_hash, update.to_files(), b"PNG")


@pytest.fixture(scope="package")
def redis_url(new_database: Callable[[], str]) -> str:
    """A database of its own in the Redis of all tests."""
    return new_database()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def chain(profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    """cloud, edge, channel and user."""
    async with running_chain(profile, redis_url) as chain:
        yield chain


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def client(chain: Chain, redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway in front of the chain."""
    async with serving_chain(chain, redis_url) as client:
        yield client


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def connected() -> AsyncIterator[Callable[[str], aio.Channel]]:
    """Opens channels, which stay open until the last test."""
    channels: list[aio.Channel] = []

    def open_channel(address: str) -> aio.Channel:
        channels.append(clients.open_channel(address, CommonSettings()))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture(scope="package")
def channels(chain: Chain, connected: Callable[[str], aio.Channel]) -> Mapping[str, aio.Channel]:
    """A channel to each service of the chain."""
    return {name: connected(address) for name, address in chain.addresses.items()}
