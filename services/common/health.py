"""Queries the health of a service over gRPC, with the reason if it is unhealthy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from services.common.clients import Peer

REASON_KEY = "dekag-reason-bin"
"""Trailing metadata of a response: why the service is unhealthy, in UTF-8."""


CHAIN = "chain"
"""Name of the health of a service together with that of the next one, and so on to the end of the chain.

The health without a name is that of the service alone: its models are loaded, and it is not about to stop.
"""


class Health(NamedTuple):
    """State of a service, "serving", "not_serving" or "unreachable", and the reason if it is not serving."""

    state: str
    reason: str = ""


async def check_health(peer: Peer, name: str, timeout_s: float, part: str = "") -> Health:
    """Queries the health of a service: that of a replica that serves, if there is one.

    Args:
        peer: the service.
        name: its name in the reason.
        timeout_s: longest wait, s, for all that is asked.
        part: `CHAIN`, or a part of the service, such as "distillation" of the cloud; empty for the service
            alone.
    """
    end = time.monotonic() + timeout_s
    health = await _check(peer.channel, name, end, part)
    if health.state != "unreachable" or time.monotonic() >= end:
        return health
    return await _check(peer.every, name, end, part)


async def _check(channel: aio.Channel, name: str, end: float, part: str) -> Health:
    """As `check_health`; ``end`` is on the monotonic clock, s."""
    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
    call = check(health_pb2.HealthCheckRequest(service=part), timeout=max(end - time.monotonic(), 0))
    try:
        response = await call
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return Health("serving")
        reasons = dict(await call.trailing_metadata() or ())
    except grpc.RpcError as error:
        if part == CHAIN and error.code() is grpc.StatusCode.NOT_FOUND:  # a server that knows only its own
            return await _check(channel, name, end, "")
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return Health("unreachable", f"{name} {'does not answer in time' if late else 'cannot be reached'}")
    reason = reasons.get(REASON_KEY, b"").decode(errors="replace")
    return Health("not_serving", reason or f"{name} is not ready")
