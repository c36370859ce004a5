"""A whole chain with tiny models, knowledge and adapters, and the count of what is thrown at it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from services.cloud.version_store import KnowledgeStore
from services.common import clients
from services.common.settings import CommonSettings
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2_grpc import DownlinkStub
from services.proto.user_pb2_grpc import UserStub
from tests.chain import (  # noqa: F401 - fixtures
    Chain,
    _environment,
    _start_chain,
    channels,
    client,
    connected,
    gateway_url,
    starter,
)
from tests.hostile.artifacts import tiny_adapters, tiny_update
from tests.hostile.tally import Tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write results/trust/fuzz.json and the figures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fuzz)


@pytest.fixture(scope="session", autouse=True)
def _settings() -> Iterator[None]:
    """No log lines, which would fill the disk; a cache that is asked again at once after a failure."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEKAG_REDIS_RETRY_S", "0")
        patch.setenv("DEKAG_MAX_QUEUE", "1000")
        yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Counts what this session tries; nothing is recorded of one in which a test failed."""
    counted = Tally()
    yield counted
    if request.config.getoption("--record") and not request.session.testsfailed:
        counted.write()


@pytest.fixture(scope="session")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile, with adapters that know what quality to expect."""
    folder = tmp_path_factory.mktemp("fuzz") / "profile"
    shutil.copytree(dummy_profile, folder)
    tiny_adapters(folder / "codec").save(folder / "cala")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "adapters": "cala"}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _taught(profile: Path) -> None:
    """The cloud has knowledge of the topic neon, whatever tests before have deleted."""
    update = tiny_update(profile)
    store = KnowledgeStore(Path(os.environ["DEKAG_DATA_DIR"]))
    store.publish("0" * 32, update.info, update.content_hash, update.to_files(), b"PNG")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chain(profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    """cloud, edge, channel and user."""
    async with starter() as run:
        addresses = await _start_chain(run, profile, redis_url)
        opened = {name: clients.open_channel(at, CommonSettings()) for name, at in addresses.items()}
        yield Chain(
            addresses,
            CloudStub(opened["cloud"]),
            DownlinkStub(opened["edge"]),
            DownlinkStub(opened["channel"]),
            UserStub(opened["user"]),
        )
        for channel in opened.values():
            await channel.close()
