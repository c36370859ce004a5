"""The HTTP server of the gateway: uvicorn with limits on incomplete requests and connections."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import ssl
from collections.abc import Iterator
from typing import cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import HANDLED_SIGNALS

from services.common import tracing
from services.common.certificates import HTTPS_DIR, certificates_in
from services.common.security import CERTIFICATE, KEY, server_context
from services.gateway.problems import problem, title
from services.gateway.settings import GatewaySettings

SLOWEST_READER = 16 * 1024
"""Bytes of a response that a client must take in a second, beyond the deadline of a request."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with limits; by default it waits forever and accepts headers of any size.

    A request must be complete ``receive_timeout_s`` after its first byte, or after the connection was opened.
    Its headers may have up to ``max_header_bytes``. There may be up to ``max_connections``. On Linux, the
    kernel closes a connection whose client takes nothing of a response for ``receive_timeout_s``. A client
    that takes a little now and then has ``deadline_s`` for what it has not taken, and a second for each
    ``SLOWEST_READER`` bytes.

    Limits for each address are those of the proxy, ``deploy/haproxy.cfg``.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._settings: GatewaySettings = self.config.app.state.settings  # type: ignore[union-attr]
        self._in_head, self._head_bytes = True, 0
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            timeout_ms = math.ceil(1000 * self._settings.receive_timeout_s)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, timeout_ms)
        if len(self.connections) > self._settings.max_connections:
            self._refuse(503, "there are too many connections; try again later")
        else:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._settings.deadline_s + self.transport.get_write_buffer_size() / SLOWEST_READER
        self._unread = self.loop.call_later(seconds, self.transport.abort)  # close() would wait on

    def resume_writing(self) -> None:
        self._clear_unread()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > (limit := self._settings.max_header_bytes):
            self._refuse(431, f"the request line and the headers must be at most {limit} bytes")

    def on_message_begin(self) -> None:
        self._set_deadline()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True  # of the next request
        self._clear_deadline()
        super().on_message_complete()

    def _set_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._settings.receive_timeout_s, self._out_of_time)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _clear_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _out_of_time(self) -> None:
        seconds = self._settings.receive_timeout_s
        self._refuse(408, f"the request was not complete within {seconds:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        """Sends a problem, unless it would mix with another response, and closes the connection."""
        if self.transport.is_closing():
            return
        if self._in_head:
            silent = self.cycle is None or self.cycle.response_complete
        else:
            silent = not self.cycle.response_started
        if silent:
            answer = problem(status, detail, headers={"Connection": "close"})
            head = b"".join(b"%s: %s\r\n" % field for field in answer.raw_headers)
            line = f"HTTP/1.1 {status} {title(status)}\r\n".encode()
            self.transport.write(line + head + b"\r\n" + bytes(answer.body))
        self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals ignored that were ignored when the process started, as under `nohup`."""
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drains first: `/readyz` fails, responses end their connections, and requests are still accepted.

        Event streams end, as they would delay the shutdown by the whole grace period.
        """
        state = self.config.app.state  # type: ignore[union-attr]
        state.stopping.set()
        if not self.force_exit:
            await asyncio.sleep(state.settings.drain_s)
        await super().shutdown(sockets)
        tracing.close()  # here, because uvicorn then ends the process with the received signal


def make_server(app: FastAPI, *, port: int | None = None) -> uvicorn.Server:
    """A server for an application of ``create_app``, with its settings.

    Args:
        app: application to serve.
        port: port to listen on; default: that of the settings.

    Raises:
        SettingError: the HTTPS certificate or its key cannot be read or is invalid.
    """
    settings: GatewaySettings = app.state.settings
    certificates = None
    if (folder := settings.https_dir) is not None:
        server_context(folder, HTTPS_DIR, authority=False)  # also if other files were read there before
        certificates = certificates_in(folder, HTTPS_DIR)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port if port is None else port,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_s),
        ssl_certfile=folder and folder / CERTIFICATE,
        ssl_keyfile=folder and folder / KEY,
    )
    if certificates is not None:
        config.load()
        certificates.keep_current(cast("ssl.SSLContext", config.ssl))
        certificates.watch()
    return _Server(config)
