"""What a service writes to its log is bounded, whatever clients send."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import structlog

from services.common import log_limits
from services.common.log_limits import (
    LINES,
    MAX_FIELD_CHARS,
    MAX_TRACEBACK_CHARS,
    PER_S,
    RepeatLimit,
    bounded,
)

FLOOD = 5_000


def test_each_field_is_bounded_and_says_what_was_cut() -> None:
    event = {
        "path": "/" * 16_000,
        "topics": ["neon" * 100] * 100,
        "status": 404,
        "exception": "a" * 20_000 + "end",
    }
    short = bounded(None, "info", event)
    assert short["status"] == 404
    assert short["path"].startswith("/" * MAX_FIELD_CHARS)
    assert short["path"].endswith("... (16000 characters)")
    assert len(json.dumps(short)) < MAX_TRACEBACK_CHARS + 3 * MAX_FIELD_CHARS
    assert short["exception"].endswith("end")
    assert bounded(None, "info", {"topics": ["neon"], "event": "x"}) == {"topics": ["neon"], "event": "x"}


def test_repeated_refusals_are_counted_instead_of_written() -> None:
    now = 0.0
    limit = RepeatLimit(lambda: now)

    def written(count: int, **fields: Any) -> list[dict[str, Any]]:
        lines = []
        for _ in range(count):
            try:
                lines.append(dict(limit(None, "info", {"event": "request", **fields})))
            except structlog.DropEvent:
                continue
        return lines

    assert len(written(FLOOD, status=404)) == LINES
    assert len(written(3, status=401)) == 3, "another kind has its own count"
    assert len(written(FLOOD, status=200)) == FLOOD, "served requests are all logged"
    assert len(written(FLOOD, status="OK")) == FLOOD
    now = PER_S
    first, second = written(2, status=404)
    assert first["dropped"] == FLOOD - LINES
    assert "dropped" not in second


def test_the_memory_of_kinds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_limits, "_KINDS", 10)
    limit = RepeatLimit()
    for number in range(1_000):
        limit(None, "info", {"event": str(number)})
        assert len(limit._counts) <= 10


def test_a_flood_of_refusals_and_warnings_of_libraries_writes_little() -> None:
    """In a process of its own, as the configuration of logging is global."""
    program = f"""
import logging, structlog
from services.common.request_context import configure_logging
configure_logging("gateway", "info")
configure_logging("gateway", "info")
log = structlog.get_logger()
for number in range({FLOOD}):
    log.info("request", path="/" + "\\xff" * 16_000 + str(number), status=404)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    try:
        raise ValueError("x" * 16_000)
    except ValueError:
        log.exception("request failed")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(lines) == 3 * LINES
    assert {line["service"] for line in lines} == {"gateway"}
    assert len(done.stderr) < 3 * LINES * (MAX_TRACEBACK_CHARS + 7 * MAX_FIELD_CHARS)
