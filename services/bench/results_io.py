"""results/load/bench-NAME.json: what a benchmark measured, where, and with which settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dekag.documents import read_json
from dekag.evaluation.pages import NotMeasuredError, Row
from dekag.evaluation.registry import RESULTS, current_commit
from dekag.evaluation.runner import machine

_SCHEMA = 1


def path_of(name: str, results: Path = RESULTS, folder: str = "load") -> Path:
    """Where the benchmark of that name writes."""
    return results / folder / f"bench-{name}.json"


def write_bench(
    name: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    results: Path = RESULTS,
    *,
    folder: str = "load",
) -> None:
    """Write the tidy rows of `dekag bench NAME`, in place of what an earlier run wrote."""
    content: dict[str, Any] = {
        "schema": _SCHEMA,
        "command": f"dekag bench {name}",
        "config": dict(config),
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "rows": [],
    }
    path = path_of(name, results, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    lines = ",\n".join("  " + json.dumps(row) for row in rounded)  # a row a line, to be read and compared
    text = json.dumps(content, indent=1)
    path.write_text(text.replace('"rows": []', f'"rows": [\n{lines}\n ]') + "\n")


def read_bench(name: str, results: Path = RESULTS, folder: str = "load") -> dict[str, Any]:
    """What `write_bench` wrote.

    Raises:
        NotMeasuredError: the benchmark has not been run.
    """
    path = path_of(name, results, folder)
    if not path.exists():
        raise NotMeasuredError(f"dekag bench {name}")
    content: dict[str, Any] = read_json(path)
    return content


def _rounded(value: Any) -> Any:
    """Floats with the digits that mean something."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
