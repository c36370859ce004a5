"""A sweep's rows as a table and plots."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.evaluation import plots
from dekag.evaluation.pages import Row
from dekag.evaluation.pages import table as markdown
from dekag.evaluation.statistics import mean_ci95
from dekag.evaluation.sweeps.grid import REFERENCE_METRICS
from dekag.link.conditions import LinkConditions

_QUANTITIES = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}
_PAGE_CHARS = 84  # of titles, in all columns of a plot
_SHIFT = 0.01  # of the range of SNRs, between the bars of two deliveries


def link_name(link: dict[str, Any]) -> str:
    """A channel in a few words: its fading, and every field that is not as usual."""
    usual = LinkConditions.model_construct().model_dump()
    words = [str(link["fading"])]
    if link["fading"] not in ("awgn", "trace"):
        words.append(f"{1e9 * link['tau_rms_s']:g} ns")
    others = [name for name in usual if name not in ("fading", "snr_db", "tau_rms_s")]
    return ", ".join(words + [f"{name} {link[name]}" for name in others if link[name] != usual[name]])


_SHARES = {*REFERENCE_METRICS, "ssim", "ms_ssim"}  # at most 1


def values_of(rows: Sequence[Row], metric: str) -> npt.NDArray[np.float64]:
    """A metric of every image of all rows, (n,); nan where it has no value."""
    return np.array([value for row in rows for value in row["metrics"][metric]], dtype=np.float64)


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: one line for each delivery, channel, SNR and rate, means over topics and seeds."""
    metrics = list(rows[0]["metrics"]) if rows else []
    groups: dict[tuple[str, str, float, float], list[Row]] = {}
    for row in rows:
        point = row["cell"]
        key = (point["delivery"]["name"], link_name(point["link"]), point["link"]["snr_db"], point["cbr"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (delivery, link, snr_db, cbr), own in groups.items():
        values = [values_of(own, name) for name in metrics]
        uses = np.mean([row["channel_uses"] for row in own])
        lines.append(
            [delivery, link, f"{snr_db:g}", f"1/{1 / cbr:.0f}"]
            + [_mean(value) for value in values]
            + [f"{uses:.0f}", str(len(values[0]) if values else 0)]
        )
    header = ["delivery", "channel", "SNR, dB", "CBR", *metrics, "channel uses", "images"]
    return markdown(header, lines, words=(0, 1))


def _mean(values: npt.NDArray[np.float64]) -> str:
    """The mean of those that have a value, as the table shows it."""
    return "-" if np.isnan(values).all() else f"{np.nanmean(values):.3f}"


def _band(rows: Sequence[Row], metric: str) -> tuple[float, float, float]:
    """Mean over the images that have a value, with the limits of its 95 % interval; nan without any.

    Rows of one topic send the same images, which count once, with the mean of their values.
    """
    images: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        for number, value in enumerate(row["metrics"][metric]):
            if value is not None and not math.isnan(value):
                images.setdefault((row["cell"]["topic"], number), []).append(value)
    if not images:
        return math.nan, math.nan, math.nan
    most = 1.0 if metric in _SHARES else math.inf
    mean, interval = mean_ci95([sum(own) / len(own) for own in images.values()], (-math.inf, most))
    low, high = interval or (mean, mean)
    return mean, low, high


def draw_lines(axis: Any, rows: Sequence[Row], metric: str, styles: dict[str, tuple[str, str]]) -> None:
    """The metric against SNR with 95 % bands, a labelled line for each delivery.

    Args:
        axis: of pyplot.
        rows: of one channel and rate.
        metric: of the rows.
        looks: label and colour of each delivery, in this order.
    """
    for name, (label, color) in styles.items():
        points: dict[float, list[Row]] = {}
        for row in rows:
            if row["cell"]["delivery"]["name"] == name:
                points.setdefault(row["cell"]["link"]["snr_db"], []).append(row)
        if not points:
            continue
        snrs_db, means, interval = _curve(points, metric)
        plots.line(axis, snrs_db, means, label, color, interval=interval)


def _curve(
    points: dict[float, list[Row]], metric: str
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """SNRs, means and their 95 % intervals, of the rows of each SNR."""
    snrs_db = sorted(points)
    bands = [_band(points[snr], metric) for snr in snrs_db]
    return snrs_db, [mean for mean, _, _ in bands], [(low, high) for _, low, high in bands]


def metric_plot(rows: Sequence[Row], metric: str) -> Any:
    """The metric against SNR: channels down, rates across."""
    links = list(dict.fromkeys(link_name(row["cell"]["link"]) for row in rows))
    rates = sorted({row["cell"]["cbr"] for row in rows}, reverse=True)
    names = list(dict.fromkeys(row["cell"]["delivery"]["name"] for row in rows))
    figure, axes = plots.panels(
        len(rates), len(links), height_in=3.0 * len(links) + 0.8, sharex=True, sharey=True
    )
    for axis_row, link in zip(axes, links, strict=True):
        for axis, cbr in zip(axis_row, rates, strict=True):
            own = [row for row in rows if (link_name(row["cell"]["link"]), row["cell"]["cbr"]) == (link, cbr)]
            _draw_bars(axis, own, metric, names)
            title = f"{link}, CBR 1/{1 / cbr:.0f}"
            axis.set_title(textwrap.fill(title, _PAGE_CHARS // len(rates)))
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    for axis in axes[:, 0]:
        axis.set_ylabel(_QUANTITIES.get(metric, metric))
    figure.suptitle(
        "Means over images; bars are their 95 % intervals, side by side at the same SNR",
        x=0.01, ha="left", fontsize=9.5, color=plots.BASE,
    )  # fmt: skip
    plots.legend_below(figure, axes)
    return figure


def _draw_bars(axis: Any, rows: Sequence[Row], metric: str, names: Sequence[str]) -> None:
    """The metric against SNR with 95 % bars, a line for each delivery, of one channel and rate."""
    snrs_db = [row["cell"]["link"]["snr_db"] for row in rows]
    step_db = _SHIFT * ((max(snrs_db, default=0.0) - min(snrs_db, default=0.0)) or 1.0)
    for place, name in enumerate(names):
        points: dict[float, list[Row]] = {}
        for row in rows:
            if row["cell"]["delivery"]["name"] == name:
                points.setdefault(row["cell"]["link"]["snr_db"], []).append(row)
        snrs, means, interval = _curve(points, metric)
        if np.isnan(means).all():  # no points, or the metric has no value
            continue
        color, marker = plots.LOOKS[place % len(plots.LOOKS)]
        beside = [snr + (place - (len(names) - 1) / 2) * step_db for snr in snrs]
        plots.barred_line(axis, beside, means, name, color, interval=interval, marker=marker)
