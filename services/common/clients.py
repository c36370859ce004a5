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
from services.common.certificates import TLS_DIR, Certificates, certificates_in
from services.common.errors import SettingError, from_rpc
from services.common.request_context import outgoing_metadata, request_id, time_remaining
from services.common.settings import CommonSettings

_GRACE_S = 60.0  # for calls on a channel whose certificates were replaced
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_SIMULTANEOUS = 16
_MOST_TOKENS = 1_000  # gRPC's limit
_BALANCING: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
_HEALTH: dict[str, Any] = {"healthCheckConfig": {"serviceName": ""}}
# parts of a gRPC service config; decision 28 compares other choices


def open_channel(
    address: str,
    settings: CommonSettings,
    *,
    retryable: Sequence[tuple[str, str]] = (),
    simultaneous: int = _SIMULTANEOUS,
    only_serving: bool = True,
) -> aio.Channel:
    """A channel to all replicas of a service for the life of the process; it reconnects within a second.

    Calls go to the replicas in turn, but only to those whose ``grpc.health.v1`` says that they serve. The
    name is resolved again whenever a connection ends, at most once a second. A replica that has been silent
    for 8 s counts as dead: calls fail immediately if no other one is left, until it answers again.

    Args:
        address: host:port, where the host stands for all of its addresses, or several with IP addresses,
            separated by commas.
        settings: limits and credentials.
        retryable: (service, method) of calls that are retried if the peer is unavailable. Only the first
            service of the chain retries, to avoid retry amplification.
        simultaneous: calls that may be in progress at a time. As many can fail with one connection, and all
            of them are retried.
        only_serving: leave out replicas whose health says that they do not serve.

    Raises:
        SettingError: several addresses with mutual TLS, which needs the name in the certificate.
    """
    config = _BALANCING | (_HEALTH if only_serving else {}) | _retry_policy(retryable, simultaneous)
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
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # else half a minute
        ("grpc.per_rpc_retry_buffer_size", settings.max_message_bytes),  # larger calls are not retried
        ("grpc.service_config", json.dumps(config)),
    ]
    if settings.tls_dir is None:
        return aio.insecure_channel(target(address), options=options)
    if "," in address:
        raise SettingError(
            f"{address}: with mutual TLS, a service must have one host name, which its certificate contains; "
            "the name may have several addresses"
        )
    return RotatingChannel(target(address), certificates_in(settings.tls_dir, TLS_DIR), options)


class RotatingChannel(aio.Channel):
    """A channel with mutual TLS that uses the certificates that are in their folder at the time of a call.

    Args:
        address: as gRPC takes it.
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
        files = self._files
        credentials = grpc.ssl_channel_credentials(files.authority, files.key, files.certificate)
        return aio.secure_channel(self._address, credentials, options=self._options)

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


class Peer:
    """Another service: all of its replicas.

    Attributes:
        channel: to those that serve.
        every: to all of them, to learn why none serves.

    Args:
        address: see open_channel, as are the other arguments.
    """

    def __init__(
        self,
        address: str,
        settings: CommonSettings,
        *,
        retryable: Sequence[tuple[str, str]] = (),
        simultaneous: int = _SIMULTANEOUS,
    ) -> None:
        self.channel = open_channel(address, settings, retryable=retryable, simultaneous=simultaneous)
        self.every = open_channel(address, settings, only_serving=False)

    async def close(self) -> None:
        """Closes the channels."""
        await self.channel.close()
        await self.every.close()


def target(address: str) -> str:
    """The name that gRPC resolves for an address of ``open_channel``."""
    if "," not in address:
        return f"dns:///{address}"
    return f"ipv{6 if address.startswith('[') else 4}:{address}"


def _retry_policy(methods: Sequence[tuple[str, str]], simultaneous: int) -> dict[str, Any]:
    """Part of a gRPC service config: up to 4 attempts within about 3 s; no retries while most calls fail.

    gRPC takes a token for each failed attempt, returns 0.1 for each success, and retries while more than half
    of them are left: enough for all calls of two connections.
    """
    if not methods:
        return {}
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, method in methods]
    budget = {"maxTokens": min(max(20, 4 * simultaneous), _MOST_TOKENS), "tokenRatio": 0.1}
    return {"methodConfig": [{"name": names, "retryPolicy": policy}], "retryThrottling": budget}


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
