"""Asks a service over gRPC how it is, and why it is not well."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

REASON_KEY = "dekag-reason-bin"
"""Trailing metadata of an answer: why the service is not well, in UTF-8."""


class Health(NamedTuple):
    """How a service is: "serving", "not_serving" or "unreachable", and the reason; empty if it serves."""

    state: str
    reason: str = ""


async def ask(channel: aio.Channel, peer: str, timeout_s: float, part: str = "") -> Health:
    """How the service at the end of a channel is.

    Args:
        channel: to it.
        peer: what to call it in the reason.
        timeout_s: longest wait, s.
        part: of it, such as "distillation" of the cloud; empty for the whole.
    """
    check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
    call = check(health_pb2.HealthCheckRequest(service=part), timeout=timeout_s)
    try:
        answer = await call
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return Health("serving")
        reasons = dict(await call.trailing_metadata() or ())
    except grpc.RpcError as error:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return Health("unreachable", f"{peer} {'does not answer in time' if late else 'cannot be reached'}")
    reason = reasons.get(REASON_KEY, b"").decode(errors="replace")
    return Health("not_serving", reason or f"{peer} is not ready")
