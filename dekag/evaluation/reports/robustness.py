"""docs/results-trust.md from results/trust/: what was broken, fuzzed or attacked, and the outcome."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, Report, Row, read_measured, table

RECOVERY_S = 10.0


def run_of(results: Path, name: str) -> Row:
    """What a run wrote: "faults", "fuzz", "pictures", "kills", "week" or "attacks"."""
    found: Row = read_measured(results / "trust" / f"{name}.json")
    return found


def values(results: Path) -> Mapping[str, str]:
    """The numbers of the page's text, of what was run."""
    found: dict[str, str] = {}
    for name, of in _VALUES.items():
        if (results / "trust" / f"{name}.json").exists():
            found |= of(run_of(results, name))
    if not found:
        raise FileNotFoundError(results / "trust")
    return found


def _fault_values(found: Row) -> dict[str, str]:
    rows = found["rows"]
    measured = [row for row in rows if "recovery_s" in row]
    return {
        "faults": str(len(rows)),
        "planned": str(found.get("planned", len(rows))),
        "singles": str(sum(not row["pair"] for row in rows)),
        "pairs": str(sum(row["pair"] for row in rows)),
        "every_s": f"{found['every_s']:.1f} s",
        "deadline_s": f"{found['deadline_s']:g} s",
        "lost": str(sum(row.get("lost", 0) for row in rows)),
        "requests": str(sum(row.get("requests", 0) for row in rows)),
        "median_recovery_s": f"{statistics.median(row['recovery_s'] for row in measured):.1f} s",
        "late": str(sum(row["recovery_s"] > RECOVERY_S for row in measured)),
        "recovered": str(len(measured)),
        "right": str(sum(not row["wrong"] for row in rows)),
        "cpu": found["machine"].get("cpu", "unknown CPU"),
        "load_average": f"{found['load_average']:.1f}",
        "faults_commit": found["commit"],
        "faults_date": found["date"],
    }


def _fuzz_values(found: Row) -> dict[str, str]:
    return {
        "inputs": f"{found['inputs']:,}",
        "answered": f"{found['answered']:,}",
        "faults_5xx": str(found["faults"]),
        "minutes": f"{found['seconds'] / 60:.0f} min",
        "fuzz_commit": found["commit"],
        "fuzz_date": found["date"],
    }


def _picture_values(found: Row) -> dict[str, str]:
    return {
        "pictures": f"{found['answered']:,}",
        "pictures_5xx": str(found["faults"]),
        "pictures_commit": found["commit"],
        "pictures_date": found["date"],
    }


_BAD = ("residue", "half_visible", "lost", "wrong")


def _kill_values(found: Row) -> dict[str, str]:
    kinds = found["kinds"].values()
    return {
        "kills": f"{sum(kind['kills'] for kind in kinds):,}",
        "kills_bad": str(sum(len(kind[name]) for kind in kinds for name in _BAD)),
        "kills_leftovers": f"{sum(kind['leftovers'] for kind in kinds):,}",
        "kills_minutes": f"{found['seconds'] / 60:.0f} min",
        "kills_commit": found["commit"],
        "kills_date": found["date"],
    }


def kills_table(results: Path) -> Lines:
    """What was found after the kills, by what the processes did."""
    lines = [
        [
            kind,
            f"{found['kills']:,}",
            f"{found['leftovers']:,}",
            f"{found['reads']:,}",
            *(str(len(found[name])) for name in _BAD),
        ]
        for kind, found in run_of(results, "kills")["kinds"].items()
    ]
    header = ["killed while", "kills", "unfinished folders", "versions read"]
    return table([*header, "residue", "half visible", "lost", "wrong"], lines, words=(0,))


def _week_values(found: Row) -> dict[str, str]:
    counts = found["counts"]
    jobs = [counts.get(f"jobs, {status}", 0) for status in ("finished", "cancelled")]
    return {
        "week_minutes": f"{found['seconds'] / 60:.0f} min",
        "week_speed": f"{found['speed']:,.0f}",
        "week_images": f"{counts['images']:,}",
        "week_jobs": f"{sum(jobs):,}",
        "week_cancelled": f"{jobs[1]:,}",
        "week_versions": f"{counts['versions']:,}",
        "week_adapters": f"{counts['adapters']:,}",
        "week_keys": f"{counts['keys']:,}",
        "week_refused": f"{counts['refused requests']:,}",
        "week_full": str(len(_full(found))),
        "week_problems": "; ".join(found["problems"]) or "none",
        "week_files": f"{found['growth_percent']['files']:+.1f} %",
        "week_load": f"{found['load_average']:.1f}",
        "week_commit": found["commit"],
        "week_date": found["date"],
    }


def _full(found: Row) -> Lines:
    """Stores that hold more than they may at the end."""
    return [name for name, store in found["stores"].items() if store["end"] > store["quota"]]


def week_table(results: Path) -> Lines:
    """How full each store was at the start, at most and at the end of the week, and its quota."""
    lines = [
        [name, *(f"{store[each]:,g}" for each in ("quota", "start", "most", "end"))]
        for name, store in run_of(results, "week")["stores"].items()
    ]
    return table(["store", "quota", "start", "most", "end"], lines, words=(0,))


