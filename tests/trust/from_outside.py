"""Attacks without a key: connections that are held, requests that never end, and what steers the system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable

from tests.trust.attack import attack, attacks
from tests.trust.system import System

CONNECTIONS = 520
"""More than the gateway takes."""
OPENING_S = 8.0
"""Time for opening connections, s: after 10 s the system may drop the first ones."""
HELD_S = 2.0
LARGE = {
    "the interface's description": "/openapi.json",
    "scripts of the documentation": "/docs-assets/swagger-ui-bundle.js",
    "styles of the documentation": "/docs-assets/swagger-ui.css",
    "the web page": "/",
    "what does not exist": "/v1/nothing",
}
_HEAD = b"Host: 127.0.0.1\r\nUser-Agent: attacker\r\n"

Writer = asyncio.StreamWriter


async def hold(
    system: System,
    send: Callable[[asyncio.StreamReader, Writer], Awaitable[None]],
    *,
    connections: int = CONNECTIONS,
    addresses: int = 1,
    seconds: float = HELD_S,
) -> None:
    """Opens connections that do something and stay; meanwhile another client must be served."""
    opened: list[Writer] = []
    tried = asyncio.Semaphore(0)

    async def one(number: int) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            try:
                reader, writer = await system.raw(f"127.0.0.{2 + number % addresses}", buffer=1024)
                opened.append(writer)
            finally:
                tried.release()
            await send(reader, writer)

    async def all_tried() -> None:
        for _ in range(connections):
            await tried.acquire()

    tasks = [asyncio.create_task(one(number)) for number in range(connections)]
    try:
        await asyncio.wait_for(all_tried(), OPENING_S)
    except TimeoutError:
        system.fail(f"not all connections were tried within {OPENING_S:g} s", slow=True)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(system.check_others)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in opened:
        writer.transport.abort()


def _pipelined(path: str, times: int = 40) -> bytes:
    return (b"GET %s HTTP/1.1\r\n" % path.encode() + _HEAD + b"\r\n") * times


@attacks("slow readers", [f"pipeline GETs of {name}, never read" for name in LARGE])
async def _never_read(system: System, name: str) -> None:
    path = next(path for what, path in LARGE.items() if f"of {what}," in name)

    async def send(_: asyncio.StreamReader, writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined] # of asyncio's own
        writer.write(_pipelined(path))
        await asyncio.sleep(60)

    await hold(system, send)


@attack("slow readers", "pipeline GETs from four addresses, never read")
async def _never_read_from_many(system: System) -> None:
    async def send(_: asyncio.StreamReader, writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(_pipelined(LARGE["scripts of the documentation"]))
        await asyncio.sleep(60)

    await hold(system, send, addresses=4)


@attack("slow readers", "read a byte a second of a large file")
async def _drip(system: System) -> None:
    async def send(reader: asyncio.StreamReader, writer: Writer) -> None:
        writer.write(_pipelined(LARGE["scripts of the documentation"]))
        for _ in range(60):
            await reader.readexactly(1)
            await asyncio.sleep(1)

    await hold(system, send)


@attack("slow readers", "never read, and places must be free again")
async def _freed(system: System) -> None:
    """The connections of those who do not read end by themselves, also when nobody else comes."""
    opened: list[Writer] = []
    for _ in range(20):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind(("127.0.0.3", 0))
        sock.connect(("127.0.0.1", system.port))
        sock.setblocking(False)
        _, writer = await asyncio.open_connection(
            sock=sock, ssl=system.tls, server_hostname="127.0.0.1", limit=1024
        )
        writer.write(_pipelined(LARGE["scripts of the documentation"]))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        opened.append(writer)
    deadline = time.monotonic() + 40
    while (held := _established(system.port, "127.0.0.3")) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    if held:
        system.fail(f"{held} of {len(opened)} connections are held after 40 s")
    for writer in opened:
        writer.transport.abort()


def _established(port: int, address: str) -> int:
    """Connections of an address that the server on a port still holds."""
    local, remote = f":{port:04X}", "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    with open("/proc/net/tcp", encoding="ascii") as table:  # noqa: PTH123
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(
        row[1].endswith(local) and row[2].startswith(remote) and row[3] in ("01", "08") for row in rows
    )


SLOW = {
    "nothing": [],
    "a request line without an end": [b"GET /", *[b"a"] * 60],
    "headers that never end": [b"GET / HTTP/1.1\r\n", *[b"X-A: b\r\n"] * 60],
    "a body a byte a second": [
        b"POST /v1/images/generations HTTP/1.1\r\n" + _HEAD + b"Content-Length: 4000\r\n\r\n", *[b" "] * 60
    ],
    "chunks that never end": [
        b"POST /v1/images/generations HTTP/1.1\r\n" + _HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        *[b"1\r\n \r\n"] * 60,
    ],
    "an expectation, and no body": [
        b"POST /v1/images/generations HTTP/1.1\r\n"
        + _HEAD
        + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n"
    ],
    "a request, and then nothing": [b"GET /healthz HTTP/1.1\r\n" + _HEAD + b"\r\n"],
    "a request for events, and no more": [b"GET /v1/jobs/x/events HTTP/1.1\r\n" + _HEAD + b"\r\n"],
}  # fmt: skip


@attacks("slow senders", [f"send {name}" for name in SLOW])
async def _slow(system: System, name: str) -> None:
    parts = SLOW[name.removeprefix("send ")]

    async def send(_: asyncio.StreamReader, writer: Writer) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(1)
        await asyncio.sleep(60)

    await hold(system, send)


@attacks("slow senders", ["open without TLS, send nothing", "open without TLS, send half a greeting"])
async def _no_handshake(system: System, name: str) -> None:
    opened = []
    for _ in range(CONNECTIONS):
        sock = socket.socket()
        sock.bind(("127.0.0.2", 0))
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", system.port))
            if "half" in name:
                sock.send(b"\x16\x03\x01\x02\x00\x01")
        opened.append(sock)
    await hold(system, _nothing, connections=1)
    for sock in opened:
        sock.close()


async def _nothing(_: asyncio.StreamReader, __: Writer) -> None:
    await asyncio.sleep(0)


@attacks(
    "floods",
    ["connect and leave, 1500 times", "1500 requests, eight at a time", "500 refused requests for images"],
)
async def _flood(system: System, name: str) -> None:
    if name.startswith("connect"):

        async def leave() -> None:
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await system.raw()
                writer.transport.abort()

        for _ in range(15):
            await asyncio.gather(*(leave() for _ in range(100)))
        return
    method, path, many = (
        ("GET", "/healthz", 1500) if "eight" in name else ("POST", "/v1/images/generations", 500)
    )
    async with system.client() as client:
        for first in range(0, many, 8):
            together = min(8, many - first)
            answers = await asyncio.gather(
                *(client.request(method, path, content=b"{}") for _ in range(together)),
                return_exceptions=True,
            )
            if all(isinstance(answer, BaseException) for answer in answers):
                return  # shut out


@attacks(
    "amplified logs",
    [
        "paths of 8 KB without a key",
        "paths of 8 KB with a wrong key",
        "8 KB in X-Request-ID",
        "8 KB in traceparent",
    ],
)
async def _logs(system: System, name: str) -> None:
    junk = "x" * 8000
    path, headers = "/healthz-not", {}
    if "paths" in name:
        path = f"/v1/{junk}"
    else:
        headers = {name.split()[-1]: junk}
    if "wrong" in name:
        headers["Authorization"] = "Bearer dekag_wrong"
    before, start = system.log_bytes(), time.monotonic()
    async with system.client() as client:
        for _ in range(40):
            await asyncio.gather(
                *(client.get(path, headers=headers) for _ in range(8)), return_exceptions=True
            )
    grown, seconds = system.log_bytes() - before, time.monotonic() - start
    # the limit on repeated lines is per time: the longer the attack takes, the more of them may be written
    if grown > 320 * 600 * max(1, seconds / 30):
        system.fail(f"320 refused requests wrote {grown // 1024} KB of log in {seconds:.0f} s")


MALFORMED = {
    "no HTTP": (b"\x00\x01\x02" * 100, (0, 400)),
    "HTTP/0.9": (b"GET /\r\n\r\n", (0, 400, 200)),
    "a preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (0, 400, 404, 405)),
    "CONNECT to another host": (
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + _HEAD + b"\r\n",
        (0, 400, 401, 404, 405, 501),
    ),
    "TRACE": (b"TRACE / HTTP/1.1\r\n" + _HEAD + b"\r\n", (0, 400, 401, 404, 405, 501)),
    "an absolute address": (
        b"GET http://evil.example/v1/knowledge HTTP/1.1\r\n" + _HEAD + b"\r\n",
        (400, 401, 421),
    ),
    "two lengths": (
        b"POST /v1/images/generations HTTP/1.1\r\n"
        + _HEAD
        + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
        (0, 400),
    ),
    "length and chunks": (
        b"POST /healthz HTTP/1.1\r\n"
        + _HEAD
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + b"GET /v1/knowledge HTTP/1.1\r\n\r\n",
        (0, 400, 401, 405),
    ),
    "chunks of an unknown coding": (
        b"POST /healthz HTTP/1.1\r\n" + _HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        (0, 400, 405, 422, 501),
    ),
    "a negative length": (b"POST / HTTP/1.1\r\n" + _HEAD + b"Content-Length: -5\r\n\r\n", (0, 400)),
    "a length of 4 GiB": (
        b"POST /v1/images/generations HTTP/1.1\r\n" + _HEAD + b"Content-Length: 4294967296\r\n\r\n",
        (0, 400, 401, 413),
    ),
    "a header of 64 KB": (
        b"GET / HTTP/1.1\r\n" + _HEAD + b"X-A: " + b"a" * 65536 + b"\r\n\r\n",
        (0, 400, 431),
    ),
    "2000 headers": (b"GET / HTTP/1.1\r\n" + _HEAD + b"A: b\r\n" * 2000 + b"\r\n", (0, 400, 431, 200)),
    "a folded header": (b"GET / HTTP/1.1\r\n" + _HEAD + b"A: b\r\n c\r\n\r\n", (0, 200, 400)),
    "a NUL in a header": (b"GET / HTTP/1.1\r\n" + _HEAD + b"A: b\x00c\r\n\r\n", (0, 200, 400)),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", (200, 400)),
    "a path outside": (b"GET /web/../../../../etc/passwd HTTP/1.1\r\n" + _HEAD + b"\r\n", (400, 401, 404)),
    "a path outside, encoded": (
        b"GET /web/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + _HEAD + b"\r\n",
        (400, 401, 404),
    ),
}


@attacks("malformed requests", [f"send {name}" for name in MALFORMED])
async def _malformed(system: System, name: str) -> None:
    request, allowed = MALFORMED[name.removeprefix("send ")]
    if (status := await system.status(request)) not in allowed:
        system.fail(f"answered with {status}")


@attack("ids that clients choose", "overwrite the report of another request")
async def _report(system: System) -> None:
    answer = await system.draw()
    name = answer.headers["x-request-id"]
    before = (await system.ask("alice", "GET", f"/v1/reports/{name}")).json()
    async with system.client("bob") as client:
        await client.post(
            "/v1/images/generations", json={"prompt": "a dog", "seed": 1}, headers={"X-Request-ID": name}
        )
    if (await system.ask("alice", "GET", f"/v1/reports/{name}")).json() != before:
        system.fail("the report has changed")


IDS = {
    "the request's id": "a" * 32,
    "a long id": "a" * 5000,
    "an id with an encoded line end": "a%0d%0aSet-Cookie: b",
}


@attacks("ids that clients choose", [f"choose {name}" for name in IDS])
async def _own_id(system: System, name: str) -> None:
    given = IDS[name.removeprefix("choose ")]
    answer = await system.ask("bob", "GET", "/healthz", headers={"X-Request-ID": given})
    if answer.headers.get("x-request-id") == given:
        system.fail("the gateway took it over as its own")
    if "set-cookie" in answer.headers:
        system.fail("the gateway answered with a header of the client's")


def unique() -> str:
    """A name that no earlier run has used."""
    return f"t{os.urandom(6).hex()}"
