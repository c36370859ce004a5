"""A sweep's rows as files, tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.experiments.files import plt, write_plot
from dekag.experiments.headline import mean_ci95
from dekag.link.conditions import LinkConditions

Row = dict[str, Any]


def link_name(link: dict[str, Any]) -> str:
    """A channel in a few words: its fading, and every field that is not as usual."""
    usual = LinkConditions.model_construct().model_dump()
    words = [str(link["fading"])]
    if link["fading"] not in ("awgn", "trace"):
        words.append(f"{1e9 * link['tau_rms_s']:g} ns")
    others = [name for name in usual if name not in ("fading", "snr_db", "tau_rms_s")]
    return ", ".join(words + [f"{name} {link[name]}" for name in others if link[name] != usual[name]])


def values_of(rows: Sequence[Row], metric: str) -> npt.NDArray[np.float64]:
    """A metric of every picture of all rows, (n,); nan where it has no value."""
    return np.array([value for row in rows for value in row["metrics"][metric]], dtype=np.float64)


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one line for each delivery, channel, SNR and rate, means over topics and seeds."""
    metrics = list(rows[0]["metrics"]) if rows else []
    lines = ["| delivery | channel | SNR, dB | CBR | " + " | ".join(metrics) + " | channel uses | pictures |"]
    lines.append("|---|---|---:|---:|" + "---:|" * (len(metrics) + 2))
    groups: dict[tuple[str, str, float, float], list[Row]] = {}
    for row in rows:
        cell = row["cell"]
        key = (cell["delivery"]["name"], link_name(cell["link"]), cell["link"]["snr_db"], cell["cbr"])
        groups.setdefault(key, []).append(row)
    for (delivery, link, snr_db, cbr), own in groups.items():
        values = [values_of(own, name) for name in metrics]
        shown = " | ".join(_mean(value) for value in values)
        uses = np.mean([row["channel_uses"] for row in own])
        count = len(values[0]) if values else 0
        lines.append(
            f"| {delivery} | {link} | {snr_db:g} | 1/{1 / cbr:.0f} | {shown} | {uses:.0f} | {count} |"
        )
    return lines


def _mean(values: npt.NDArray[np.float64]) -> str:
    """The mean of those that have a value, as the table shows it."""
    return "-" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"


def _band(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of those that have a value, with the limits of its 95 % interval; nan without any."""
    there = values[~np.isnan(values)].tolist()
    if not there:
        return math.nan, math.nan, math.nan
    mean, interval = mean_ci95(there)
    low, high = interval or (mean, mean)
    return mean, low, high


def save_plot(rows: Sequence[Row], metric: str, path: Path) -> None:
    """The metric against SNR with 95 % bands: a line for each delivery, channels down, rates across."""
    links = list(dict.fromkeys(link_name(row["cell"]["link"]) for row in rows))
    rates = sorted({row["cell"]["cbr"] for row in rows}, reverse=True)
    names = list(dict.fromkeys(row["cell"]["delivery"]["name"] for row in rows))
    figure, axes = plt.subplots(
        len(links), len(rates), figsize=(4 * len(rates), 3 * len(links)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis_row, link in zip(axes, links, strict=True):
        for axis, cbr in zip(axis_row, rates, strict=True):
            for i, name in enumerate(names):
                points: dict[float, list[Row]] = {}
                for row in rows:
                    cell = row["cell"]
                    if (cell["delivery"]["name"], link_name(cell["link"]), cell["cbr"]) == (name, link, cbr):
                        points.setdefault(cell["link"]["snr_db"], []).append(row)
                snrs_db = sorted(points)
                values = [values_of(points[snr], metric) for snr in snrs_db]
                means, lows, highs = zip(*map(_band, values), strict=True)
                axis.plot(snrs_db, means, "o-", color=f"C{i}", label=name, markersize=3)
                axis.fill_between(snrs_db, lows, highs, color=f"C{i}", alpha=0.12, linewidth=0)
            axis.set_title(f"{link}, CBR 1/{1 / cbr:.0f}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    for axis in axes[:, 0]:
        axis.set_ylabel(metric)
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    write_plot(figure, path)
