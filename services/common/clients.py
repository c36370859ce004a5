"""Calls to another service: forward request id, trace and deadline, and raise its errors as DekagErrors."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

import grpc
from grpc import aio

from services.common import security, tracing
from services.common.errors import from_rpc
from services.common.request_context import outgoing_metadata, request_id, time_remaining
from services.common.settings import CommonSettings

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
    if (credentials := security.channel_credentials(settings.tls_dir)) is not None:
        return aio.secure_channel(address, credentials, options=options)
    return aio.insecure_channel(address, options=options)


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
