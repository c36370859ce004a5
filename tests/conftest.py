"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os

# Tests start processes while gRPC runs in this one; its fork handlers would abort the children before exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# Tiny models are fastest with one thread; on a busy machine, several wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from dekag import plugins
from tests.processes import free_port, running_redis

# Services, and with them PyTorch, are imported by the fixtures that run them: most tests need none.
if TYPE_CHECKING:
    import httpx2

    from tests.chain import Chain

pytest.register_assert_rewrite("tests.services.answers", "tests.hostile.calls", "tests.hostile.rest")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="write results/trust/ and the figures of a whole run"
    )


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis server, started for this test session, without the number of a database."""
    options = ("--appendonly", "no", "--databases", "256")
    with running_redis(tmp_path_factory.mktemp("redis"), *options) as port:
        yield f"redis://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def redis_url(redis_server: str) -> str:
    """URL of the database of the chain that all tests share."""
    return f"{redis_server}/0"


@pytest.fixture(scope="session")
def new_database(redis_server: str) -> Callable[[], str]:
    """Returns the URL of an empty database of that server, another one with each call.

    A cloud puts its knowledge into Redis every two seconds and removes what another cloud put there. A
    test that runs a cloud beside that of the shared chain therefore needs a database of its own.
    """
    numbers = iter(range(16, 256))
    return lambda: f"{redis_server}/{next(numbers)}"


@pytest.fixture
def closed_port() -> int:
    """A port that refuses connections."""
    return free_port()


@pytest.fixture
def plugging() -> Iterator[None]:
    """What a test plugs in is gone after it."""
    yield
    for kind, known in plugins._plugged_in.items():
        for name in known:
            del plugins._table(kind)[name]
        known.clear()
    plugins._broken.clear()
    plugins._last_read = None


@pytest.fixture(scope="session")
def dummy_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of tiny untrained models of the real classes, with the dimensions of the embedded ones."""
    from dekag.training.tiny_models import save_dummy_models

    return save_dummy_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def foreign_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models that differ from the embedded ones in everything that a real pipeline may differ in."""
    from dekag.training.tiny_models import FOREIGN, save_dummy_models

    return save_dummy_models(tmp_path_factory.mktemp("foreign"), like=FOREIGN)


@pytest.fixture(scope="session")
def adapted_profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile, with adapters of its own that say what quality to expect and how to restore."""
    from tests.chain import QUALITY, RESTORATION, adapters, with_adapters

    folder = tmp_path_factory.mktemp("profile") / "with-adapters"
    known = {"quality": QUALITY, "restoration": RESTORATION}
    return with_adapters(dummy_profile, folder, adapters(dummy_profile / "codec", 1, **known))


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services keep their data in a folder of this session's."""
    from tests.chain import data_in

    with data_in(tmp_path_factory.mktemp("data")):
        yield


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chain(own_data: None, dummy_profile: Path, redis_url: str) -> AsyncIterator[Chain]:
    """cloud, edge, channel and user with dummy models and a real Redis."""
    from tests.chain import running_chain

    async with running_chain(dummy_profile, redis_url) as chain:
        yield chain


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(chain: Chain, redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway in front of the chain."""
    from tests.chain import serving_chain

    async with serving_chain(chain, redis_url) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def alone(own_data: None) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway without Redis whose user and cloud services cannot be reached."""
    from services.gateway.app import create_app
    from services.gateway.settings import GatewaySettings
    from tests.chain import serving

    settings = GatewaySettings(user_address="127.0.0.1:1", cloud_address="127.0.0.1:1", redis_url="")
    async with serving(create_app(settings)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def empty(own_data: None, redis_url: str) -> None:
    """Nothing is cached or queued."""
    from redis.asyncio import Redis

    from tests.chain import forget_orders

    forget_orders()
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()


@pytest_asyncio.fixture(loop_scope="session")
async def distiller(empty: None, dummy_profile: Path, redis_url: str) -> AsyncIterator[None]:
    """A worker for the chain's cloud."""
    from services.cloud.distiller import Distiller
    from services.cloud.settings import DistillerSettings
    from tests.chain import ended

    settings = DistillerSettings(redis_url=redis_url, profile=str(dummy_profile), distill_threads=1)
    serving = asyncio.create_task(Distiller(settings).serve())
    yield
    await ended(serving)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shapes that the tests draw, in the place of the world's artwork."""
    from dekag.stickers import assets
    from dekag.stickers.sprites import forget_sprites
    from tests.stickers.conftest import save_shapes

    folder = tmp_path_factory.mktemp("artwork")
    save_shapes(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(assets.VARIABLE, str(folder))
        forget_sprites()
        yield folder
    forget_sprites()
