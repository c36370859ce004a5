"""Maps errors: DekagError <-> gRPC status, DekagError -> HTTP status.

An error is sent as its gRPC status plus a JSON object in the trailing metadata (``ERROR_KEY``), from which
the next hop rebuilds the same exception: class, message, field and allowed values survive every hop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc
from grpc import StatusCode

from dekag.documents import parse_json
from dekag.errors import (
    ConflictError,
    DeadlineError,
    DekagError,
    ExhaustedError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
    NumericalError,
    UnavailableError,
)

ERROR_KEY = "dekag-error-bin"


class SettingError(DekagError):
    """A setting is invalid on this machine; the message says how to fix it."""


class CallerError(DekagError):
    """A service called what its certificate does not allow; a fault of the deployment, not of a request."""


class InternalError(DekagError):
    """An unexpected error; the message names the request id, the service's log has the details."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; see the log for request id {request_id}")


STATUS: Mapping[type[DekagError], tuple[StatusCode, int]] = {
    InvalidInputError: (StatusCode.INVALID_ARGUMENT, 422),
    NotFoundError: (StatusCode.NOT_FOUND, 404),
    MismatchError: (StatusCode.FAILED_PRECONDITION, 409),
    ConflictError: (StatusCode.ABORTED, 409),
    UnavailableError: (StatusCode.UNAVAILABLE, 503),
    CallerError: (StatusCode.PERMISSION_DENIED, 503),
    DeadlineError: (StatusCode.DEADLINE_EXCEEDED, 504),
    ExhaustedError: (StatusCode.RESOURCE_EXHAUSTED, 429),
    InternalError: (StatusCode.INTERNAL, 500),
    NumericalError: (StatusCode.INTERNAL, 500),  # not caused by the request, and safe to show
}
_CLASSES = {kind.__name__: kind for kind in STATUS}
_MESSAGES = {
    StatusCode.UNAVAILABLE: "cannot be reached",
    StatusCode.CANCELLED: "stopped before it answered",
    StatusCode.DEADLINE_EXCEEDED: "did not answer within the time allowed",
    StatusCode.RESOURCE_EXHAUSTED: "rejected the request: it is too large, or there are too many",
}

_LATEST_S = 86_400  # Retry-After that is believed


def public(error: BaseException, request_id: str) -> DekagError:
    """The error to show to a client: ``error`` itself if it is in the table, else an InternalError."""
    if isinstance(error, DekagError) and _kind(error) is not InternalError:
        return error
    if isinstance(error, TimeoutError):
        return DeadlineError("the time allowed is over")
    return error if isinstance(error, InternalError) else InternalError(request_id)


def _kind(error: DekagError) -> type[DekagError]:
    return next((kind for kind in type(error).__mro__ if kind in STATUS), InternalError)


def http_status(error: DekagError) -> int:
    """HTTP status code of an error that ``public`` returned."""
    return STATUS[_kind(error)][1]


def grpc_status(error: DekagError) -> StatusCode:
    """gRPC status code of an error that ``public`` returned."""
    return STATUS[_kind(error)][0]


def to_metadata(error: DekagError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata from which ``from_rpc`` rebuilds the error."""
    details = {"type": _kind(error).__name__, "message": str(error)[:600]}
    if isinstance(error, InvalidInputError):
        details |= {"field": error.field[:200], "allowed": error.allowed[:500]}
    if isinstance(error, ExhaustedError) and error.retry_after_s is not None:
        details["retry_after_s"] = str(error.retry_after_s)
    return ((ERROR_KEY, json.dumps(details).encode()),)


def from_rpc(error: grpc.RpcError, peer: str, request_id: str) -> DekagError:
    """The DekagError that ``peer`` (name of a service) raised, or one for a failed call to it."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return InternalError(request_id)
    details = next((v for k, v in error.trailing_metadata() or () if k == ERROR_KEY), None)
    if details is not None:
        try:
            return _rebuild(parse_json(details, ERROR_KEY))
        except (ValueError, KeyError, TypeError):
            return InternalError(request_id)
    code = StatusCode.UNAVAILABLE if error.code() is StatusCode.CANCELLED else error.code()
    kind = next((kind for kind, (status, _) in STATUS.items() if status is code), InternalError)
    if kind in (UnavailableError, DeadlineError, ExhaustedError):
        return kind(f"the {peer} service {_MESSAGES[error.code()]}")
    return InternalError(request_id)


def _rebuild(details: dict[str, str]) -> DekagError:
    kind, message = _CLASSES[details["type"]], details["message"]
    if kind is InvalidInputError:
        error: DekagError = InvalidInputError(details["field"], details["allowed"], "")
    elif kind is ExhaustedError and "retry_after_s" in details:
        error = ExhaustedError("", retry_after_s=min(max(int(details["retry_after_s"]), 1), _LATEST_S))
    else:
        error = kind("")
    error.args = (message,)
    return error
