"""The command line in people's shells: full disks, locales without Unicode, nohup, broken plug-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from dekag import plugins
from dekag.errors import InvalidInputError
from services.launcher.stack import Stack, Stopped
from tests.services.command_line import environment

COMMAND = [sys.executable, "-m", "services.cli"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [["--version"], ["--help"], ["key", "alice"]])
def test_a_full_disk_is_said_in_one_line(options: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *options], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environment(), timeout=90,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("encoding", ["ascii", ""])
def test_a_locale_without_unicode(locale: dict[str, str], encoding: str, tmp_path: Path) -> None:
    env = {**environment(), **locale, "PYTHONIOENCODING": encoding}
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, cwd=tmp_path, env=env, timeout=90)
    assert (shown.returncode, shown.stderr) == (0, b"")
    refused = subprocess.run(
        [*COMMAND, "image", "--from", "fähe.png"], capture_output=True, cwd=tmp_path, env=env, timeout=90
    )
    assert refused.returncode == 2
    assert b"Traceback" not in refused.stderr
    assert b"he.png" in refused.stderr


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    """As under nohup, which ignores SIGHUP, and in the background of a shell, which ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)}

    class Idle(Stack):
        def _start(self) -> None:
            pass

    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Idle(tmp_path):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Stopped, match="SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


NOHUP = """
import asyncio, os, signal
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings

async def main():
    server = make_server(create_app(GatewaySettings(port=0, redis_url="")))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.2)
    print("ignored" if not server.should_exit else "stopped", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving

asyncio.run(main())
"""


@pytest.mark.parametrize(("shell", "ignored"), [("trap '' INT; ", True), ("", False)])
def test_a_gateway_ignores_what_its_parent_ignores(shell: str, ignored: bool, tmp_path: Path) -> None:
    (tmp_path / "gateway.py").write_text(NOHUP)
    done = subprocess.run(
        ["sh", "-c", f"{shell}exec {sys.executable} gateway.py"],
        capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=90,
    )  # fmt: skip
    assert ("ignored" in done.stdout.split()) == ignored, done.stderr


def test_a_broken_entry_point_names_itself_and_stops_nothing_else(
    plugging: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_fog.py").write_text("raise RuntimeError('no fog today')\n")
    (tmp_path / "good_fog.py").write_text(
        "import torch\nfrom dekag.link import Channel\n\n"
        "class Mist(Channel):\n    name = 'mist'\n"
        "    def gains(self, conditions, generator, channel_uses):\n"
        "        return torch.ones(1, dtype=torch.complex64)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint("fog", "broken_fog:Fog", "dekag.channels"),
        EntryPoint("mist", "good_fog:Mist", "dekag.channels"),
    ]

    def entry_points(group: str) -> list[Any]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    monkeypatch.setattr(plugins, "_last_read", None)
    monkeypatch.setattr(plugins, "_broken", {})
    assert "mist" in plugins.names("channel")
    assert "no fog today" in plugins.broken()["fog"]
    with pytest.raises(InvalidInputError, match=r"plug-in fog is not loaded: .*no fog today"):
        plugins.get("channel", "fog")
