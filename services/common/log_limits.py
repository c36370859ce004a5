"""Bounds what clients can make a service write to its log: the size of each line, and repeated lines.

Both are structlog processors. Nothing is dropped without a word: a shortened value ends with its length, and
the next line of a kind that was dropped says how many were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from structlog.typing import EventDict

MAX_FIELD_CHARS, MAX_TRACEBACK_CHARS = 500, 8_000
LINES, PER_S = 20, 10.0
"""Lines of one kind that are written in this many seconds."""
_KINDS = 1_000  # are told apart; events may contain texts of errors
_SERVED = {"OK", "CANCELLED"}


def bounded(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Shortens each field to MAX_FIELD_CHARS, of a traceback the beginning."""
    return {name: _short(name, value) for name, value in event.items()}


def _short(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if name == "exception":
        text = str(value)
        cut = len(text) - MAX_TRACEBACK_CHARS
        return text if cut <= 0 else f"({cut} more characters) ...{text[cut:]}"
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= MAX_FIELD_CHARS:
        return value
    return f"{text[:MAX_FIELD_CHARS]}... ({len(text)} characters)"


@dataclass
class _Count:
    """Lines of one kind since the start of the window, s, and those dropped since one was written."""

    began: float
    lines: int = 0
    dropped: int = 0


class RepeatLimit:
    """Drops a line if LINES of its kind were written within PER_S; lines of served requests always pass.

    Lines are of one kind if they have the same event and status.

    Args:
        clock: seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[tuple[str, str], _Count] = {}

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        """The line, with `dropped`, the number of lines of its kind that were dropped before it."""
        status = event.get("status", "")
        if _is_served(status):
            return event
        kind, now = (str(event.get("event", ""))[:MAX_FIELD_CHARS], str(status)), self._clock()
        if kind not in self._counts and len(self._counts) >= _KINDS:
            self._counts.clear()
        count = self._counts.setdefault(kind, _Count(now))
        if now - count.began >= PER_S:
            count.began, count.lines = now, 0
        count.lines += 1
        if count.lines > LINES:
            count.dropped += 1
            raise structlog.DropEvent
        if count.dropped:
            event["dropped"], count.dropped = count.dropped, 0
        return event


def _is_served(status: object) -> bool:
    return 100 <= status < 400 if isinstance(status, int) else status in _SERVED
