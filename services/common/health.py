"""Queries the health of a service over gRPC, with the reason if it is unhealthy."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

REASON_KEY = "dekag-reason-bin"
"""Trailing metadata of a response: why the service is unhealthy, in UTF-8."""


class Health(NamedTuple):
    """State of a service, "serving", "not_serving" or "unreachable", and the reason if it is not serving."""

    state: str
    reason: str = ""


async def check_health(channel: aio.Channel, peer: str, timeout_s: float, part: str = "") -> Health:
    """Queries the health of a service.

    Args:
        channel: channel to the service.
        peer: name of the service in the reason.
        timeout_s: longest wait, s.
        part: part of the service, such as "distillation" of the cloud; empty for the whole.
    """
    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
    call = check(health_pb2.HealthCheckRequest(service=part), timeout=timeout_s)
    try:
        response = await call
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return Health("serving")
        reasons = dict(await call.trailing_metadata() or ())
    except grpc.RpcError as error:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return Health("unreachable", f"{peer} {'does not answer in time' if late else 'cannot be reached'}")
    reason = reasons.get(REASON_KEY, b"").decode(errors="replace")
    return Health("not_serving", reason or f"{peer} is not ready")
