"""`dekag up` works in a folder of any name that the system allows, and with any data folder."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from typer.testing import CliRunner

from dekag import plugins
from dekag.errors import InvalidInputError
from services.cli import doctor
from services.cli import main as cli
from services.cloud.job_folder import JobFolders
from services.cloud.version_store import problem
from services.launcher.stack import LaunchError
from tests.services.launcher.redis_only import RedisOnly

ROOT = Path(__file__).resolve().parents[3]
NAMES = {
    "umlaut": "Müller",
    "spaces": " two  words ",
    "quotes": 'it\'s "quoted"',
    "signs": "100% $HOME `id` #1 {a,b} *?[x]~!&|;<>",
    "backslash": "C:\\new\\x41\\u00fc",
    "line": "line\nbreak\r\ttab",
    "emoji": "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{COMBINING ACUTE ACCENT}",
    "no text": "caf\udce9\udcff",  # Latin-1 on a disk whose names are taken for UTF-8
    "dash": "--help",
    "markup": "[red]bold[/red] [/]",
    "long": "/".join(["long" * 50] * 4),  # no unix socket has such a path
    "comma": "one,two",
    "colon": "a:b",
}
EVERY = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())


def made(parent: Path, name: str) -> Path:
    (folder := parent / name).mkdir(parents=True)
    return folder


@EVERY
def test_redis_starts_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    with RedisOnly(made(tmp_path, name) / ".run", free_ports=True) as stack:
        for _ in stack.wait_ready(60):
            pass
        with Redis.from_url(stack.redis_url, decode_responses=True) as client:
            assert client.set("one", "key")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
            assert client.config_get("save") == {"save": ""}
        assert Path(f"/proc/{stack['redis'].process.pid}/cwd").samefile(stack.run_dir)
    assert [path.name for path in stack.run_dir.iterdir()] == ["redis.log"]


@EVERY
def test_a_data_folder_of_any_name_is_written(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    assert problem(folder) == ""
    JobFolders(folder).save_spec("0" * 32, "{}")
    assert JobFolders(folder).specs() == {"0" * 32: b"{}"}


@EVERY
def test_a_plug_in_in_a_folder_of_any_name_is_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, plugging: None
) -> None:
    (file := made(tmp_path, name) / "fading.py").write_bytes((ROOT / "examples/my_channel.py").read_bytes())
    monkeypatch.setenv("DEKAG_PLUGINS", plugins.join([f"{file}:Nakagami"]))
    plugins.load_from_environment()
    assert "nakagami" in plugins.plugged_in("channel")


def test_plug_ins_are_told_apart_as_in_a_line_of_csv() -> None:
    assert plugins.split(" a.py:A, ,b:B,") == ["a.py:A", "b:B"]
    assert plugins.split('"x, y/a.py:A",b:B') == ["x, y/a.py:A", "b:B"]
    odd = ["a,b/c.py:C", 'say "hi".py:D', "new\nline.py:E"]
    assert plugins.split(plugins.join(odd)) == odd
    with pytest.raises(InvalidInputError, match="DEKAG_PLUGINS"):
        plugins.split('"never closed:A')


@EVERY
def test_what_doctor_advises_can_be_pasted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = made(tmp_path, name) / "data"
    place.write_text("in the way")
    monkeypatch.setenv("DEKAG_DATA_DIR", str(place))
    found = doctor.data_folder()
    assert not found.ok
    assert shlex.split(found.fix) == ["mv", str(place), f"{place}.old"]


def test_what_is_no_text_is_shown_and_raises_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path, NAMES["no text"])
    (folder / ".run").write_text("a file in the way")
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "up", "--free-ports"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert b".run cannot be created: " in done.stdout
    assert b"Traceback" not in done.stdout + done.stderr


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    for wrong in (Path("/proc/none/.run"), tmp_path / ("x" * 300)):
        with pytest.raises(LaunchError, match="cannot be created"), RedisOnlyWithStart(wrong):
            pass


class RedisOnlyWithStart(RedisOnly):
    """Goes through the checks of a whole stack; it never comes to start anything."""

    _start = RedisOnly.__mro__[1]._start  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["umlaut", "line", "no text", "signs"])
def test_dekag_up_in_a_folder_of_any_name(tmp_path: Path, dummy_profile: Path, name: str) -> None:
    folder = made(tmp_path, NAMES[name])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DEKAG_PROFILE": str(dummy_profile), "NO_COLOR": "1"}
    env.pop("DEKAG_DATA_DIR", None)
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-m", "services.cli", "up", "--free-ports"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline, said = time.monotonic() + 500, ""
        while "in a browser" not in said:
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
            said = (tmp_path / "out").read_bytes().decode(errors="replace")
        url = said.split("Ready: open ")[1].split()[0]
        body = {"prompt": "a red boat", "size": "64x64", "seed": 1}
        with httpx2.Client(base_url=url, timeout=120, trust_env=False) as client:
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            assert client.get("/readyz").json()["reasons"] == {}
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    finally:
        process.kill()
    lines = [
        json.loads(line) for line in (folder / ".run/cloud.log").read_text().splitlines() if line[0] == "{"
    ]
    assert any(line["event"] == "ready" for line in lines)
    assert "Traceback" not in (tmp_path / "out").read_text(errors="replace")


def test_the_plug_in_option_may_name_a_path_with_a_comma(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEKAG_PLUGINS", "")
    gone = tmp_path / "one,two" / "fog.py"
    done = CliRunner().invoke(cli.app, ["--plugin", f"{gone}:Fog", "demo"])
    assert done.exit_code == 2
    assert "there is no such file" in " ".join(done.stderr.split())
    assert plugins.split(os.environ["DEKAG_PLUGINS"]) == [f"{gone}:Fog"]
