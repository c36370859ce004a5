"""What a run of the fuzz tests tried and what came of it: results/trust/fuzz.json and two figures."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpc import StatusCode

from dekag.experiments.book import write_claims_page
from dekag.experiments.headline import RESULTS, current_commit, record
from dekag.sweeps.engine import machine

COMMAND = "make test-fuzz"
SERVER_FAULTS = frozenset(
    {
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
        StatusCode.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.DATA_LOSS,
    }
)
"""What the gateway would answer with a 5xx."""


class Tally:
    """Counts inputs by what they were sent to and what came of them.

    Attributes:
        faults: answers with a 5xx, or with the gRPC status of one, to what a client may send.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seen: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults = 0

    @property
    def inputs(self) -> int:
        """All that were tried."""
        return sum(counts.total() for counts in self._seen.values())

    def note(self, target: str, outcome: str, times: int = 1) -> None:
        """An input came to ``target`` and ended so."""
        self._seen[target][outcome] += times

    def answered(self, target: str, answer: StatusCode | int) -> None:
        """A client's input was answered with that status of gRPC or HTTP."""
        self.note(target, answer.name if isinstance(answer, StatusCode) else str(answer))
        self.faults += answer in SERVER_FAULTS if isinstance(answer, StatusCode) else answer >= 500

    def write(self, results: Path = RESULTS) -> None:
        """Writes the counts, the figures ``fuzz_inputs`` and ``fuzz_5xx`` and the page of claims."""
        content: dict[str, Any] = {
            "schema": 1,
            "command": COMMAND,
            "commit": current_commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "seconds": round(time.monotonic() - self._start),
            "inputs": self.inputs,
            "targets": {
                target: {"inputs": counts.total(), "outcomes": dict(sorted(counts.items()))}
                for target, counts in sorted(self._seen.items())
            },
        }
        path = results / "trust" / "fuzz.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        for key, value in {"fuzz_inputs": self.inputs, "fuzz_5xx": self.faults}.items():
            record(key, value, "inputs", command=COMMAND, count=self.inputs, results=results)
        write_claims_page(results=results)
