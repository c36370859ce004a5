"""What the suite found: results/trust/faults.json, two figures of headline.json and a page of docs/."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.reports.claims import CLAIMS
from dekag.evaluation.reports.robustness import REPORT
from tests.faults.stack import DEADLINE_S
from tests.runs import header

COMMAND = "make test-faults"


def write_results(rows: Sequence[Mapping[str, Any]], every_s: float, planned: int) -> None:
    """Writes all of it.

    Args:
        rows: one for each fault, as ``test_chain_survives_the_fault`` makes them.
        every_s: between two requests of the load, s.
        planned: how many faults there are.
    """
    content = {
        **header(COMMAND),
        "load_average": os.getloadavg()[2],
        "planned": planned,
        "deadline_s": DEADLINE_S,
        "every_s": round(every_s, 2),
        "rows": [],
    }
    path = RESULTS / "trust" / "faults.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    path.write_text(json.dumps(content, indent=1).replace('"rows": []', f'"rows": [\n{lines}\n ]') + "\n")
    requests = sum(row.get("requests", 0) for row in rows)
    lost = sum(row.get("lost", 0) for row in rows)
    record("faults_tried", len(rows), "faults", command=COMMAND, count=len(rows))
    record("faults_lost_requests", lost, "requests", command=COMMAND, count=requests)
    CLAIMS.write()
    REPORT.write()
