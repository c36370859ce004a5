"""How time grows with users, pixels and symbols: points of three benchmarks, and the slopes between them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, table
from services.bench import channel, cost, throughput
from services.bench.results_io import read_bench

Points = Sequence[tuple[int, float]]
WHAT = {
    "users": "an image for each user",
    "pixels": "an image of so many pixels",
    "symbols": "a transmission of so many symbols",
}
"""What takes the time, by what it grows with."""


def points(results: Path) -> Mapping[str, Points]:
    """Amounts and times, s, by what grows: users, pixels or symbols.

    Raises:
        NotMeasuredError: a benchmark of these has not been run.
    """
    load, sizes, link = (read_bench(name, results) for name in ("throughput", "cost", "channel"))
    areas = sorted({row["pixels"] for row in sizes["rows"] if row["kind"] == cost.SIZE})
    if not areas:
        raise NotMeasuredError("dekag bench cost")
    return {
        "users": [
            (users, users / throughput.mean_of(load["rows"], throughput.OURS, users, "images_per_s"))
            for users in load["config"]["users"]
        ],
        "pixels": [
            (area, statistics.median(row["seconds"] for row in sizes["rows"] if row.get("pixels") == area))
            for area in areas
        ],
        "symbols": [
            (uses, uses / statistics.fmean(channel.values(link["rows"], "service", uses)))
            for uses in link["config"]["channel_uses"]
        ],
    }


def slopes(found: Points) -> list[float]:
    """Slopes between neighbouring points on logarithmic axes: 1 where time is proportional to the amount."""
    return [
        math.log(after / before) / math.log(more / less)
        for (less, before), (more, after) in itertools.pairwise(found)
    ]


def growth_table(results: Path) -> Lines:
    """Every point, with the slope from the one before."""
    lines = []
    for name, found in points(results).items():
        for (amount, seconds), slope in zip(found, [None, *slopes(found)], strict=True):
            lines.append(
                [name, f"{amount:,}", f"{1e3 * seconds:,.1f}", "" if slope is None else f"{slope:.2f}"]
            )
    return table(["", "amount", "ms", "slope"], lines)


def growth_values(results: Path) -> Mapping[str, str]:
    """The steepest slope of each; nothing if they were not measured."""
    try:
        found = points(results)
    except NotMeasuredError:
        return {}
    return {f"slope_{name}": f"{max(slopes(each)):.2f}" for name, each in found.items() if len(each) > 1}


def growth_plot(results: Path) -> Any:
    """Time against users, pixels and symbols, with a line that is proportional to each."""
    found = points(results)
    figure, axes = plots.panels(len(found), height_in=3.0)
    for axis, (name, each) in zip(axes[0], found.items(), strict=True):
        amounts, seconds = zip(*each, strict=True)
        linear = [seconds[0] * amount / amounts[0] for amount in amounts]
        axis.plot(amounts, linear, "--", color=plots.BASE, label="proportional")
        axis.plot(amounts, seconds, color=plots.OURS, marker="o", markersize=3.5, label="measured")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(name)
        axis.set_title(f"{WHAT[name]}, s")
        plots.label_corner(axis)
    return figure