def _attack_values(found: Row) -> dict[str, str]:
    return {
        "attacks": str(found["tried"]),
        "attacks_worked": str(found["worked"]),
        "attacks_again": str(sum(each["tries"] > 1 for kind in found["kinds"].values() for each in kind)),
        "attacks_slowest_health_s": f"{found['slowest_health_s']:.2f} s",
        "attacks_load": f"{found['load_average']:.1f}",
        "attacks_commit": found["commit"],
        "attacks_date": found["date"],
    }


def faults_table(results: Path) -> Lines:
    """Every fault."""
    lines = []
    for row in run_of(results, "faults")["rows"]:
        if "requests" not in row:
            lines.append([row["fault"], "not measured", *[""] * 6])
            continue
        problems = ", ".join(f"{count} of {status}" for status, count in sorted(row["problems"].items()))
        lines.append(
            [
                row["fault"],
                f"{row['lasted_s']:.1f}",
                f"{row['recovery_s']:.1f}",
                str(row["requests"]),
                str(row["images"]),
                problems,
                str(row["cut"]),
                str(row["lost"]),
            ]
        )
    header = ["fault", "lasted, s", "recovered, s", "requests", "images", "errors by status", "cut", "lost"]
    return table(header, lines, words=(0, 5))


def wrong_table(results: Path) -> Lines:
    """Faults that did not end as they must."""
    wrong = [
        [row["fault"], _shown(row["wrong"])] for row in run_of(results, "faults")["rows"] if row["wrong"]
    ]
    return table(["fault", "what went wrong"], wrong, words=(0, 1)) if wrong else ["None."]


def _shown(wrong: Sequence[str]) -> str:
    kinds = dict.fromkeys(wrong)
    return "; ".join(
        f"{text} ({wrong.count(text)} times)" if wrong.count(text) > 1 else text for text in kinds
    )


def fuzz_table(results: Path) -> Lines:
    """Outcomes by target."""
    return _outcomes(run_of(results, "fuzz"))


def pictures_table(results: Path) -> Lines:
    """Outcomes of hostile pictures by target."""
    return _outcomes(run_of(results, "pictures"))


def attacks_table(results: Path) -> Lines:
    """Attacks by kind."""
    lines = []
    for kind, tried in run_of(results, "attacks")["kinds"].items():
        worked = sum(bool(each["problems"]) for each in tried)
        slowest_s = max(each["slowest_health_s"] for each in tried)
        lines.append([kind, str(len(tried)), str(worked), f"{slowest_s:.2f}"])
    return table(["kind", "tried", "worked", "slowest health check, s"], lines, words=(0,))


def worked_table(results: Path) -> Lines:
    """Attacks that worked, and what they did."""
    worked = [
        [f"{kind}: {each['attack']}", _shown(each["problems"])]
        for kind, tried in run_of(results, "attacks")["kinds"].items()
        for each in tried
        if each["problems"]
    ]
    return table(["attack", "what it did"], worked, words=(0, 1)) if worked else ["None."]


def _outcomes(found: Row) -> Lines:
    lines = []
    for target, seen in found["targets"].items():
        outcomes = ", ".join(f"{name} {count:,}" for name, count in seen["outcomes"].items())
        lines.append([target, f"{seen['inputs']:,}", outcomes])
    return table(["target", "inputs", "outcomes"], lines, words=(0, 2))


def recovery_plot(results: Path) -> Any:
    """Recovery times, sorted, with the slowest named."""
    rows = sorted(
        (row for row in run_of(results, "faults")["rows"] if "recovery_s" in row),
        key=lambda row: row["recovery_s"],
    )
    figure, axes = plots.panels(height_in=2.9)
    (axis,) = axes[0]
    times = [row["recovery_s"] for row in rows]
    axis.plot(range(1, len(rows) + 1), times, "o", color=plots.OURS, markersize=4)
    axis.axhline(RECOVERY_S, color=plots.SECOND, linestyle="--", linewidth=1.2)
    axis.annotate(
        "target: 10 s", (1, RECOVERY_S), xytext=(0, 4), textcoords="offset points", color=plots.SECOND
    )
    for place, row in list(enumerate(rows, 1))[-3:]:
        axis.annotate(
            row["fault"], (place, row["recovery_s"]), xytext=(-7, 0), textcoords="offset points",
            ha="right", va="center", fontsize=9.5,
        )  # fmt: skip
    axis.set_ylim(0, max(RECOVERY_S * 1.15, *times))
    axis.set_xlabel("faults, sorted by recovery time")
    axis.set_ylabel("recovery, s")
    return figure


_VALUES = {
    "faults": _fault_values,
    "fuzz": _fuzz_values,
    "pictures": _picture_values,
    "kills": _kill_values,
    "week": _week_values,
    "attacks": _attack_values,
}

REPORT = Report(
    page="results-trust.md",
    command="make test-faults test-fuzz test-trust",
    values=values,
    partial=True,
    tables={
        "faults": faults_table,
        "wrong": wrong_table,
        "fuzz": fuzz_table,
        "pictures": pictures_table,
        "kills": kills_table,
        "week": week_table,
        "attacks": attacks_table,
        "worked": worked_table,
    },
    plots={"recovery": recovery_plot},
)
