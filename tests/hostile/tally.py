"""What a run of the fuzz tests tried and what came of it: results/trust/fuzz.json, two figures and a page."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

from grpc import StatusCode

from dekag.evaluation.registry import RESULTS, current_commit, record
from dekag.evaluation.reports.claims import CLAIMS
from dekag.evaluation.reports.robustness import REPORT
from dekag.evaluation.runner import machine

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
        asked: inputs of the kind that a client may send, which were answered.
        faults: answers with a 5xx, or with the gRPC status of one, to what a client may send.
        pictures, picture_faults: the same of hostile pictures alone, which are also counted above.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seen: dict[str, Counter[str]] = defaultdict(Counter)
        self.asked = self.faults = self.pictures = self.picture_faults = 0

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
        self.asked += 1
        self.faults += answer in SERVER_FAULTS if isinstance(answer, StatusCode) else answer >= 500

    def picture_answered(self, target: str, status: int) -> None:
        """A hostile picture was answered with that status of HTTP."""
        self.answered(target, status)
        self.pictures += 1
        self.picture_faults += status >= 500

    def write(self) -> None:
        """Writes the counts, the figures of hostile inputs and pictures, and the pages that show them."""
        content: dict[str, Any] = {
            "schema": 1,
            "command": COMMAND,
            "commit": current_commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "seconds": round(time.monotonic() - self._start),
            "inputs": self.inputs,
            "answered": self.asked,
            "faults": self.faults,
            "targets": {
                target: {"inputs": counts.total(), "outcomes": dict(sorted(counts.items()))}
                for target, counts in sorted(self._seen.items())
            },
        }
        path = RESULTS / "trust" / "fuzz.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        record("fuzz_inputs", self.inputs, "inputs", command=COMMAND, count=self.inputs)
        record("fuzz_5xx", self.faults, "inputs", command=COMMAND, count=self.asked)
        record("hostile_pictures_tried", self.pictures, "inputs", command=COMMAND, count=self.pictures)
        record("hostile_pictures_5xx", self.picture_faults, "inputs", command=COMMAND, count=self.pictures)
        record("hostile_pictures_tried", self.pictures, "inputs", command=COMMAND, count=self.pictures)
        record("hostile_pictures_5xx", self.picture_faults, "inputs", command=COMMAND, count=self.pictures)
        CLAIMS.write()
        REPORT.write()
