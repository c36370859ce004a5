"""The wheel, installed outside any clone and used in an empty folder; and the pins on every Python here.

Dependencies come from the environment that runs the tests, so that nothing is downloaded twice.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.install.test_scripts import ROOT, requirements

pytestmark = pytest.mark.install

SITE = Path(sysconfig.get_path("purelib"))
GRID = """name: small
deliveries: [unaligned, deka-g]
topics: [neon]
links: [{fading: rayleigh, tau_rms_s: 1.0e-6}]
snr_db: [10]
cbr: [1/96]
prompts: 1
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("dekag-*.whl")
    return found


class Installed:
    """The wheel in a virtual environment, beside packages from elsewhere."""

    def __init__(self, folder: Path, wheel: Path, packages: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        self.dekag = folder / "bin" / "dekag"
        (site,) = folder.glob("lib/python*/site-packages")
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "install",
            "--no-deps",
            "--quiet",
            wheel,
        ]
        subprocess.run(command, check=True)
        (site / "packages.pth").write_text(
            f"{packages}\n"
        )  # pth files in there are not read: no editable dekag

    def run(
        self, *command: object, folder: Path, timeout_s: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def environment() -> dict[str, str]:
    """That of a stranger: nothing leads to this clone."""
    own = {"PYTHONPATH", "VIRTUAL_ENV", "DEKAG_DATA_DIR", "DEKAG_PROFILE", "DEKAG_REDIS_URL"}
    env = {key: value for key, value in os.environ.items() if key not in own}
    return env | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With every extra."""
    return Installed(tmp_path_factory.mktemp("whole") / "venv", wheel, SITE)


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Without any extra: only what dekag itself requires is there."""
    packages = tmp_path_factory.mktemp("packages")
    for name in closure(requirements([])):
        for file in distribution(name).files or ():
            part = Path(file.parts[0])
            if part.name not in ("..", "__pycache__") and not (packages / part).exists():
                (packages / part).symlink_to(SITE / part)
    return Installed(tmp_path_factory.mktemp("client") / "venv", wheel, packages)


def closure(lines: Sequence[str]) -> set[str]:
    """Names of these packages and of all that they require."""
    found: set[str] = set()
    waiting = list(lines)
    while waiting:
        line = Requirement(waiting.pop())
        name = canonicalize_name(line.name)
        if name not in found and (line.marker is None or line.marker.evaluate({"extra": ""})):
            found.add(name)
            waiting += distribution(name).requires or ()
    return found


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "a stranger's folder"
    folder.mkdir()
    return folder


def test_a_client_needs_no_torch_and_says_which_extra_others_need(
    client: Installed, empty: Path, closed_port: int
) -> None:
    assert client.run(client.dekag, "--help", folder=empty).returncode == 0
    done = client.run(client.python, "-c", "from dekag.client import Client; import torch", folder=empty)
    assert "No module named 'torch'" in done.stderr

    url = f"http://127.0.0.1:{closed_port}"
    for command in (("image", "a boat"), ("distill", "neon")):
        done = client.run(client.dekag, *command, "--url", url, folder=empty)
        assert done.returncode == 1
        assert "start it with `dekag up`" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1

    (empty / "grid.yaml").write_text(GRID)
    wanted = {
        ("up",): "services",
        ("demo",): "services",
        ("key", "alice"): "services",
        ("train", "vae"): "train",
        ("experiment", "first-image"): "eval",
        ("sweep", "grid.yaml"): "eval",
        ("results", "quick"): "eval",
        ("bench", "chain"): "bench",
    }
    for command, extra in wanted.items():
        done = client.run(client.dekag, *command, folder=empty)
        assert done.returncode == 1, (command, done.stderr)
        assert done.stderr.endswith(f"pip install 'dekag[{extra}]'\n"), (command, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    doctor = client.run(client.dekag, "doctor", "--json", folder=empty)
    checks = {each["name"]: each for each in json.loads(doctor.stdout)["checks"]}
    assert checks["packages"]["fix"] == "pip install 'dekag[services]'"


def test_the_doctor_presumes_no_clone(whole: Installed, empty: Path) -> None:
    done = whole.run(whole.dekag, "doctor", "--json", folder=empty)
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    for name in ("packages", "torch", "models", "golden", "redis"):
        assert checks[name]["ok"], checks[name]
    assert "profile stickers" in checks["models"]["detail"]
    for each in checks.values():
        assert not re.search(r"\bmake\b|git|-e '", each["fix"]), each


@pytest.fixture
def system(whole: Installed, empty: Path) -> Iterator[str]:
    """URL of `dekag up`, which ends as Ctrl-C ends it."""
    log = empty / "up.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [whole.dekag, "up", "--free-ports"], cwd=empty, env=environment(), stdout=sink, stderr=sink
        )
    try:
        deadline = time.monotonic() + 600
        while (found := re.search(r"Ready: open (\S+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_a_system_runs_and_is_asked(system: str, client: Installed, empty: Path) -> None:
    request = ("image", "a red boat on the beach", "--seed", "7", "--json", "--output", "boat.png")
    done = client.run(client.dekag, *request, "--url", system, folder=empty)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decoded"]
    assert (empty / "boat.png").read_bytes().startswith(b"\x89PNG")


def test_measuring_finds_models_grids_and_figures(whole: Installed, empty: Path) -> None:
    (empty / "grid.yaml").write_text(GRID)
    done = whole.run(whole.dekag, "sweep", "grid.yaml", "--json", folder=empty)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured"] == 2
    assert (empty / "results/small/table.md").exists()

    done = whole.run(whole.dekag, "sweep", "no-such-grid", folder=empty)
    assert done.returncode == 2
    assert "no shipped sweep" in done.stderr

    done = whole.run(whole.dekag, "experiment", "first-image", "--count", "8", "--only", "vae", folder=empty)
    assert done.returncode == 2
    assert "no artwork at" in done.stderr
    assert "Traceback" not in done.stderr
    done = whole.run(whole.dekag, "experiment", "first-image", "--count", "8", "--only", "edge", folder=empty)
    assert done.returncode == 0, done.stderr
    assert "probe_edge_known_accuracy" in json.loads((empty / "results/headline.json").read_text())
    assert not (empty / "README.md").exists()

    # all that `dekag results quick` does, on fewer images
    code = "from dekag.evaluation.studies.quick import *; run_quick(images=8, sweep=Path('grid.yaml'))"
    done = whole.run(whole.python, "-c", code, folder=empty)
    assert done.returncode == 0, done.stderr
    assert "The autoencoder is not measured: no artwork at" in done.stdout
    assert re.search(r"Edge model: visible attributes correct, known topics.+%", done.stdout)
    assert (empty / "runs/quick/overall/cells.jsonl").exists()

    done = whole.run(whole.dekag, "results", "book", folder=empty)
    assert done.returncode == 2
    assert "in a clone" in done.stderr


def interpreters(version: str) -> dict[str, Path]:
    """Every supported Python of that version on this machine, by its full version."""
    places = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    places += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin")
    found: dict[str, Path] = {}
    for place in places:
        script = ["sh", ROOT / "scripts/find_python.sh", place / f"python{version}"]
        done = subprocess.run(script, capture_output=True, text=True)
        if done.returncode == 0:
            python = Path(done.stdout.strip())
            said = subprocess.run([python, "--version"], capture_output=True, text=True)
            found.setdefault(said.stdout.strip(), python)
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_pins_hold_on_every_python_that_is_here(version: str, tmp_path: Path) -> None:
    """pip finds a release of everything for it; none is installed."""
    if not (pythons := interpreters(version)):
        pytest.skip(f"no Python {version} is here")
    lines = tmp_path / "requirements.txt"
    lines.write_text("\n".join(requirements(["dev"])))
    for name, python in pythons.items():
        venv = tmp_path / name
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        command = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--dry-run"]
        command += ["--quiet", "-c", ROOT / "constraints.txt", "-r", lines]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{name}: {done.stderr}"
