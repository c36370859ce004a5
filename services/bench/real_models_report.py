"""docs/real-models.md from results/real-models/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dekag.evaluation.pages import Lines, Report, table
from services.bench.full_size import FOLDER
from services.bench.results_io import read_bench

TASKS = {
    "start": "start of all services",
    "semantic": "semantic delivery",
    "conventional": "conventional delivery",
    "distillation": "distillation: 5 images, 2 steps",
}
SHOWN = (
    ("all", 5, 4),
    ("all", 5, 3),
    ("all", 5, 16),
    ("all", 1, 4),
    ("all", 1, 3),
    ("attention", 4, 4),
    ("attention", 4, 3),
    ("attention", 2, 4),
    ("attention", 2, 3),
    ("attention", 1, 4),
    ("attention", 1, 3),
)
"""Layers, rank and bits of the updates in the table; the results have more."""


def values(results: Path) -> Mapping[str, str]:
    """Where and when it was measured."""
    found: dict[str, str] = {}
    for name in ("full-size", "update-size"):
        bench = read_bench(name, results, FOLDER)
        key = name.replace("-", "_")
        found |= {f"{key}_date": bench["date"], f"{key}_cpus": str(bench["machine"]["cpus"])}
    photos = _photos(results)
    found["photos"] = str(photos[0]["n"])
    return found


def needs_table(results: Path) -> Lines:
    """Bytes of the paper's models, as downloaded in float32 and in memory in bfloat16."""
    rows = [row for row in _rows("update-size", results) if "model" in row]
    lines = [[row["model"], *_sizes(row["parameters"])] for row in rows]
    lines.append(["all", *_sizes(sum(row["parameters"] for row in rows))])
    heads = ["part", "million parameters", "download, GB", "memory in bfloat16, GB"]
    return table(heads, lines, words=(0,))


def _sizes(parameters: int) -> list[str]:
    return [f"{parameters / 1e6:,.0f}", f"{4 * parameters / 1e9:.1f}", f"{2 * parameters / 1e9:.1f}"]


def tasks_table(results: Path) -> Lines:
    """Seconds of each task."""
    rows = [row for row in _rows("full-size", results) if "task" in row]
    lines = []
    for row in rows:
        size = f"{row['width']}x{row['height']}" if "width" in row else ""
        uses = f"{row['channel_uses']:,}" if "channel_uses" in row else ""
        lines.append([TASKS[row["task"]], f"{row['seconds']:.0f}", size, uses])
    return table(["task", "seconds", "pixels", "channel uses"], lines, words=(0,))


def stages_table(results: Path) -> Lines:
    """Seconds of each stage of a semantic delivery."""
    (row,) = (row for row in _rows("full-size", results) if row.get("task") == "semantic")
    stages = [(name.removesuffix("_s"), value) for name, value in row.items() if "." in name]
    return table(["stage", "seconds"], [[name, f"{value:.2f}"] for name, value in stages], words=(0,))


def memory_table(results: Path) -> Lines:
    """Largest resident memory of each process."""
    rows = [row for row in _rows("full-size", results) if "process" in row]
    return table(
        ["process", "peak memory, GiB"],
        [[row["process"], f"{row['peak_gib']:.2f}"] for row in rows],
        words=(0,),
    )


def bytes_table(results: Path) -> Lines:
    """Bytes of updates, and how many photographs' files they weigh."""
    photos = {(row["side"], row["format"]): row["mean_bytes"] for row in _photos(results)}
    by = {(r["layers"], r["rank"], r["bits"]): r for r in _rows("update-size", results) if "layers" in r}
    lines = []
    for kind in SHOWN:
        if (row := by.get(kind)) is None:  # results of before there were updates of 3 bits
            continue
        times = [f"{row['bytes'] / photos[side, form]:.0f}" for side, form in photos]
        layers, rank, bits = kind
        lines.append([layers, str(rank), str(bits), f"{row['numbers']:,}", f"{row['bytes']:,}", *times])
    heads = [f"images, {form} {side}" for side, form in photos]
    return table(["layers", "rank", "bits", "numbers", "bytes", *heads], lines, words=(0,))


def photos_table(results: Path) -> Lines:
    """Mean bytes of the photographs' files."""
    lines = [[f"{r['side']}x{r['side']}", r["format"], _interval(r), str(r["n"])] for r in _photos(results)]
    return table(["pixels", "format", "mean bytes", "n"], lines, words=(0, 1))


def _interval(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    return f"{row['mean_bytes']:,.0f} ({low:,.0f} to {high:,.0f})"


def _rows(name: str, results: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_bench(name, results, FOLDER)["rows"]
    return rows


def _photos(results: Path) -> list[dict[str, Any]]:
    return [row for row in _rows("update-size", results) if "side" in row]


REPORT = Report(
    page="real-models.md",
    command="dekag bench full-size",
    values=values,
    tables={
        "needs": needs_table,
        "tasks": tasks_table,
        "stages": stages_table,
        "memory": memory_table,
        "bytes": bytes_table,
        "photos": photos_table,
    },
)
