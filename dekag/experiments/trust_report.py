"""docs/results-trust.md, from results/trust/ alone: what was broken or fuzzed, and what clients saw of it."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dekag.documents import read_json
from dekag.experiments.headline import RESULTS

PAGE = Path("docs/results-trust.md")
RECOVERY_S = 10.0
NOT_RUN = "It has not been run yet."
Lines = list[str]
Row = Mapping[str, Any]


def write_trust_page(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page; what was not measured is said to be missing."""
    lines = [
        "# Trust: what breaks, and what a client sees of it",
        "",
        "Written by `make test-faults` and `make test-fuzz` from `results/trust/`; do not edit.",
        "",
        "## Faults",
        "",
        *_section(results / "trust" / "faults.json", _faults),
        "",
        "## Hostile input",
        "",
        *_section(results / "trust" / "fuzz.json", _fuzz),
        "",
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines))


def _section(path: Path, text: Any) -> Lines:
    return list(text(read_json(path))) if path.exists() else [NOT_RUN]


def _faults(found: Row) -> Lines:
    rows: Sequence[Row] = found["rows"]
    measured = [row for row in rows if "recovery_s" in row]
    singles, pairs = (sum(row["pair"] is pair for row in rows) for pair in (False, True))
    late = [row for row in measured if row["recovery_s"] > RECOVERY_S]
    wrong = [row for row in rows if row["wrong"]]
    requests = sum(row.get("requests", 0) for row in rows)
    lost = sum(row.get("lost", 0) for row in rows)
    median_s = statistics.median(row["recovery_s"] for row in measured)
    planned = found.get("planned", len(rows))
    late_of = f"{len(late)} of {len(measured)}"
    lines = [
        *_wrapped(
            f"`docker-compose.yml` was broken in {len(rows)} of {planned} planned ways, {singles} one at a "
            f"time and {pairs} in pairs, while a client asked for an image each {found['every_s']:.1f} s, of "
            "the three deliveries in turn; every fourth repeats an earlier one. The gateway's deadline was "
            f"{found['deadline_s']:g} s."
        ),
        "",
        *_wrapped(
            f"- **Lost requests: {lost}** of {requests} that a fault could touch. Lost is a request that got "
            "neither an image nor a clear error by a second after the deadline, or whose connection failed "
            "though nothing was done to the gateway."
        ),
        *_wrapped(
            f"- **Recovery**: {median_s:.1f} s at the median from the fault's end until all deliveries and "
            f"the list of jobs worked again; {late_of} took longer than {RECOVERY_S:g} s."
        ),
        *_wrapped(
            f"- {len(rows) - len(wrong)} of {len(rows)} went as they must in every respect: no knowledge "
            "lost, no second version of one distillation, and no error where the fault leaves a delivery all "
            "that it needs."
        ),
        "",
        *_wrapped(
            "A killed service counts as back when the engine has started its container again; what remains "
            "until images come is mostly the time it takes to load its models, so it depends on the machine. "
            "*cut* are connections that failed while the gateway itself was down: its clients see that, and "
            "nothing is lost silently."
        ),
        "",
        "| fault | lasted, s | recovered, s | requests | images | errors by status | cut | lost |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
        *(_row(row) for row in rows),
    ]
    if wrong:
        lines += ["", "### What did not go as it must", ""]
        lines += [f"- {row['fault']}: {_said(row['wrong'])}" for row in wrong]
    lines += [
        "",
        f"{found['machine'].get('cpu', 'unknown CPU')}, load average {found['load_average']:.1f} in the end;",
        f"commit {found['commit']}, {found['date']}. Details: `results/trust/faults.json`.",
    ]
    return lines


def _wrapped(text: str) -> Lines:
    """A paragraph, or an item of a list, in lines as the other pages have them."""
    return textwrap.wrap(text, 120, subsequent_indent="  " if text.startswith("- ") else "")


def _row(row: Row) -> str:
    if "requests" not in row:
        return f"| {row['fault']} | not measured | | | | | | |"
    problems = ", ".join(f"{count} of {status}" for status, count in sorted(row["problems"].items()))
    cells = [
        row["fault"], f"{row['lasted_s']:.1f}", f"{row['recovery_s']:.1f}", row["requests"], row["images"],
        problems, row["cut"], row["lost"],
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _said(wrong: Sequence[str]) -> str:
    kinds = dict.fromkeys(wrong)
    return "; ".join(
        f"{said} ({wrong.count(said)} times)" if wrong.count(said) > 1 else said for said in kinds
    )


def _fuzz(found: Row) -> Lines:
    lines = [
        *_wrapped(
            f"`{found['command']}` sent {found['inputs']:,} generated inputs to services with tiny untrained "
            "models, a real Redis and real gRPC and HTTP: raw bytes and messages with anything in "
            "them to every RPC, requests that fit the OpenAPI document and requests that break it to every "
            "operation of the gateway, anything under any key of Redis, peers that answer with anything, and "
            "damaged artifacts and pictures, some of them guided by coverage. Every run draws others."
        ),
        "",
        *_wrapped(
            f"- **Answers with a 5xx, or with the gRPC status of one, to what a client may send: "
            f"{found['faults']}** of {found['answered']:,} that were answered."
        ),
        *_wrapped(
            "- No call ran into its deadline of minutes, no answer told of a traceback or a path inside the "
            "services, every refusal was a problem document, and a service with a broken peer never blamed "
            "its client: the run fails otherwise, and then writes nothing."
        ),
        "",
        *_wrapped(
            "In a row such as *cloud of edge* an edge was asked whose cloud answered with anything; there "
            "INTERNAL and 500 are as it must be."
        ),
        "",
        "| target | inputs | outcomes |",
        "|---|---:|---|",
    ]
    for target, seen in found["targets"].items():
        outcomes = ", ".join(f"{name} {count:,}" for name, count in seen["outcomes"].items())
        lines.append(f"| {target} | {seen['inputs']:,} | {outcomes} |")
    return [
        *lines,
        "",
        f"{found['seconds'] / 60:.0f} min; commit {found['commit']}, {found['date']}.",
        "Details: `results/trust/fuzz.json`.",
    ]
