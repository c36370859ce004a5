"""docs/metrics.md from results/metrics/: each metric beside its reference implementation."""

from __future__ import annotations

from pathlib import Path

from dekag.evaluation.pages import Lines, Report, figures_table, read_rows, table
from dekag.evaluation.studies.metrics import COMMAND, FOLDER, TOLERANCE


def checks(results: Path) -> Lines:
    """Metrics, references, and the largest difference between them."""
    body = []
    for row in read_rows(results / FOLDER / "checks.jsonl"):
        difference = row["difference"]
        if difference is None:
            shown, verdict = "", f"not checked: {row['why_not']}"
        else:
            shown, verdict = f"{difference:.1e}", "equal" if difference <= TOLERANCE else "differs"
        body.append([row["metric"], row["reference"], shown, verdict])
    return table(["metric", "reference", "largest difference", ""], body, words=(0, 1, 3))


REPORT = Report(
    page="metrics.md",
    command=COMMAND,
    tables={"figures": figures_table(["metrics_checked"]), "checks": checks},
)
