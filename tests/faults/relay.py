"""A relay for TCP between the services, whose links can be cut and delayed. Runs in a container of its own.

Each link has a port here and a mode, which ``CONTROL``, a JSON object from link to mode, may change any time:

- ``ok``: what comes in goes out.
- ``refuse``: connections are reset, new ones too.
- ``stall``: nothing gets through, and all of it does once this is over, as TCP makes it of lost packets.
- ``lose``: connections are dead from now on and nobody is told, as where a firewall forgot them.
- ``delay:S``: everything arrives S seconds later, in both directions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

CONTROL = Path("/tmp/links.json")  # noqa: S108 - the container's own
LOOK_EVERY_S = 0.05
SERVICES = {
    "gateway-user": "user:50051",
    "user-channel": "channel:50052",
    "channel-edge": "edge:50053",
    "edge-cloud": "cloud:50054",
    "gateway-cloud": "cloud:50054",
}
REDIS = {f"{name}-redis": "redis:6379" for name in ("gateway", "user", "edge", "cloud", "distiller")}
LINKS = SERVICES | REDIS
FIRST_PORT = 7001  # of the first link; the others follow
_CHUNKS = 64  # that one direction holds back before its sender has to wait


class Connection:
    """Two sockets; what one receives the other sends."""

    def __init__(self, link: Link, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.link, self.ends, self.lost = link, (near, far), link.mode == "lose"

    def reset(self) -> None:
        """Ends it at once; both sides are told."""
        for end in self.ends:
            end.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its sender ends."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS)

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self.link.passable.wait()
                if not self.lost:
                    writer.write(data)
                    await writer.drain()

        delivering = asyncio.create_task(deliver())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await waiting.put((time.monotonic() + self.link.delay_s, data))
        delivering.cancel()
        self.reset()


class Link:
    """One port, and where it leads.

    Args:
        target: host:port.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self._connections: set[Connection] = set()
        self.mode, self.delay_s = "ok", 0.0
        self.passable = asyncio.Event()
        self.passable.set()

    def set(self, mode: str) -> None:
        """Changes the mode, of what is connected too."""
        if mode == self.mode:
            return
        self.mode = mode
        self.delay_s = float(mode.removeprefix("delay:")) if mode.startswith("delay:") else 0.0
        (self.passable.clear if mode == "stall" else self.passable.set)()
        for connection in list(self._connections):
            if mode == "refuse":
                connection.reset()
            connection.lost |= mode == "lose"

    async def accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        await self.passable.wait()
        if self.mode == "refuse":
            near.transport.abort()
            return
        try:
            far_reader, far = await asyncio.open_connection(self._host, self._port)
        except OSError:
            near.transport.abort()
            return
        connection = Connection(self, near, far)
        self._connections.add(connection)
        try:
            await asyncio.gather(
                connection.carry(reader, far), connection.carry(far_reader, near), return_exceptions=True
            )
        finally:
            connection.reset()
            self._connections.discard(connection)


async def main() -> None:
    """Serves all links until killed."""
    links = {name: Link(target) for name, target in LINKS.items()}
    for port, link in enumerate(links.values(), FIRST_PORT):
        await asyncio.start_server(link.accept, "0.0.0.0", port)  # the network is internal
    while True:
        with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: being written
            modes = json.loads(CONTROL.read_text())  # noqa: ASYNC240 - a few bytes in memory
            for name, link in links.items():
                link.set(modes.get(name, "ok"))
        await asyncio.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    asyncio.run(main())
