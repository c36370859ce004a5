"""One style for all plots: readable at page width, labelled at the line, safe for colour-blind readers."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("svg")
from matplotlib import font_manager, ticker
from matplotlib import pyplot as plt

WIDTH_IN = 8.0  # 768 pixels in a browser, the width of a page
_LEGEND_CHARS = 104  # of all columns of a legend below the panels; a line's handle takes 8

# Okabe and Ito's palette, without the yellow that is too light for lines
OURS, SECOND, THIRD, FOURTH, FIFTH = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
BASE, GRID = "#6b6b6b", "#dddddd"
LOOKS = tuple(zip((OURS, SECOND, THIRD, FOURTH, FIFTH, BASE, "#000000"), "os^DvPX", strict=True))
"""Colour and marker of each of many lines, which differ where colours repeat or lines cover each other."""

# Only fonts that matplotlib brings: its cached list may lack them, and other fonts make other files.
font_manager.fontManager.ttflist = []
for _font in sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("*.ttf")):
    font_manager.fontManager.addfont(_font)

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "svg.hashsalt": "dekag",
        "font.size": 10.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "figure.facecolor": "white",
        "lines.linewidth": 1.8,
    }
)

Values = Sequence[float] | npt.NDArray[np.float64]


def panels(columns: int = 1, rows: int = 1, *, height_in: float = 3.2, **options: Any) -> tuple[Any, Any]:
    """A figure as wide as a page, and its axes, (rows, columns)."""
    return plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, layout="constrained", **options
    )


def line(
    axis: Any,
    x: Values,
    y: Values,
    label: str,
    color: str,
    *,
    interval: Sequence[Sequence[float]] | None = None,
    style: str = "-",
    marker: str = "o",
) -> None:
    """A line with a band for its 95 % interval, (n, 2), and a label for `label_lines`; no points, no line."""
    if not len(x):
        return
    axis.plot(x, y, style, color=color, label=label, marker=marker, markersize=3.5)
    if interval is not None:
        low, high = np.array(interval).T
        axis.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)


def barred_line(
    axis: Any,
    x: Values,
    y: Values,
    label: str,
    color: str,
    *,
    interval: Sequence[Sequence[float]],
    marker: str,
) -> None:
    """A line with a bar for each 95 % interval, (n, 2): bars beside each other are told apart, bands are not.

    The label is for `legend_below`.
    """
    low, high = np.array(interval).T
    ends = np.maximum([np.asarray(y) - low, high - np.asarray(y)], 0)
    axis.errorbar(
        x, y, yerr=ends, color=color, label=label, marker=marker, markersize=4.5, capsize=2.5,
        linewidth=1.4, elinewidth=1.1,
    )  # fmt: skip


def log_rates(axis: Any) -> None:
    """A logarithmic horizontal axis with plain numbers, such as 0.2, in place of powers of ten."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def legend_below(figure: Any, axes: Any) -> None:
    """Names of the lines of all panels below them, each once: no label covers a line or another label."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = max(1, _LEGEND_CHARS // (8 + max(map(len, handles), default=0)))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, fontsize=9.5,
    )  # fmt: skip


def label_lines(axis: Any, *, gap: float = 0.075) -> None:
    """Write each line's label at its right end, moved apart where lines end close to each other.

    Args:
        axis: with its lines drawn and its limits as they stay: of axes that share limits, draw all first.
        gap: least distance between labels, as a fraction of the axis's height.
    """
    low, high = axis.get_ylim()
    scale = axis.transData + axis.transAxes.inverted()
    ends = []
    for each in axis.get_lines():
        if not each.get_label().startswith("_"):
            at = scale.transform((each.get_xdata()[-1], min(max(each.get_ydata()[-1], low), high)))
            ends.append([float(at[1]), each])
    ends.sort(key=lambda end: end[0])
    for _ in range(100):  # push neighbours apart until none overlap
        moved = False
        for lower, upper in itertools.pairwise(ends):
            if (short := gap - (upper[0] - lower[0])) > 1e-6:
                lower[0] -= short / 2
                upper[0] += short / 2
                moved = True
        if not moved:
            break
    for height, each in ends:
        axis.annotate(
            each.get_label(), (1, height), xycoords="axes fraction", xytext=(4, 0),
            textcoords="offset points", va="center", color=each.get_color(), fontsize=10,
            annotation_clip=False,
        )  # fmt: skip


def label_rates(axes: Any, cbrs: Sequence[float], quantity: str) -> None:
    """Titles and labels of panels (rates,) of a quantity against SNR, whose lines have been drawn.

    Args:
        axes: one for each rate, side by side, sharing the vertical axis.
        cbrs: the rates, channel uses per source value.
        quantity: what is on the vertical axis, with its unit.
    """
    for axis, cbr in zip(axes, cbrs, strict=True):
        axis.set_title(f"CBR 1/{1 / cbr:.0f}")
        axis.set_xlabel("SNR, dB")
    axes[0].set_ylabel(quantity)
    for axis in axes:
        label_lines(axis)


def label_corner(axis: Any) -> None:
    """Write the lines' labels into the lower right corner, for lines that rise from the lower left."""
    for place, each in enumerate(reversed(axis.get_lines())):
        axis.annotate(
            each.get_label(), (0.98, 0.03 + 0.09 * place), xycoords="axes fraction", ha="right",
            color=each.get_color(), fontsize=10,
        )  # fmt: skip


def dots(
    axis: Any,
    names: Sequence[str],
    values: Values,
    intervals: Sequence[Sequence[float]] | None = None,
    *,
    colors: Sequence[str] | None = None,
    text: str = "{:.2f}",
) -> None:
    """A value a row, the first on top, with its 95 % interval and its number beside it."""
    places = np.arange(len(names))[::-1]
    shades = colors or [OURS] * len(names)
    for i, place in enumerate(places):
        end = values[i]
        if intervals is not None:
            low, high = intervals[i]
            axis.plot(
                [low, high], [place, place], color=shades[i], linewidth=4, alpha=0.35, solid_capstyle="butt"
            )
            end = high
        axis.plot([values[i]], [place], "o", color=shades[i], markersize=6)
        axis.annotate(
            text.format(values[i]), (end, place), xytext=(6, 0), textcoords="offset points", va="center",
            color=shades[i], annotation_clip=False,
        )  # fmt: skip
    axis.set_yticks(places, names)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(visible=False, axis="y")


def as_svg(figure: Any) -> str:
    """A figure of pyplot as SVG, the same text whenever it shows the same; closes it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return "\n".join(text.rstrip() for text in file.getvalue().splitlines()) + "\n"


def write_plot(figure: Any, path: Path) -> None:
    """Save a figure of pyplot as SVG and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_svg(figure))
