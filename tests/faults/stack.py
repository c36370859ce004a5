"""The chain of docker-compose.yml with a relay on every link, and what can be done to it from outside.

With FAULTS_KEEP=1 it is left running in the end, and a later run that finds it takes it as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import docker
import httpx2
from docker.models.containers import Container

from services.launcher.stack import free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PROJECT = "dekag-faults"
KEEP = os.environ.get("FAULTS_KEEP") == "1"
DEADLINE_S = 10.0  # as compose.faults.yml sets it
SERVICES = ("gateway", "user", "channel", "edge", "cloud", "distiller")
_LABEL = "com.docker.compose"


class Stack:
    """The containers, as a context manager that has started them inside and removed them outside."""

    def __init__(self) -> None:
        self._folder = ROOT / ".run" / "faults"
        self._engine = docker.from_env()
        self._links: dict[str, str] = {}
        self._port = 0

    def __enter__(self) -> Self:
        try:
            if not self._adopt():
                self._port = free_port()
                self._make_folder()
                self.compose("up", "--build", "--wait", "--wait-timeout", "600")
        except BaseException:
            self.close()
            raise
        self.url = f"http://127.0.0.1:{self._port}"
        self._http = httpx2.Client(base_url=self.url, timeout=DEADLINE_S + 5, trust_env=False)
        return self

    def _adopt(self) -> bool:
        """Whether the chain runs already."""
        if not KEEP:
            return False
        published = self.compose("port", "gateway", "8080", check=False).strip()
        self._port = int(published.rpartition(":")[2] or 0)
        return bool(self._port)

    def _make_folder(self) -> None:
        """What the containers mount; they run as somebody else."""
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "relay.py", self._folder)
        library = self._folder / "clock.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "clock.c"], check=True)
        for path in (self._folder, *self._folder.iterdir()):
            path.chmod(0o755)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self.close()

    def close(self) -> None:
        """Removes the containers, their volumes and networks, unless they are to be kept."""
        if not KEEP:
            self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1", check=False)
        self._engine.close()

    def compose(self, *arguments: str, check: bool = True) -> str:
        """What ``docker compose`` prints."""
        files = ["--file", "docker-compose.yml", "--file", "tests/faults/compose.faults.yml"]
        environment = {"DEKAG_GATEWAY_PORT": str(self._port), "FAULTS_DIR": str(self._folder)}
        return subprocess.run(
            ["docker", "compose", "--project-name", PROJECT, *files, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=check,
        ).stdout

    # what the client sees

    def ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """The gateway's answer; httpx2.HTTPError if there is none."""
        return self._http.request(method, path, **arguments)

    def knowledge(self) -> dict[str, tuple[int, str]]:
        """Version and content hash of each topic's current knowledge."""
        answer = self.insist("GET", "/v1/knowledge")
        return {each["topic"]: (each["version"], each["content_hash"]) for each in answer.json()["data"]}

    def insist(self, method: str, path: str, within_s: float = 60.0, **arguments: Any) -> httpx2.Response:
        """The gateway's first answer below 500 within that time; the last one or AssertionError without."""
        until = time.monotonic() + within_s
        while True:
            try:
                answer = self.ask(method, path, **arguments)
                if answer.status_code < 500 or time.monotonic() > until:
                    return answer
            except httpx2.HTTPError as error:
                if time.monotonic() > until:
                    raise AssertionError(f"{method} {path}: {error!r}") from error
            time.sleep(0.2)

    # what is done to it

    def container(self, service: str) -> Container:
        """The service's container, as it is now."""
        wanted = [f"{_LABEL}.project={PROJECT}", f"{_LABEL}.service={service}"]
        (found,) = self._engine.containers.list(all=True, filters={"label": wanted})
        return found

    def run(self, service: str, *command: str) -> str:
        """What a command in the service's container prints; AssertionError if it fails."""
        status, output = self.container(service).exec_run(list(command))
        text = output.decode(errors="replace")
        assert status == 0, f"{service}: {' '.join(command)[:80]}: status {status}\n{text}"
        return text

    def python(self, service: str, script: str, *arguments: str) -> str:
        """What a Python script in the service's container prints."""
        return self.run(service, "python", "-c", script, *arguments)

    def redis(self, *command: str) -> str:
        """Redis's answer to a command."""
        return self.run("redis", "redis-cli", *command).strip()

    def signal(self, service: str, name: str) -> None:
        """Sends a signal to all processes in the container but its init, as the engine's kill does not."""
        status, _ = self.container(service).exec_run(["sh", "-c", f"kill -{name} -1"])
        assert status in (0, 137), f"{service}: kill -{name}: status {status}"  # 137: it took the shell along

    def started(self, service: str) -> tuple[str, bool]:
        """When the container was last started, and whether it runs."""
        state = self.container(service).attrs["State"]
        return str(state["StartedAt"]), bool(state["Running"])

    def stop(self, service: str) -> None:
        """Stops the container for good."""
        self.container(service).stop(timeout=1)

    def start(self, service: str) -> None:
        """Starts it again."""
        self.container(service).start()

    def set_links(self, **modes: str) -> None:
        """Sets the modes of these links (``edge_cloud="refuse"``) and leaves the others, see ``relay.py``."""
        self._links |= {name.replace("_", "-"): mode for name, mode in modes.items()}
        self._write("relay", "/tmp/links.json", json.dumps(self._links))  # noqa: S108 - in the container

    def set_clock(self, service: str, offset_s: int) -> None:
        """Puts the service's clock forward by so many seconds, back if negative, aright with 0."""
        self._write(service, "/tmp/clock", str(offset_s))  # noqa: S108 - in the container

    def _write(self, service: str, path: str, text: str) -> None:
        self.run(service, "sh", "-c", 'printf %s "$1" > "$2.new" && mv "$2.new" "$2"', "sh", text, path)


def wait_for(what: Callable[[], bool], within_s: float, why: str) -> float:
    """Seconds until ``what`` is true; AssertionError if it is not within that time."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() < start + within_s, f"{why}: not within {within_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - start


def order(topic: str, **config: Any) -> Mapping[str, Any]:
    """A small distillation."""
    return {"topic": topic, "images": 8, "steps": 20, "rank": 1, "tokens": 1, "force": True, **config}
