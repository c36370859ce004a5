"""Tables and plots of a simulated city, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.cities.summary import names_of
from dekag.evaluation.pages import Lines, Row, table
from dekag.evaluation.statistics import mean_ci95
from dekag.simulation.simulator import PATHS

COLOURS = (
    plots.BASE, plots.FOURTH, plots.THIRD, plots.SECOND, plots.FIFTH, plots.OURS, "#000000",
)  # fmt: skip
Value = Callable[[Row], float]

VALUES: Mapping[str, tuple[str, Value]] = {
    "backhaul_gb": ("backhaul, GB", lambda row: (row["file_bytes"] + row["update_bytes"]) / 1e9),
    "channel_uses": ("channel uses, 10^9", lambda row: row["channel_uses"] / 1e9),
    "latency_p50": ("latency p50, s", lambda row: row["latency_s"]["p50"]),
    "latency_p99": ("latency p99, s", lambda row: row["latency_s"]["p99"]),
    "consistency": ("consistency", lambda row: row["consistency"]),
    "energy": ("energy, kWh", lambda row: sum(row["energy_kwh"].values())),
    "money": ("money", lambda row: sum(row["money"].values())),
}
"""Columns of the summary: header, and the value of a row."""


def summary_table(rows: Sequence[Row]) -> Lines:
    """Means over seeds, with 95 % intervals where there are several."""
    lines = []
    for name in names_of(rows):
        own = [row for row in rows if row["strategy"] == name]
        lines.append([name, *(_interval([value(row) for row in own]) for _, value in VALUES.values())])
    return table(["strategy", *(header for header, _ in VALUES.values())], lines)


def savings_table(rows: Sequence[Row]) -> Lines:
    """Savings against the first strategy, %, paired by seed, with the consistency of both.

    Negative: more was spent.
    """
    names, consistency = names_of(rows), VALUES["consistency"][1]
    score = {name: _interval([consistency(row) for row in rows if row["strategy"] == name]) for name in names}
    what = ("backhaul_gb", "channel_uses", "latency_p50", "energy", "money")
    lines = []
    for name in names[1:]:
        cells = []
        for key in what:
            value = VALUES[key][1]
            cells.append(_interval([saved_percent(rows, seed, name, value) for seed in _seeds(rows)], 1))
        lines.append([name, *cells, score[name], score[names[0]]])
    headers = [VALUES[key][0].split(",")[0] + ", %" for key in what]
    return table(["strategy", *headers, "consistency", f"of {names[0]}"], lines)


def saved_percent(rows: Sequence[Row], seed: int, name: str, value: Value) -> float:
    """What a strategy saves against the first one in the city of that seed, %."""
    by_name = {row["strategy"]: row for row in rows if row["seed"] == seed}
    first = value(by_name[names_of(rows)[0]])
    return 100 * (1 - value(by_name[name]) / first) if first else float("nan")


def updates_table(rows: Sequence[Row]) -> Lines:
    """What was distilled and transferred, and what of it paid for itself."""
    lines = []
    for name in names_of(rows):
        own = [row for row in rows if row["strategy"] == name]
        if not any(row["distilled"] for row in own):
            continue
        pairs = sum(row["break_even"]["pairs"] for row in own)
        paid = sum(row["break_even"]["paid"] for row in own)
        images = [row["break_even"]["images"] for row in own if row["break_even"]["images"] is not None]
        cells = [
            f"{np.mean([row['distilled'] for row in own]):,.0f}",
            f"{np.mean([row['transfers'] for row in own]):,.0f}",
            f"{np.mean([row['update_bytes'] for row in own]) / 1e6:,.1f}",
            f"{100 * paid / pairs:.0f} %" if pairs else "-",
            f"{np.mean(images):.0f}" if images else "-",
            f"{np.mean([row['bound_bytes'] for row in own]) / 1e6:,.0f}",
            f"{np.mean([row['file_bytes'] + row['update_bytes'] for row in own]) / 1e6:,.0f}",
        ]
        lines.append([name, *cells])
    header = [
        "strategy", "topics distilled", "updates sent", "MB of updates", "of them paid back",
        "images until paid back, median", "bound, MB", "backhaul, MB",
    ]  # fmt: skip
    return table(header, lines)


def variants_table(rows: Sequence[Row]) -> Lines:
    """Backhaul and money saved against the first strategy, %, in each variant, with all consistencies."""
    first, *names = names_of(rows)
    consistency = VALUES["consistency"][1]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for what in ("backhaul_gb", "money"):
            for name in names:
                value = VALUES[what][1]
                saved = [saved_percent(own, seed, name, value) for seed in _seeds(own)]
                cells.append(f"{np.mean(saved):.1f}")
        scores = [np.mean([consistency(row) for row in own if row["strategy"] == n]) for n in (*names, first)]
        *others, of_first = (f"{score:.2f}" for score in scores)
        lines.append([variant or "the city itself", *cells, " / ".join(others), of_first])
    headers = [f"{what} saved, {name}, %" for what in ("backhaul", "money") for name in names]
    return table(["variant", *headers, f"consistency, {' / '.join(names)}", f"of {first}"], lines)


def quality_table(rows: Sequence[Row]) -> Lines:
    """How requests were answered, and the PSNR of what was received."""
    lines = []
    for name in names_of(rows):
        own = [row for row in rows if row["strategy"] == name]
        total = sum(row["requests"] for row in own)
        paths = [f"{100 * sum(r['paths'][path] for r in own) / total:.1f} %" for path in own[0]["paths"]]
        psnr = [f"{np.mean([row['psnr_db'][p] for row in own]):.1f}" for p in ("p5", "p50", "p95")]
        lines.append([name, *paths, *psnr])
    paths = list(rows[0]["paths"])
    header = ["strategy", *paths, "PSNR p5, dB", "p50", "p95"]
    return table(header, lines)


def latency_table(rows: Sequence[Row]) -> Lines:
    """Percentiles of the latency and its parts, s."""
    lines = []
    for name in names_of(rows):
        own = [row for row in rows if row["strategy"] == name]
        for part in ("compute", "air", "backhaul"):
            cells = [f"{np.mean([r[f'{part}_s'][p] for r in own]):.3f}" for p in ("p50", "p95", "p99")]
            lines.append([name, part, *cells])
    return table(["strategy", "part", "p50, s", "p95, s", "p99, s"], lines, words=(0, 1))


def parts_table(rows: Sequence[Row], what: str) -> Lines:
    """Energy or money by part, means over seeds."""
    parts = list(rows[0][what])
    lines = []
    for name in names_of(rows):
        own = [row for row in rows if row["strategy"] == name]
        means = [float(np.mean([row[what][part] for row in own])) for part in parts]
        lines.append([name, *(f"{mean:,.3g}" for mean in means), f"{sum(means):,.3g}"])
    return table(["strategy", *parts, "sum"], lines)


def hours_plot(rows: Sequence[Row]) -> Any:
    """Bytes on the backhaul over time, and channel uses, of one seed."""
    figure, axes = plots.panels(2, height_in=3.4)
    for name, colour in zip(names_of(rows), COLOURS, strict=False):
        own = [row for row in rows if row["strategy"] == name]
        days = _smooth([row["hour"] / 24 for row in own])
        backhaul = [(row["file_bytes"] + row["update_bytes"]) / 1e6 for row in own]
        axes[0, 0].plot(days, _smooth(backhaul), color=colour, label=name)
        axes[0, 1].plot(days, _smooth([row["channel_uses"] / 1e6 for row in own]), color=colour, label=name)
    axes[0, 0].set(title="Backhaul", xlabel="time, days", ylabel="MB per hour", ylim=(0, None))
    axes[0, 1].set(title="Air", xlabel="time, days", ylabel="million channel uses per hour", ylim=(0, None))
    plots.label_lines(axes[0, 1])
    return figure


def latency_plot(rows: Sequence[Row]) -> Any:
    """Latency percentiles and quality of each strategy, all seeds together."""
    figure, axes = plots.panels(2, height_in=3.2)
    names = names_of(rows)
    medians = [[row for row in rows if row["strategy"] == name] for name in names]
    for axis, key, title in (
        (axes[0, 0], "latency_s", "Latency, s: 5th, 50th and 95th percentile"),
        (axes[0, 1], "psnr_db", "PSNR, dB: 5th, 50th and 95th percentile"),
    ):
        values = [float(np.mean([row[key]["p50"] for row in own])) for own in medians]
        ends = [[float(np.mean([row[key][p] for row in own])) for p in ("p5", "p95")] for own in medians]
        plots.dots(axis, names, values, ends, colors=COLOURS[: len(names)])
        axis.set_title(title)
    axes[0, 1].set_yticklabels([])
    return figure


def topics_plot(rows: Sequence[Row]) -> Any:
    """Saved against spent bytes of each distilled topic: below the line an update did not pay."""
    figure, axes = plots.panels(1, height_in=4.2)
    axis = axes[0, 0]
    for name, colour in zip(names_of(rows), (plots.SECOND, plots.FIFTH, plots.OURS, "#000000"), strict=False):
        own = [row for row in rows if row["strategy"] == name and row["spent_bytes"]]
        x = [row["requests"] for row in own]
        y = [max(row["saved_bytes"], 1.0) / row["spent_bytes"] for row in own]
        axis.loglog(x, y, "o", color=colour, markersize=4, alpha=0.7, label=name)
    axis.axhline(1, color=plots.BASE, linewidth=1)
    axis.set(xlabel="requests for the topic", ylabel="saved / spent bytes on the backhaul")
    axis.legend(frameon=False)
    return figure


def _smooth(values: Sequence[float], hours: int = 6) -> Any:
    """Means over six hours, so that days can be compared."""
    whole = len(values) // hours * hours
    if not whole:
        return np.array(values)
    return np.array(values[:whole]).reshape(-1, hours).mean(axis=1)


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def _interval(values: Sequence[float], decimals: int | None = None) -> str:
    mean, ci95 = mean_ci95(values)

    def text(value: float) -> str:
        return f"{value:,.{decimals}f}" if decimals is not None else f"{value:,.4g}"

    return text(mean) if ci95 is None else f"{text(mean)} ({text(ci95[0])} .. {text(ci95[1])})"


BYTES, LATENCY = "bytes between cloud and edges", "median latency, s"


def agreement(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """What real services and the simulation came to with the same requests.

    Args:
        rows: of `dekag bench simulate-agreement`.

    Returns:
        Pairs, services first, by what is compared.
    """
    real, model = ([row for row in rows if row["kind"] == kind] for kind in ("services", "simulation"))

    def both(value: Callable[[Sequence[Row]], Any]) -> tuple[float, float]:
        return float(value(real)), float(value(model))

    def answered(path: str) -> tuple[float, float]:
        return both(lambda of: sum(row["path"] == path for row in of))

    return {
        BYTES: both(lambda of: sum(row["backhaul_bytes"] for row in of)),
        LATENCY: both(lambda of: np.median([row["latency_s"] for row in of])),
        "95th percentile of latency, s": both(lambda of: np.percentile([row["latency_s"] for row in of], 95)),
        "median compute, s": both(lambda of: np.median([row["compute_s"] for row in of])),
        **{f"answered by: {path}": answered(path) for path in PATHS},
    }


def gap_percent(real: float, model: float) -> float:
    """How far the simulation is from the services, %; positive: it has more."""
    return 100 * (model / real - 1)


def agreement_table(rows: Sequence[Row]) -> Lines:
    """The same as a table, without what neither has."""
    cells = []
    for what, (real, model) in agreement(rows).items():
        if real or model:
            shown = "{:,.3f}" if what.endswith(", s") else "{:,.0f}"
            gap = f"{gap_percent(real, model):+.1f}" if real else ""
            cells.append([what, shown.format(real), shown.format(model), gap])
    return table(["", "services", "simulation", "gap, %"], cells)
