"""results/headline.json: one object for each figure, written by the commands that measure them."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dekag.documents import read_json

RESULTS = Path("results")


def mean_ci95(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean of independent `values` and its 95 % confidence interval (normal approximation).

    The interval goes no further than the values do, so that it stays within what the quantity can be: a share
    never comes out above 1, a time never below 0. None of fewer than two values, which tell nothing of it.
    """
    count = len(values)
    mean = min(max(math.fsum(values) / count, min(values)), max(values))  # whatever rounding does
    if count < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = 1.96 * math.sqrt(variance / count)
    return mean, [max(mean - half, min(values)), min(mean + half, max(values))]


def current_commit() -> str:
    """Short hash of the checked-out commit, with "+" when files differ from it; "unknown" outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "dekag", "services")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(
    key: str,
    value: float,
    unit: str,
    *,
    command: str,
    count: int,
    ci95: list[float] | None = None,
    results: Path = RESULTS,
) -> None:
    """Write figure `key` into headline.json, replacing what an earlier run wrote."""
    path = results / "headline.json"
    figures: dict[str, Any] = read_json(path) if path.exists() else {}
    figures[key] = {
        "value": round(value, 4),
        "unit": unit,
        "ci95": None if ci95 is None else [round(limit, 4) for limit in ci95],
        "n": count,
        "command": command,
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
