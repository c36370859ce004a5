"""Calls to another service: forward request id, trace and deadline, and raise its errors as DekagErrors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from services.common import security, tracing
from services.common.certificates import TLS_DIR, Certificates, certificates_in, channel_credentials
from services.common.errors import from_rpc
from services.common.request_context import outgoing_metadata, request_id, time_remaining
from services.common.settings import CommonSettings

_GRACE_S = 60.0  # for calls on a channel whose certificates were replaced
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def open_channel(
    address: str, settings: CommonSettings, *, retryable: Sequence[tuple[str, str]] = ()
) -> aio.Channel:
    """A channel for the life of the process; it reconnects within about a second.

    A peer that has been silent for 8 s counts as dead: calls fail immediately until it answers again.

    Args:
        address: host:port.
        settings: limits and credentials.
        retryable: (service, method) of calls that are retried if the peer is unavailable. Only the first
            service of the chain retries, to avoid retry amplification.
    """
    options: list[tuple[str, int | str]] = [
        *security.METADATA_OPTIONS,
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),  # else a minute, whatever keepalive_timeout_ms says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # unlimited
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),  # timeout of one attempt, including TLS
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
    ]
    if retryable:
        options.append(("grpc.service_config", _retry_policy(retryable)))
    if settings.tls_dir is None:
        return aio.insecure_channel(address, options=options)
    return RotatingChannel(address, certificates_in(settings.tls_dir, TLS_DIR), options)


class RotatingChannel(aio.Channel):
    """A channel with mutual TLS that uses the certificates that are in their folder at the time of a call.

    Args:
        address: host:port.
        certificates: of this client.
        options: of the channel.
    """

    def __init__(
        self, address: str, certificates: Certificates, options: Sequence[tuple[str, int | str]]
    ) -> None:
        self._address, self._certificates, self._options = address, certificates, options
        self._files = certificates.current()
        self._channel = self._open()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> aio.Channel:
        """The channel with the current certificates; calls of the last one end on it."""
        if (files := self._certificates.current()) is not self._files:
            last, self._files = self._channel, files
            self._channel = self._open()
            closing = asyncio.ensure_future(last.close(_GRACE_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return self._channel

    def _open(self) -> aio.Channel:
        return aio.secure_channel(self._address, channel_credentials(self._files), options=self._options)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_stream", arguments, options)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()


class _Method:
    """A method of a stub on whatever channel is current."""

    def __init__(self, channel: RotatingChannel, kind: str, arguments: Any, options: Any) -> None:
        self._channel, self._kind, self._arguments, self._options = channel, kind, arguments, options
        self._on: tuple[aio.Channel, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        channel = self._channel.current()
        if self._on is None or self._on[0] is not channel:
            self._on = channel, getattr(channel, self._kind)(*self._arguments, **self._options)
        return self._on[1](*arguments, **options)


def _retry_policy(methods: Sequence[tuple[str, str]]) -> str:
    """gRPC service config: up to 4 attempts within about 3 s; no retries while most calls fail."""
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, method in methods]
    budget = {"maxTokens": 20, "tokenRatio": 0.1}
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}], "retryThrottling": budget})


async def call(
    method: aio.UnaryUnaryMultiCallable[_Request, _Response],
    request: _Request,
    peer: str,
    *,
    timeout_s: float = math.inf,
) -> _Response:
    """Calls a unary method; raises DekagError.

    Args:
        method: method of a stub.
        request: its request.
        peer: name of the called service, for messages.
        timeout_s: longest wait, s; the deadline of the current request may shorten it.
    """
    left = time_remaining()
    timeout_s = min(timeout_s, math.inf if left is None else left)
    with tracing.client_span(peer) as trace:
        try:
            return await method(
                request,
                timeout=timeout_s if timeout_s < math.inf else None,
                metadata=(*outgoing_metadata(), *trace),
            )
        except grpc.RpcError as error:
            raise from_rpc(error, peer, request_id.get()) from error


async def stream(
    method: aio.UnaryStreamMultiCallable[_Request, _Response], request: _Request, peer: str
) -> AsyncGenerator[_Response, None]:
    """The responses of ``peer`` in order; raises DekagError. Leaving the iteration early cancels the call."""
    with tracing.client_span(peer) as trace:
        responses = method(request, timeout=time_remaining(), metadata=(*outgoing_metadata(), *trace))
        try:
            async for response in responses:
                yield response
        except grpc.RpcError as error:
            raise from_rpc(error, peer, request_id.get()) from error
        finally:
            responses.cancel()
