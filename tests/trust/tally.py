"""What the attacks achieved: results/trust/attacks.json, two figures and a page."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dekag.evaluation.registry import record
from dekag.evaluation.reports.claims import CLAIMS
from dekag.evaluation.reports.robustness import REPORT
from tests.runs import write_run
from tests.trust.attack import Attack

COMMAND = "make test-trust"


class Tally:
    """The attacks that were tried, with what each did."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._slowest_health_s = 0.0

    def note(self, attack: Attack, problems: Sequence[str], slowest_health_s: float, tries: int) -> None:
        """An attack was tried so many times; it has worked if there were problems the last time."""
        self._slowest_health_s = max(self._slowest_health_s, slowest_health_s)
        self._kinds[attack.kind].append(
            {
                "attack": attack.name,
                "slowest_health_s": round(slowest_health_s, 3),
                "problems": list(problems),
                "tries": tries,
            }
        )

    def write(self) -> None:
        """Writes what was tried and achieved, two figures, and the pages that show them."""
        attacks = [each for kind in self._kinds.values() for each in kind]
        worked = sum(bool(each["problems"]) for each in attacks)
        content = {
            "load_average": round(os.getloadavg()[2], 1),
            "seconds": round(time.monotonic() - self._start),
            "tried": len(attacks),
            "worked": worked,
            "slowest_health_s": round(self._slowest_health_s, 3),
            "kinds": dict(sorted(self._kinds.items())),
        }
        write_run("attacks", COMMAND, content)
        record("attacks_tried", len(attacks), "attacks", command=COMMAND, count=len(attacks))
        record("attacks_failed", worked, "attacks", command=COMMAND, count=len(attacks))
        CLAIMS.write()
        REPORT.write()
