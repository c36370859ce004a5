"""Parts of the launcher that need no chain; tests/e2e starts a whole one."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from redis import Redis

from dekag import client
from services.common.healthcheck import healthy
from services.launcher import stack as launcher
from services.launcher.bench.soak import read
from services.launcher.distill import run_distill
from services.launcher.report import write_images
from services.launcher.stack import LaunchError, Stack, Stopped, find_redis


class RedisOnly(Stack):
    """A stack that starts Redis and nothing else."""

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._start_redis()


def image(png: bytes | None, **report: Any) -> client.Image:
    given = {"snr_db": 10.0, "channel_uses": 512, "psnr_db": 21.5 if png else None}
    return client.Image(png, 7, client.LinkReport.model_construct(**given | report))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 128), "orange").save(file, "PNG")
    return file.getvalue()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_redis_is_found_and_started_and_nothing_is_left(tmp_path: Path) -> None:
    assert find_redis() is not None
    handler = signal.getsignal(signal.SIGTERM)
    with RedisOnly(tmp_path, free_ports=True) as stack:
        for _ in stack.wait_ready(20):
            pass
        redis = stack["redis"]
        assert redis.ready
        stack.check_alive()
        with Redis.from_url(stack.redis_url) as client:
            client.set("one", "key")
        of_redis, of_all = read(stack, 12.0)
        assert (of_redis["service"], of_all["keys"], of_all["at_s"]) == ("redis", 1, 12.0)
        assert of_all["rss_gib"] == of_redis["rss_gib"] > 0
        assert of_all["files"] == of_redis["files"] > 0
    assert gone(redis.process.pid)
    assert "Ready to accept connections" in redis.log.read_text()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_child_that_ends_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with RedisOnly(tmp_path, free_ports=True) as stack:
        for _ in stack.wait_ready(20):
            pass
        stack["redis"].process.kill()
        with pytest.raises(LaunchError, match=r"redis ended by signal 9[\s\S]+Ready to accept connections"):
            stack.watch()


def test_a_signal_asks_for_the_end(tmp_path: Path) -> None:
    with RedisOnly(tmp_path, free_ports=True) as stack:
        for _ in stack.wait_ready(20):
            pass
        with pytest.raises(Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert gone(stack["redis"].process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_children_die_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from tests.services.test_launcher import RedisOnly
with RedisOnly(Path(sys.argv[1]), free_ports=True) as stack:
    for _ in stack.wait_ready(20):
        pass
    print(stack["redis"].process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    log = tmp_path / "redis.log"
    for _ in range(100):
        if "bye bye" in log.read_text():
            return
        signal.sigtimedwait([], 0.1)
    pytest.fail(log.read_text())


def test_a_default_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(launcher, "SERVICES", {"gateway": (port, {})})
        with pytest.raises(LaunchError, match=f"port {port} for gateway is taken"), Stack(tmp_path):
            pass


def test_nothing_is_healthy_where_nothing_listens(closed_port: int) -> None:
    assert not healthy(f"127.0.0.1:{closed_port}", 0.5)
    assert not healthy(f"http://127.0.0.1:{closed_port}/readyz", 0.5)


def test_distilling_without_a_system_says_how_to_start_one(
    tmp_path: Path, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    assert run_distill("neon", prompts=(), config={}, url=url, output=tmp_path) == 1
    shown = capsys.readouterr().err
    assert url in shown
    assert "start it with `dekag up`" in shown
    assert not list(tmp_path.iterdir())


def test_a_file_is_healthy_while_it_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    assert not healthy(f"file:{file}")
    file.touch()
    assert healthy(f"file:{file}")
    os.utime(file, (1, 1))
    assert not healthy(f"file:{file}")


def test_the_demo_writes_what_decoded_and_shows_what_did_not(tmp_path: Path) -> None:
    images = {"semantic": image(png()), "conventional": image(None, channel_uses=9000)}
    written = write_images(images, tmp_path / "out")
    assert [path.name for path in written] == ["semantic.png", "side-by-side.png"]
    assert written[0].read_bytes() == png()
    sheet = np.asarray(Image.open(written[1]))
    assert tuple(sheet[100, 100]) == (255, 165, 0)
    assert tuple(sheet[30, -30]) == (0xDD, 0xDD, 0xDD)
