"""The process that `dekag up` forks services from, so that it imports their libraries once.

Importing PyTorch, diffusers and Sionna takes most of the start of a service. A fork of a process that has
imported them starts with all of them, and shares their memory. Nothing here may start a thread, initialise
gRPC or compute with PyTorch, as none of that survives a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from services.common import quieten_libraries
from services.common.environment import PREFIX, get

FORKED = ("user", "channel", "edge", "cloud")
"""The services that are started by a fork. The others are started before they need PyTorch, and faster so."""
LIBRARIES = (
    "services.common.server",
    *(f"services.{name}.servicer" for name in FORKED),
    # what they import to load the models of the built-in profile; a service imports the rest itself
    "dekag.cala.aligned_codec",
    "dekag.generation.side_information",
    "dekag.link.digital",
    "dekag.link.sionna_blocks",
    "dekag.makd.aligned_generator",
    "dekag.metrics.features",
    "dekag.pixel_modules",
    "diffusers.guiders",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.dinov2.modeling_dinov2",
)
WITHOUT_CUDA: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of the fork server and its forks: CUDA does not survive a fork, and libraries try to use it."""
_PYTHON = (sys.executable, "-P", "-m")
_POLL_S = 0.02
_SET_DEATH_SIGNAL, _SET_NAME = 1, 15  # options of prctl


class Request(NamedTuple):
    """A service to start: its module, as of ``python -m``, its whole environment, and its log file."""

    number: int
    module: str
    env: Mapping[str, str]
    log: Path


class Event(NamedTuple):
    """What became of the request of that number: a process started, or ended with a status."""

    number: int
    pid: int
    status: int | None = None


class Forked:
    """A service that a fork server starts, with those methods of Popen that the launcher uses."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._pid: int | None = None
        self._killed = False
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its process id; waits until it is started. ProcessLookupError if it never was."""
        while self._pid is None:
            if self.poll() is not None:
                raise ProcessLookupError("the fork server ended before it started the service")
            time.sleep(_POLL_S)
        return self._pid

    def note(self, event: Event) -> None:
        """Takes over what the fork server reports."""
        self._pid, self.returncode = event.pid, event.status
        if self._killed:  # before it was started
            self.kill()

    def poll(self) -> int | None:
        """Its exit status, negative if a signal ended it; None while it runs."""
        alive = self._server.receive()
        if self.returncode is None and not alive and not runs(self._pid):
            self.returncode = -signal.SIGTERM  # which it gets when the fork server ends
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; subprocess.TimeoutExpired if it still runs after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("service", timeout or 0.0)
            time.sleep(_POLL_S)
        return status

    def terminate(self) -> None:
        """Sends SIGTERM; SIGKILL if it is not started yet."""
        if self.poll() is None:
            if self._pid is None:
                self.kill()
            else:
                _signal(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL; works in a handler of signals."""
        self._killed = True
        if self._pid is None:
            self._server.give_up()
        elif self.returncode is None:
            _signal(self._pid, signal.SIGKILL)


class ForkServer:
    """The launcher's end of a fork server, whose process the launcher starts.

    Attributes:
        command: starts the process.
        env: environment of the process.
        stdin: the file descriptor that is its standard input.
    """

    command: Sequence[str] = (*_PYTHON, "services.launcher.fork_server")

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self._connection, self._theirs = multiprocessing.Pipe()
        self.stdin = self._theirs.fileno()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._forked: dict[int, Forked] = {}
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._imported = False

    def started(self, process: subprocess.Popen[bytes] | Forked) -> None:
        """To be called with the process that was started with the command."""
        self._process = process
        self._theirs.close()

    def ready(self) -> bool:
        """Whether it has imported the libraries."""
        self.receive()
        return self._imported

    def can_start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a service would be the same as in a new process.

        Libraries have read their variables of the environment when they were imported, so a service with
        others cannot be a fork.
        """
        *python, module = command
        known = tuple(python) == _PYTHON and module.removeprefix("services.") in FORKED
        return known and _of_libraries(env) == _of_libraries(self.env)

    def start(self, module: str, env: Mapping[str, str], log: Path) -> Forked:
        """Starts a service as soon as the libraries are imported."""
        with self._lock:
            number = next(self._numbers)
            forked = self._forked[number] = Forked(self)
            with contextlib.suppress(OSError):  # it has ended, which `poll` tells
                self._connection.send(tuple(Request(number, module, dict(env), log)))
        return forked

    def receive(self) -> bool:
        """Notes what became of the services; whether the fork server runs."""
        with self._lock:
            try:
                while self._connection.poll():
                    event = Event(*self._connection.recv())
                    if event.number:
                        self._forked[event.number].note(event)
                    else:
                        self._imported = True
            except (EOFError, OSError):
                return False
            return True

    def give_up(self) -> None:
        """Ends it if it has not imported the libraries, and with it all that it would have started."""
        if self._process is not None and not self._imported:
            self._process.kill()


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether services with that environment can be forks: on Linux, with models on the CPU."""
    upper = {name.upper(): value for name, value in env.items()}  # services read them in any case
    devices = (get(f"{PREFIX}{name}", "cpu", upper) for name in ("DEVICE", "TEXT_DEVICE"))
    return sys.platform == "linux" and all(device == "cpu" for device in devices)


def die_with_parent() -> None:
    """Has the kernel end this process with its parent, if the kernel is Linux."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the stack ends it thus, even if it ignores it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)


def _of_libraries(env: Mapping[str, str]) -> Mapping[str, str]:
    """The variables that libraries may read: all but our own, which services read when they start."""
    return {name: value for name, value in env.items() if not name.upper().startswith(PREFIX)}


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)


