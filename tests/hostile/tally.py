"""What a run of the fuzz tests tried and what came of it: results/trust/fuzz.json, two figures and a page."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from grpc import StatusCode

from dekag.evaluation.registry import record
from dekag.evaluation.reports.claims import CLAIMS
from dekag.evaluation.reports.robustness import REPORT
from tests.runs import write_run

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


@dataclass(frozen=True)
class Kind:
    """A kind of hostile inputs that is recorded by itself.

    Attributes:
        command: records it.
        name: of the file in results/trust/.
        tried, faults: figures of the inputs that were tried, and of those that were answered with a 5xx.
        answered_only: whether only inputs to a service count as tried.
    """

    command: str
    name: str
    tried: str
    faults: str
    answered_only: bool = False


INPUTS = Kind("make test-fuzz", "fuzz", "fuzz_inputs", "fuzz_5xx")
PICTURES = Kind(
    "make test-pictures",
    "pictures",
    "hostile_pictures_tried",
    "hostile_pictures_5xx",
    answered_only=True,
)


class Tally:
    """Counts inputs by what they were sent to and what came of them.

    Attributes:
        asked: inputs of the kind that a client may send, which were answered.
        faults: answers with a 5xx, or with the gRPC status of one, to what a client may send.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seen: dict[str, Counter[str]] = defaultdict(Counter)
        self.asked = self.faults = 0

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

    def write(self, kind: Kind) -> None:
        """Writes the counts, two figures, and the pages that show them."""
        content: dict[str, Any] = {
            "seconds": round(time.monotonic() - self._start),
            "inputs": self.inputs,
            "answered": self.asked,
            "faults": self.faults,
            "targets": {
                target: {"inputs": counts.total(), "outcomes": dict(sorted(counts.items()))}
                for target, counts in sorted(self._seen.items())
            },
        }
        write_run(kind.name, kind.command, content)
        tried = self.asked if kind.answered_only else self.inputs
        record(kind.tried, tried, "inputs", command=kind.command, count=tried)
        record(kind.faults, self.faults, "inputs", command=kind.command, count=self.asked)
        CLAIMS.write()
        REPORT.write()
