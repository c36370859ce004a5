"""The process that services are forked from; tests/e2e starts the whole chain with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.launcher.fork_server import FORKED, WITHOUT_CUDA, Event, Forked, ForkServer, can_fork, runs
from services.launcher.stack import LaunchError, Stack
from tests.services.launcher.test_stack import gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="services are forked on Linux only")
ROOT = Path(__file__).resolve().parents[3]
MODULE = "tests.services.launcher.forked"


@dataclass
class OnlyForks(Stack):
    """A stack without services, whose fork server starts those of tests."""

    server: ForkServer = field(init=False)

    def _start(self) -> None:
        self._start_fork_server({**os.environ, "PYTHONPATH": str(ROOT), **self.env}, [])
        assert self._fork_server is not None
        self.server = self._fork_server

    def fork(self, name: str, ends: str) -> Forked:
        """A service of that name that ends like that."""
        return self.server.start(MODULE, {**self.server.env, "ENDS": ends}, self.run_dir / name)

    def about(self, name: str) -> Mapping[str, Any]:
        """What the service has written to its log."""
        log, deadline = self.run_dir / name, time.monotonic() + 60
        while not log.exists() or "an error\n" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found: Mapping[str, Any] = json.loads(log.read_text().splitlines()[0])
        return found


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnlyForks]:
    """A fork server that has imported NumPy only."""
    monkeypatch.setattr(ForkServer, "command", (*ForkServer.command, "numpy"))
    with OnlyForks(tmp_path) as stack:
        for _ in stack.wait_ready(60):
            pass
        yield stack


def test_forks_are_what_new_processes_would_be(forks: OnlyForks) -> None:
    first, second = forks.fork("first", "0"), forks.fork("second", "0")
    assert first.wait(60) == second.wait(60) == 0
    found, other = forks.about("first"), forks.about("second")
    assert found["env"] == {**forks.server.env, "ENDS": "0"}
    assert found["argv"] == [MODULE]
    assert MODULE.startswith(found["name"])
    assert (found["group"], found["input"], found["on_sigterm"]) == (True, "", True)
    assert not set(found["drawn"]) & set(other["drawn"]), "each draws for itself"
    for name, each in (("first", found), ("second", other)):
        kinds = Counter(file.partition(":")[0] for file in each["files"])
        log = str(forks.run_dir / name)
        assert kinds == {"/dev/null": 1, log: 2, "socket": 1}, "nothing of the others, nor of the launcher"


def test_the_end_of_a_fork_is_told(forks: OnlyForks) -> None:
    assert forks.fork("exits", "3").wait(60) == 3
    assert forks.fork("killed", "killed").wait(60) == -signal.SIGKILL
    for end, status in (("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)):
        forked = forks.fork(end, "never")
        forks.about(end)
        assert forked.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            forked.wait(0.05)
        getattr(forked, end)()
        assert forked.wait(60) == forked.poll() == forked.returncode == status
        assert gone(forked.pid)
        getattr(forked, end)()  # which has no effect


def test_a_fork_can_be_killed_before_it_is_started(forks: OnlyForks) -> None:
    other = forks.fork("other", "never")
    for end in ("kill", "terminate"):
        forked = Forked(forks.server)
        getattr(forked, end)()
        with subprocess.Popen(["/bin/sleep", "60"]) as process:
            forked.note(Event(1, process.pid))
            assert process.wait(60) == -signal.SIGKILL
    assert other.poll() is None, "the fork server goes on"
    assert forks["fork-server"].process.poll() is None


def test_forks_end_with_the_fork_server(forks: OnlyForks) -> None:
    forked = forks.fork("early", "never")
    forks.about("early")
    forks["fork-server"].process.kill()
    assert forked.wait(60) == -signal.SIGTERM
    with pytest.raises(LaunchError, match="fork-server ended by signal 9"):
        forks.check_alive()
    late = forks.fork("late", "0")
    assert late.wait(60) == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        _ = late.pid


def test_a_launcher_that_stops_before_the_libraries_are_imported_leaves_nothing(tmp_path: Path) -> None:
    with OnlyForks(tmp_path, env={"OMP_NUM_THREADS": "1"}) as stack:
        forked = stack.fork("early", "never")
        forked.kill()
        assert forked.wait(60) == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            _ = forked.pid
    assert gone(stack["fork-server"].process.pid)


def test_forks_end_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from services.launcher.fork_server import ForkServer
from tests.services.launcher.test_fork_server import OnlyForks
ForkServer.command = (*ForkServer.command, "numpy")
with OnlyForks(Path(sys.argv[1])) as stack:
    forked = stack.fork("fork", "never")
    stack.about("fork")
    print(forked.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 60
    while runs(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_libraries_that_cannot_be_imported_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkServer, "command", (*ForkServer.command, "no_such_library"))
    with (
        pytest.raises(LaunchError, match=r"fork-server ended with status 1[\s\S]+no_such_library"),
        OnlyForks(tmp_path) as stack,
    ):
        for _ in stack.wait_ready(60):
            pass


def test_only_services_that_would_be_the_same_are_forked() -> None:
    env = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "DEKAG_PORT": "1"}
    server = ForkServer(env)
    python = [sys.executable, "-P", "-m"]
    for name in FORKED:
        command = [*python, f"services.{name}"]
        assert server.can_start(command, {**env, "DEKAG_PORT": "2", "dekag_profile": "x"})
        assert not server.can_start(command, {**env, "OMP_NUM_THREADS": "2"})
        assert not server.can_start(command, {**env, "PYTHONPATH": "/old"})
        assert not server.can_start(["/other/python", *command[1:]], env)
    assert not server.can_start([*python, "services.gateway"], env)
    assert not server.can_start([*python, "services.cloud.distiller"], env)
    assert can_fork({})
    assert can_fork({"DEKAG_DEVICE": "cpu", "DEKAG_TEXT_DEVICE": " "})
    assert not can_fork({"DEKAG_DEVICE": "cuda"})
    assert not can_fork({"dekag_device": "cuda"})
    assert not can_fork({"DEKAG_DEVICE": "auto"})
    assert not can_fork({"DEKAG_TEXT_DEVICE": "cuda:1"})


# what no service needs to start, and what only those with models need
NEVER = {"dekag.training", "dekag.evaluation", "services.bench", "services.cli", "pandas", "sklearn", "ray"}
NEVER |= {"torchvision", "locust", "wandb", "mlflow", "tensorboard", "dash", "altair", "IPython"}
MODELS = {"torch", "diffusers", "transformers", "peft", "accelerate", "sionna", "scipy", "matplotlib"}


@pytest.mark.parametrize(
    "modules",
    [
        ("services.gateway.__main__", "services.cloud.distiller"),
        tuple(f"services.{name}.__main__" for name in FORKED),
        ("services.launcher.up", "services.launcher.fork_server"),
    ],
    ids=lambda modules: modules[0],
)
def test_what_starts_at_once_imports_no_libraries_of_models(modules: tuple[str, ...]) -> None:
    """The gateway and the distiller are ready before the libraries are imported."""
    assert not _imported(modules) & (NEVER | MODELS)


@pytest.mark.slow
def test_the_libraries_start_no_thread_and_are_all_that_services_import(tmp_path: Path) -> None:
    program = """
