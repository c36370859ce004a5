"""The context of a request: its id, its deadline, and the log lines that carry them."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from contextvars import ContextVar

import structlog
from structlog.typing import EventDict

from dekag.api.limits import REQUEST_ID
from dekag.errors import DeadlineError
from services.common.log_limits import RepeatLimit, bounded

REQUEST_ID_KEY = "x-request-id"

request_id: ContextVar[str] = ContextVar("request_id", default="-")
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin_request(given_id: str | bytes | None, seconds: float | None) -> str:
    """Binds id and deadline to the current context; returns the id.

    Args:
        given_id: id from another service, never from a client: 1 to 64 letters, digits, ``.``, ``_`` and
            ``-``, starting with a letter or digit; replaced if it is missing or invalid.
        seconds: time allowed from now, s; None for no deadline.
    """
    text = given_id.decode("ascii", "replace") if isinstance(given_id, bytes) else given_id or ""
    name = text if REQUEST_ID.fullmatch(text) else uuid.uuid4().hex
    request_id.set(name)
    _deadline.set(None if seconds is None else time.monotonic() + seconds)
    return name


def time_remaining() -> float | None:
    """Seconds until the deadline of the current request, None without one; DeadlineError after it."""
    deadline = _deadline.get()
    if deadline is None:
        return None
    if (left := deadline - time.monotonic()) <= 0:
        raise DeadlineError("the request exceeded its deadline")
    return left


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """gRPC metadata with the id of the current request."""
    return ((REQUEST_ID_KEY, request_id.get()),)


def configure_logging(service: str, level: str) -> None:
    """Logs to stderr as JSON lines with time, level, service and request id.

    Warnings of libraries become such lines, too. Lines are bounded in size, and repeated ones in number.
    """

    def add_context(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        if (name := request_id.get()) != "-":
            event["request_id"] = name
        return event

    structlog.configure(
        processors=[
            add_context,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _repeat_limit,
            structlog.processors.format_exc_info,
            bounded,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if _FORWARDING not in root.handlers:
        root.addHandler(_FORWARDING)


class _Forwarding(logging.Handler):
    """Forwards the log lines of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )


_FORWARDING = _Forwarding(logging.WARNING)
_repeat_limit = RepeatLimit()
