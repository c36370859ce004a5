"""Servers to be measured, as child processes, all with the same settings of threads."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from services.common.healthcheck import healthy
from services.launcher.stack import HOST, Stack, free_port
from services.launcher.up import RUN_DIR, await_ready

THREADS: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "DEKAG_THREADS": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
"""Of every server: one thread for each model, and idle ones that do not spin."""


@dataclass
class Server(Stack):
    """One server that is no part of the chain, as a context manager; ``Stack`` starts and ends it.

    Attributes:
        module: run as ``python -m module``.
        arguments: of it, beside ``--port``.
        health: ``http``: it answers ``GET /health``; ``grpc``: it speaks grpc.health.v1.
    """

    module: str = ""
    arguments: Sequence[str] = ()
    health: str = "http"

    @property
    def url(self) -> str:
        """Base URL, if it speaks HTTP."""
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.children[0].port}"

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        port = free_port()
        target = f"http://{HOST}:{port}/health" if self.health == "http" else f"{HOST}:{port}"
        name = self.module.rsplit(".", 1)[-1]
        command = [sys.executable, "-m", self.module, *self.arguments]
        env = {**os.environ, **THREADS, **self.env, "DEKAG_HOST": HOST, "DEKAG_PORT": str(port)}
        if self.health == "http":
            command += ["--port", str(port)]
        self._spawn(name, port, command, env, lambda: healthy(target, 1.0))

    def pause(self) -> None:
        """Holds it up, so that it takes no time from another that is measured; LitServe polls when idle."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def _end(self) -> None:
        self.resume()
        super()._end()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for child in self.children:  # each leads a group of its own, which holds the workers that it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)


UNWATCHED: Mapping[str, str] = {"DEKAG_WATCH_SHARE": "0"}
"""Of every chain: nothing but what is asked for is drawn."""


def chain(name: str, profile: str, **env: str) -> Stack:
    """The whole chain on free ports, with `THREADS`; its logs are in a folder with that name."""
    folder: Path = (RUN_DIR / "bench" / name).resolve()
    every = {**THREADS, **UNWATCHED, "DEKAG_PROFILE": profile}
    return Stack(folder, free_ports=True, env={**every, **env})


def server(name: str, module: str, *arguments: str, health: str = "http", **env: str) -> Server:
    """The server of that module on a free port, with `THREADS`; its log is in a folder with that name."""
    folder: Path = (RUN_DIR / "bench" / name).resolve()
    return Server(folder, module=module, arguments=arguments, health=health, env=env)


@contextlib.contextmanager
def awake(stack: Stack) -> Iterator[None]:
    """Lets a server go on inside and pauses it outside; a chain, which does nothing when idle, goes on."""
    if not isinstance(stack, Server):
        yield
        return
    stack.resume()
    try:
        yield
    finally:
        stack.pause()


def start(stack: Stack, console: Console) -> None:
    """Waits until all of ``stack`` is ready; raises LaunchError."""
    if isinstance(stack, Server):
        for _ in stack.wait_ready():
            pass
    else:
        await_ready(stack, console)
