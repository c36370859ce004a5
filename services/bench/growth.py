"""How time grows with users, pixels and symbols: points of three benchmarks, and the slopes between them."""

from __future__ import annotations

import contextlib
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
    """Amounts and times, s, by what grows, as far as they were measured: users, pixels or symbols.

    Raises:
        NotMeasuredError: none was measured.
    """
    found: dict[str, Points] = {}
    for name, read in {"users": _users, "pixels": _pixels, "symbols": _symbols}.items():
        with contextlib.suppress(NotMeasuredError):
            if len(own := read(results)) > 1:
                found[name] = own
    if not found:
        raise NotMeasuredError("make bench")
    return found


def _users(results: Path) -> Points:
    bench = read_bench("throughput", results)
    return [
        (users, users / throughput.mean_of(bench["rows"], throughput.OURS, users, "images_per_s"))
        for users in bench["config"]["users"]
    ]


def _pixels(results: Path) -> Points:
    rows = [row for row in read_bench("cost", results)["rows"] if row["kind"] == cost.SIZE]
    return [
        (area, statistics.median(row["seconds"] for row in rows if row["pixels"] == area))
        for area in sorted({row["pixels"] for row in rows})
    ]


def _symbols(results: Path) -> Points:
    bench = read_bench("channel", results)
    return [
        (uses, uses / statistics.fmean(channel.values(bench["rows"], "service", uses)))
        for uses in bench["config"]["channel_uses"]
    ]


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
    """The steepest slope of each that was measured."""
    try:
        found = points(results)
    except NotMeasuredError:
        return {}
    return {f"slope_{name}": f"{max(slopes(each)):.2f}" for name, each in found.items()}


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
        axis.legend(loc="upper left", frameon=False)
    return figure
