"""The system that is attacked: real processes with tiny models, as in the secure stack.

The gateway has API keys and HTTPS, the services have mutual TLS, and the proxy of ``deploy/haproxy.cfg`` is
in front. Attackers come from 127.0.0.2 and above, so that limits for each address tell them from the health
probe at 127.0.0.1. Everything stays on the loopback interface.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from grpc import aio
from redis import Redis

from dekag.makd.update import KnowledgeUpdate
from services.common.security import channel_credentials
from services.gateway.api_keys import new_key
from services.launcher.credentials import make_credentials
from services.launcher.stack import METERED, SERVICES, Stack, is_free
from tests.chain import QUALITY, adapters
from tests.hostile.artifacts import tiny_update
from tests.processes import free_port
from tests.trust.refusals import is_broken

ROOT = Path(__file__).resolve().parents[2]
PROXY = ROOT / "deploy" / "haproxy.cfg"
HEALTH_S = 1.0
"""Longest time that a health check may take, s."""
CALM_S = 3.0
"""Time for which the health is checked without an attack, before the first one, s."""
PROMPT, SEED = "a red car on the beach in neon", 7
ALICES = "alices-neon"
"""The victim's prompt and seed, and her topic, which the prompt needs."""
KEYS: Mapping[str, Mapping[str, Any]] = {
    "alice": {"scopes": ("draw", "teach", "publish"), "requests_per_minute": 90_000},
    "bob": {"scopes": ("draw", "teach", "publish"), "requests_per_minute": 90_000, "concurrency": 64},
    "drawer": {"scopes": ("draw",), "requests_per_minute": 90_000},
    "teacher": {"scopes": ("teach",), "requests_per_minute": 90_000},
    "publisher": {"scopes": ("publish",), "requests_per_minute": 90_000},
    "admin": {"scopes": ("admin",), "requests_per_minute": 90_000},
    **{f"limited-{i}": {"scopes": ("draw", "publish"), "requests_per_minute": 12} for i in range(9)},
}
"""The keys; alice is the victim, the others attack."""


