"""Parts of the launcher that need no chain; tests/e2e starts a whole one."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from redis import Redis

from dekag import client
from services.bench.soak import read
from services.cli.distill import run_distill
from services.cli.report import write_images
from services.common.healthcheck import healthy
from services.launcher import stack as launcher
from services.launcher.stack import Child, LaunchError, Stack, Stopped, find_redis
from tests.services.launcher.redis_only import RedisOnly


def image(png: bytes | None, **report: Any) -> client.Image:
    given = {
        "snr_db": 10.0,
        "channel_uses": 512,
        "decoded": png is not None,
        "psnr_db": 21.5 if png else None,
    }
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


def test_a_distiller_that_is_started_again_is_not_ready_because_of_the_one_before(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    command, env = [sys.executable, "-c", "import time; time.sleep(60)"], {"DEKAG_HEALTH_FILE": str(alive)}
    with RedisOnly(tmp_path, free_ports=True) as stack:
        stack._spawn("distiller", 0, command, env, lambda: healthy(f"file:{alive}"))
        alive.touch()
        for _ in stack.wait_ready(60):
            pass
        stack["distiller"].process.kill()
        stack["distiller"].process.wait()
        stack.start_again("distiller")
        with pytest.raises(LaunchError, match=r"distiller not ready after 0\.1 s"):
            list(stack.wait_ready(0.1))


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
from tests.services.launcher.redis_only import RedisOnly
with RedisOnly(Path(sys.argv[1]), free_ports=True) as stack:
    for _ in stack.wait_ready(20):
        pass
    print(stack["redis"].process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[3]
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


@pytest.mark.parametrize("given", ["the folder of all", "that of a service"])
def test_each_service_uses_its_own_part_of_the_credentials(credentials_dir: Path, given: str) -> None:
    folder = credentials_dir if given == "the folder of all" else credentials_dir / "edge"
    own = {name: launcher._credentials({"DEKAG_TLS_DIR": str(folder)}, name) for name in launcher.SERVICES}
    assert own == {
        name: {"DEKAG_TLS_DIR": str(folder / name)} if folder == credentials_dir else {}
        for name in launcher.SERVICES
    }


def test_a_default_port_that_is_taken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(launcher, "SERVICES", {"gateway": (port, {})})
        with pytest.raises(LaunchError, match=f"port {port} for gateway is in use"), Stack(tmp_path):
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
    for changed in (1, time.time() + 3600):  # long ago, or before the clock was set back
        os.utime(file, (changed, changed))
        assert not healthy(f"file:{file}")


def test_the_demo_writes_what_decoded_and_shows_what_did_not(tmp_path: Path) -> None:
    images = {"semantic": image(png()), "conventional": image(None, channel_uses=9000)}
    written = write_images(images, tmp_path / "out")
    assert [path.name for path in written] == ["semantic.png", "side-by-side.png"]
    assert written[0].read_bytes() == png()
    sheet = np.asarray(Image.open(written[1]))
    assert tuple(sheet[100, 100]) == (255, 165, 0)
    assert tuple(sheet[30, -30]) == (0xDD, 0xDD, 0xDD)


class NoServices(Stack):
    """A stack that notes what it would start, and starts Redis only."""

    def _start_fork_server(self, env: Mapping[str, str], services: Sequence[dict[str, str]]) -> None:
        """Does nothing, as nothing is forked."""

    def _spawn(self, name: str, *arguments: Any, **options: Any) -> None:
        if name == "redis":
            super()._spawn(name, *arguments, **options)
        else:
            port, _, env, *_ = arguments
            started[name] = {"port": port, **{key: value for key, value in env.items() if key[:5] == "DEKAG"}}


started: dict[str, dict[str, Any]] = {}


def begun(run_dir: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> dict[str, dict[str, Any]]:
    """What a launcher would start with these variables."""
    started.clear()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with NoServices(run_dir, free_ports=True):
        return dict(started)


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEKAG_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_settings")
def test_port_and_host_are_the_gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    found = begun(tmp_path, monkeypatch, DEKAG_PORT=str(closed_port), DEKAG_HOST="0.0.0.0")
    assert found["gateway"]["DEKAG_PORT"] == str(closed_port) == str(found["gateway"]["port"])
    assert found["gateway"]["DEKAG_HOST"] == "0.0.0.0"
    for name in ("user", "channel", "edge", "cloud"):
        assert found[name]["DEKAG_HOST"] == "127.0.0.1"
        assert found[name]["DEKAG_PORT"] != str(closed_port)
    found = begun(tmp_path, monkeypatch, DEKAG_PORT="0")
    assert int(found["gateway"]["DEKAG_PORT"]) > 0


@pytest.mark.usefixtures("_no_settings")
def test_redis_url_selects_an_existing_redis_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    found = begun(tmp_path, monkeypatch, DEKAG_REDIS_URL=redis_url)
    assert {each["DEKAG_REDIS_URL"] for each in found.values()} == {redis_url}
    assert "distiller" in found
    assert not (tmp_path / "redis.log").exists()
    found = begun(tmp_path, monkeypatch, DEKAG_REDIS_URL="none")
    assert {each["DEKAG_REDIS_URL"] for each in found.values()} == {"none"}
    assert "distiller" not in found
    found = begun(tmp_path, monkeypatch, DEKAG_REDIS_URL=" ")
    assert {each["DEKAG_REDIS_URL"] for each in found.values()} != {"none"}
    assert (tmp_path / "redis.log").exists()


@pytest.mark.usefixtures("_no_settings")
def test_empty_variables_are_none_to_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for kind in launcher.SETTINGS.values() for name in kind.variables()}
    found = begun(tmp_path, monkeypatch, **dict.fromkeys(names, " "))
    assert found["cloud"]["DEKAG_DATA_DIR"] == str(tmp_path / "data")
    assert found["distiller"]["DEKAG_HEALTH_FILE"] == str(tmp_path / "distiller.alive")
    assert Stack(tmp_path)._scheme == "http"


def test_a_start_that_takes_too_long_names_the_setting(tmp_path: Path) -> None:
    stack = Stack(tmp_path, env={"DEKAG_START_TIMEOUT_S": "0.1"})
    (tmp_path / "cloud.log").write_text("loading\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        stack.children.append(Child("cloud", 1, tmp_path / "cloud.log", process, lambda: False))
        try:
            with pytest.raises(LaunchError, match=r"cloud not ready after 0.1 s; DEKAG_START_TIMEOUT_S .*"):
                list(stack.wait_ready())
        finally:
            process.kill()


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"DEKAG_PORT": "80x"}, "DEKAG_PORT"),
        ({"DEKAG_PORT": "65536"}, "DEKAG_PORT"),
        ({"DEKAG_HOST": "http://0.0.0.0"}, "DEKAG_HOST: "),
        ({"DEKAG_START_TIMEOUT_S": "0"}, "DEKAG_START_TIMEOUT_S must be a time in seconds, above 0, at most"),
        ({"DEKAG_START_TIMEOUT_S": "soon"}, "at most 86400; got 'soon'"),
        ({"DEKAG_METRICS_PORT": "many"}, "DEKAG_METRICS_PORT: "),
        ({"DEKAG_METRICS_PORT": "65533"}, "DEKAG_METRICS_PORT: must be at most 65530"),
        ({"DEKAG_DISTILL_THREADS": "-1"}, "DEKAG_DISTILL_THREADS: "),
        (
            {"DEKAG_CLOUD_ADDRESS": "other:1", "DEKAG_DOWNLINK_ADDRESS": "other:2"},
            "DEKAG_DOWNLINK_ADDRESS: must not be set here",
        ),
        ({"DEKAG_REDIS_URL": "127.0.0.1:6379"}, "DEKAG_REDIS_URL: "),
        ({"DEKAG_REDIS_URL": "redis://127.0.0.1:1/0"}, "DEKAG_REDIS_URL cannot be reached"),
        (
            {"DEKAG_REDIS_PASSWORD_FILE": "/nowhere"},
            "DEKAG_REDIS_PASSWORD_FILE is set without DEKAG_REDIS_URL",
        ),
        ({"DEKAG_TRACES": "/nowhere"}, "DEKAG_TRACES: "),
    ],
)
def test_a_launcher_refuses_in_one_line_what_a_service_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], said: str
) -> None:
    with pytest.raises(LaunchError) as caught:
        begun(tmp_path, monkeypatch, **env)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not started, "nothing was started"


@pytest.mark.usefixtures("_no_settings")
def test_a_port_that_another_service_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "is_free", lambda _: True)
    monkeypatch.setenv("DEKAG_PORT", "50053")
    with pytest.raises(LaunchError, match="is for the gateway, but the edge service uses it"):
        Stack(tmp_path)._port(8080, "gateway")


def test_logs_rotate_while_they_are_written(tmp_path: Path) -> None:
    log, program = tmp_path / "x.log", "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with log.open("ab") as sink:
        writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=sink)
    assert writer.stdin is not None
    try:
        for number in range(60):
            writer.stdin.write(f"{number:099}\n".encode())
            writer.stdin.flush()
            for _ in range(1000):
                if log.stat().st_size % 1000 == 100 * (number % 10 + 1) % 1000:
                    break
                signal.sigtimedwait([], 0.005)
            launcher.rotate_log(log, 1000, 3)
    finally:
        writer.stdin.close()
        writer.wait(10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    kept = [int(line) for path in ("x.log.2", "x.log.1") for line in (tmp_path / path).read_text().split()]
    assert kept == list(range(40, 60)), "in order, nothing twice, nothing lost, no holes"
    assert log.stat().st_size == 0


def test_launcher_rotates_the_logs_of_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis.log.1").write_text("of the last time")
    monkeypatch.setattr(launcher, "LOG_BYTES", 100)
    monkeypatch.setattr(launcher.rotate_log, "__defaults__", (100, 3))
    with RedisOnly(tmp_path, free_ports=True) as stack:
        assert not (tmp_path / "redis.log.1").exists()
        for _ in stack.wait_ready(60):
            pass
        stack.check_alive()
        assert "Ready to accept connections" in "".join(
            path.read_text() for path in tmp_path.glob("redis.log.*")
        )
        assert stack["redis"].log.stat().st_size < 100