def runs(pid: int | None) -> bool:
    """Whether a process runs that is no child of this one; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _serve(connection: Connection) -> Request | None:
    """Forks a process for each request, and reports its end.

    Returns:
        In a new process, its request; in this one, when the launcher has ended, None.
    """
    running: dict[socket.socket, Event] = {}  # the other end of the socket is closed when the process ends
    while True:
        for ready in wait([connection, *running]):
            if isinstance(ready, socket.socket):
                event = running.pop(ready)
                ready.close()
                status = os.waitstatus_to_exitcode(os.waitpid(event.pid, 0)[1])
                connection.send(tuple(event._replace(status=status)))
                continue
            try:
                request = Request(*connection.recv())
            except EOFError:
                return None
            ours, theirs = socket.socketpair()
            if (pid := os.fork()) == 0:
                connection.close()
                for each in (ours, *running):
                    each.close()
                if not theirs.recv(1):  # the fork server has ended, perhaps before the launcher knew the id
                    raise SystemExit(f"{request.module}: the fork server has ended")
                theirs.detach()  # open until the process ends
                return request
            theirs.close()
            running[ours] = Event(request.number, pid)
            connection.send(tuple(running[ours]))
            with contextlib.suppress(OSError):  # the launcher has killed it already
                ours.send(b"\0")


def _become(request: Request, parent: int) -> None:
    """Makes this fork what a new process with that environment and log would be."""
    os.setpgid(0, 0)
    die_with_parent()
    if os.getppid() != parent:
        raise SystemExit(f"{request.module}: the fork server has ended")
    ctypes.CDLL(None).prctl(_SET_NAME, request.module.encode())
    sys.argv = [request.module]
    os.environ.clear()
    os.environ.update(request.env)
    quieten_libraries()
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    import numpy as np

    # all forks would draw the same; Python's generator is seeded anew by itself, PyTorch's has a fixed seed
    np.random.seed()  # noqa: NPY002
    if (sionna := sys.modules.get("sionna.phy.config")) is not None:
        sionna.config.torch_rng("cpu").seed()


def main(libraries: Sequence[str] = LIBRARIES) -> None:
    """Imports the libraries, then starts what the launcher asks for until it ends."""
    connection = Connection(os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    gc.disable()  # a collection would write to the memory that is to be shared
    for module in libraries:
        importlib.import_module(module)
    gc.freeze()
    parent = os.getpid()
    connection.send(tuple(Event(0, parent)))
    if (request := _serve(connection)) is not None:
        _become(request, parent)
        importlib.import_module(f"{request.module}.__main__").main()


if __name__ == "__main__":
    main(sys.argv[1:] or LIBRARIES)