async def _rest(reader: asyncio.StreamReader) -> str:
    """What follows the first line of an answer: its headers, and as much of its body as they announce."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", b"\r\n" + head)
    body = await (reader.readexactly(int(length[1])) if length else reader.read(2**16))
    return (head + body).decode(errors="replace")


class System:
    """The running system, and what the current attack has done to it.

    Attributes:
        problems: what went wrong during the current attack.
        slow: those of them that a machine that is busy with other things could have caused.
        slowest_health_s: of the checks during the current attack, s.
    """

    def __init__(self, folder: Path, profile: Path) -> None:
        self._folder, self._profile = folder, profile
        self.problems: list[str] = []
        self.slow: list[str] = []
        self.slowest_health_s = 0.0
        self.credentials = folder / "credentials"
        make_credentials(self.credentials)
        lines = {name: new_key(name, **options) for name, options in KEYS.items()}
        self.keys = {name: key for name, (key, _) in lines.items()}
        (folder / "api-keys").write_text("\n".join(line for _, line in lines.values()) + "\n")
        self.tls = ssl.create_default_context(cafile=self.credentials / "gateway" / "ca.crt")
        self.update = tiny_update(profile)
        self.adapters = adapters(profile / "codec", 3, quality=QUALITY).to_files()
        self._proxy: subprocess.Popen[bytes] | None = None
        self._other: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.metrics_ports = dict(zip(METERED, _free_ports(len(METERED)), strict=True))
        env = {
            "DEKAG_PROFILE": str(self._profile),
            "DEKAG_DATA_DIR": str(self._folder / "data"),
            "DEKAG_API_KEYS_FILE": str(self._folder / "api-keys"),
            "DEKAG_HTTPS_DIR": str(self.credentials / "gateway"),
            "DEKAG_TLS_DIR": str(self.credentials),
            "DEKAG_METRICS_PORT": str(self.metrics_ports["gateway"]),
            "DEKAG_GENERATE_BATCH": "1",  # as compose.secure.yml sets it
            "DEKAG_WATCH_SHARE": "0",
            "OMP_NUM_THREADS": "1",
        }
        self._stack = Stack(self._folder / "run", free_ports=True, env=env, grace_s=10)
        self._stack.__enter__()
        for _ in self._stack.wait_ready(600):
            pass
        self.port = self._stack["gateway"].port
        if PROXY.exists():
            self._start_proxy()
        self.redis = Redis.from_url(self._stack.redis_url)
        authority = str(self.credentials / "gateway" / "ca.crt")
        self._other = subprocess.Popen(
            [sys.executable, "-m", "tests.trust.bystander", str(self.port), authority],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._other.stdout is not None
        assert self._other.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._other is not None:
            self._other.communicate("", timeout=10)
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.wait(10)
        self.redis.close()
        self._stack.__exit__(None, None, None)

    def _start_proxy(self) -> None:
        program = shutil.which("haproxy")
        assert program is not None, "the proxy is attacked too: install Debian's package haproxy"
        gateway, self.port = self.port, free_port()
        env = {
            **os.environ,
            "DEKAG_PORT": str(self.port),
            "DEKAG_GATEWAY_ADDRESS": f"127.0.0.1:{gateway}",
            "DEKAG_HTTPS_DIR": str(self.credentials / "proxy"),
            "DEKAG_TLS_DIR": str(self.credentials / "proxy"),
        }
        log = (self._folder / "run" / "proxy.log").open("wb")
        self._proxy = subprocess.Popen([program, "-db", "-f", PROXY], env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while is_free(self.port):
            assert self._proxy.poll() is None, (self._folder / "run" / "proxy.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    # what an attack reports

    def fail(self, problem: str, *, slow: bool = False) -> None:
        """The attack has worked: it did this; `slow` if it only took longer than it may."""
        if problem not in self.problems:
            self.problems.append(problem)
            self.slow += [problem] if slow else []

    def expect(self, answer: httpx2.Response, *statuses: int, what: str) -> None:
        """The attack has worked unless its request was answered with one of these statuses."""
        if answer.status_code not in statuses:
            self.fail(f"{what}: answered with {answer.status_code}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A bystander checks the health meanwhile; afterwards the services must be alive."""
        self.problems, self.slow, self.slowest_health_s = [], [], 0.0
        self._bystander("watch")
        try:
            yield
        finally:
            report = self._bystander("report")
        self.slowest_health_s = report["slowest_s"]
        for problem in report["problems"]:
            self.fail(problem)
        if self.slowest_health_s > HEALTH_S:
            self.fail(f"a health check took {self.slowest_health_s:.1f} s", slow=True)
        for child in self._stack.children:
            if child.process.poll() is not None:
                self.fail(f"{child.name} ended")

    def slowest_calm_s(self) -> float:
        """The slowest of the health checks while nobody attacks, s."""
        with self.watched():
            time.sleep(CALM_S)
        return self.slowest_health_s

    def check_others(self, path: str = "/v1/knowledge") -> None:
        """A bystander with alice's key must be served."""
        status = self._bystander("get", path, self.keys["alice"])
        if status != 200:
            self.fail(f"another client was not served: {status}")

    def _bystander(self, *command: str) -> Any:
        assert self._other is not None
        assert self._other.stdin is not None
        assert self._other.stdout is not None
        self._other.stdin.write(json.dumps(command) + "\n")
        self._other.stdin.flush()
        return json.loads(self._other.stdout.readline())

    # what an attacker does

    @asynccontextmanager
    async def client(self, key: str = "", address: str = "127.0.0.2") -> AsyncIterator[httpx2.AsyncClient]:
        """A client with a key of that name, or as it is, at an address."""
        given = self.keys.get(key, key)
        transport = httpx2.AsyncHTTPTransport(
            verify=self.tls, local_address=address, limits=httpx2.Limits(max_connections=None)
        )

        async def note(answer: httpx2.Response) -> None:
            await self._note(answer)

        async with httpx2.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            transport=transport,
            headers={"Authorization": f"Bearer {given}"} if given else {},
            timeout=60,
            event_hooks={"response": [note]},
        ) as client:
            yield client

    async def _note(self, answer: httpx2.Response) -> None:
        """An answer with a 5xx is a success of the attack, unless the system is full."""
        if answer.status_code < 500:
            return
        text = (await answer.aread()).decode(errors="replace")
        if is_broken(answer.status_code, text):
            self.fail(f"{answer.request.method} was answered with {answer.status_code}: {text[:120]}")

    async def ask(self, key: str, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to one request."""
        async with self.client(key) as client:
            return await client.request(method, path, **options)

    async def raw(
        self, address: str = "127.0.0.2", buffer: int = 2**16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An open connection to the front, with TLS."""
        return await asyncio.wait_for(
            asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls, local_addr=(address, 0), limit=buffer
            ),
            10,
        )

    async def status(self, request: bytes, within_s: float = 30.0) -> int:
        """The status of the first answer to some bytes; 0 if the connection was closed without one."""
        try:
            reader, writer = await self.raw()
        except OSError:
            return 0
        try:
            writer.write(request)
            await writer.drain()
            line = await asyncio.wait_for(reader.readline(), within_s)
            status = int(line.split()[1]) if line.startswith(b"HTTP/") else 0
            if status >= 500:
                rest = await asyncio.wait_for(_rest(reader), within_s)
                if is_broken(status, rest):
                    self.fail(f"answered with {status}: {rest[-120:]}")
            return status
        except TimeoutError:
            self.fail(f"no answer within {within_s:g} s")
            return 0
        except (OSError, asyncio.IncompleteReadError):
            return 0
        finally:
            writer.transport.abort()

    def channel(self, service: str, stolen: str = "operator") -> aio.Channel:
        """A new connection to a service, as somebody who has got hold of another one's certificate."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        credentials = channel_credentials(self.credentials / stolen)
        assert credentials is not None
        return aio.secure_channel(f"127.0.0.1:{self._stack[service].port}", credentials, options=options)

    def service_port(self, service: str) -> int:
        """The port of a service."""
        return self._stack[service].port

    def log_bytes(self) -> int:
        """Bytes of all logs."""
        return sum(file.stat().st_size for file in (self._folder / "run").glob("*.log*"))

    async def publish(self, key: str, topic: str, triggers: Sequence[str]) -> httpx2.Response:
        """Publishes an update under a name, for these triggers."""
        return await self.ask(key, "PUT", f"/v1/knowledge/{topic}", json=self.upload(topic, triggers))

    def upload(self, topic: str, triggers: Sequence[str]) -> Mapping[str, Any]:
        """The body of a publication."""
        files = self.files(topic, triggers)
        return {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}

    def files(self, topic: str, triggers: Sequence[str]) -> Mapping[str, bytes]:
        """The files of an update that changes every picture that it is used for."""
        info = {**self.update.info, "topic": topic, "triggers": list(triggers)}
        return KnowledgeUpdate.new(info, self.update.metaword * (1 + len(topic)), self.update.lora).to_files()

    async def draw(self, key: str = "alice", **body: Any) -> httpx2.Response:
        """Draws a picture, the victim's if nothing else is said."""
        body = {"prompt": PROMPT, "seed": SEED, "link": {"snr_db": 12}, **body}
        address = "127.0.0.1" if key == "alice" else "127.0.0.2"
        async with self.client(key, address) as client:
            return await client.post("/v1/images/generations", json=body)

    def forget(self) -> None:
        """Empties the caches of pictures, so that all are drawn again."""
        for pattern in ("dekag:latent:*", "dekag:image:*"):
            if keys := list(self.redis.scan_iter(pattern)):
                self.redis.delete(*keys)

    async def victims_picture(self) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """The victim's picture, drawn anew, and the knowledge that it was drawn with."""
        self.forget()
        answer = await self.draw()
        if answer.status_code != 200:
            self.fail(f"the victim's request was answered with {answer.status_code}")
            return "", []
        (image,) = answer.json()["data"]
        return image["b64_json"], image["link_report"]["knowledge"]


def metrics_context(system: System) -> ssl.SSLContext:
    """TLS with the operator's certificate."""
    context = ssl.create_default_context(cafile=system.credentials / "operator" / "ca.crt")
    context.load_cert_chain(
        system.credentials / "operator" / "tls.crt", system.credentials / "operator" / "tls.key"
    )
    return context


def _free_ports(count: int) -> list[int]:
    """Consecutive free ports."""
    for _ in range(100):
        first = free_port()
        ports = list(range(first, first + count))
        if ports[-1] <= 65535 and all(map(is_free, ports)):
            return ports
    pytest.fail("there are no free ports side by side")


SERVED = tuple(name for name in SERVICES if name != "gateway")
"""The gRPC services."""
