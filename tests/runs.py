"""What long runs of tests record: results/trust/NAME.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dekag.evaluation.registry import RESULTS, current_commit
from dekag.evaluation.runner import machine


def header(command: str) -> dict[str, Any]:
    """Where, when and by which command a run was made."""
    return {
        "schema": 1,
        "command": command,
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def write_run(name: str, command: str, content: Mapping[str, Any]) -> None:
    """Writes the file of a run: its header, then ``content``."""
    path = RESULTS / "trust" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header(command), **content}, indent=1) + "\n")