import asyncio, gc, importlib, json, os, sys
gc.disable()
import services.launcher.fork_server as server
for module in server.LIBRARIES:
    importlib.import_module(module)
threads = len(os.listdir("/proc/self/task"))
before = set(sys.modules)

async def load(name):
    settings = importlib.import_module(f"services.{name}.settings")
    main = importlib.import_module(f"services.{name}.__main__")
    service = main.build(getattr(settings, name.capitalize() + "Settings").read())
    await asyncio.to_thread(service.load)
    await service.close()

for name in server.FORKED:
    asyncio.run(load(name))
more = sorted(set(sys.modules) - before)
print(json.dumps([threads, sorted(before), more]))
"""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DEKAG_")},
        # a pool of threads of OpenMP would show; OpenBLAS stops and starts its own
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "1",
        "DEKAG_REDIS_URL": "none",
        "DEKAG_DATA_DIR": str(tmp_path),
        **WITHOUT_CUDA,
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    threads, before, more = json.loads(done.stdout.splitlines()[-1])
    assert threads == 1, "none that a fork would lack"
    assert not _packages(before + more) & NEVER
    more = [name for name in more if not name.startswith("diffusers.schedulers.")]  # many small ones
    assert not [name for name in more if name.split(".")[0] in MODELS], "add them to LIBRARIES"


def _imported(modules: tuple[str, ...]) -> set[str]:
    """Packages that are imported with these modules."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return _packages(done.stdout.split())


def _packages(modules: list[str]) -> set[str]:
    """Names of the modules and of the packages that they are in."""
    return {name.rsplit(".", depth)[0] for name in modules for depth in range(3)}
