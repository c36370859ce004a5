"""docs/results-transmission.md from results/tka/: CALA and its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dekag.cala.methods import METHODS
from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, Report, Row, figures_table, read_rows, table
from dekag.evaluation.studies.cala import (
    BASELINES,
    BEYOND_DB,
    COMMAND,
    FOLDER,
    GRID_SNRS_DB,
    OFFSETS_DB,
    SHOWN_CHANNEL,
    worst_unseen,
)
from dekag.evaluation.studies.cala_training import FRACTION_METHODS, FRACTIONS
from dekag.evaluation.studies.digital import CHANNELS, RATES

SHORT = {"cala": "CALA", "none": "no alignment", "lora": "one LoRA", "fine-tune": "full fine-tune"}
COLOURS = {"none": plots.BASE, "cala": plots.OURS, "lora": plots.SECOND, "fine-tune": plots.THIRD}


Cells = dict[str, dict[tuple[Any, ...], float]]


def rows_of(results: Path, name: str) -> list[Row]:
    """A file of results/tka/."""
    return read_rows(results / FOLDER / f"{name}.jsonl")


def grid(results: Path) -> list[Row]:
    """The cells that all methods share."""
    return [row for row in rows_of(results, "grid") if row["snr_db"] in GRID_SNRS_DB]


def title(method: str) -> str:
    """What readers call a method."""
    return METHODS[method].title if method in METHODS else method


def values(results: Path) -> Mapping[str, str]:
    """How it was measured, and what the tables do not say."""
    (setup,) = rows_of(results, "setup")
    methods = {row["method"]: row for row in rows_of(results, "methods")}
    gates = methods["cala-ungated"]
    low, high = gates["cala_lead_ci95"]
    oracles = rows_of(results, "ceilings")
    return {
        "pictures": str(setup["pictures"]),
        "structure_pictures": str(setup["structure_pictures"]),
        **{name: f"{setup[name]:,}" for name in ("steps", "share_steps", "oracle_steps")},
        "channels": ", ".join(dict.fromkeys(row["channel"] for row in grid(results))),
        "gates_worth": f"{gates['cala_lead_db']:.2f} dB ({low:.2f} .. {high:.2f})",
        "conditions": str(oracles[-1]["conditions"]),
        "worst_unseen": worst_unseen(rows_of(results, "unseen"))["condition"],
        "beyond": ", ".join(f"{snr:g}" for snr in BEYOND_DB),
        "cells": str(len(_cells(results)["cala"])),
        "rivals": ", ".join(title(name) for name in BASELINES),
    }


def methods(results: Path) -> Lines:
    """Every method in the mean over the grid."""
    lines = []
    for row in rows_of(results, "methods"):
        low, high = row["ci95"]
        lines.append(
            [
                f"**{title('cala')}**" if row["method"] == "cala" else title(row["method"]),
                f"{100 * row['parameters']:.1f} %",
                f"{row['psnr_db']:.2f}",
                f"{low:.2f} .. {high:.2f}",
                f"{row['unseen_psnr_db']:.2f}",
                f"{row['ssim']:.3f}",
                f"{row['ms_ssim']:.3f}",
            ]
        )
    header = ["method", "parameters", "PSNR, dB", "95 % interval", "unseen, dB", "SSIM", "MS-SSIM"]
    return table(header, lines)


def by_column(results: Path) -> dict[str, dict[str, float]]:
    """Mean PSNR by channel, by rate and by SNR: column -> method -> dB."""
    rows = grid(results)
    columns: dict[str, dict[str, list[float]]] = {}
    for name, shown in (("channel", "{}"), ("cbr", "1/{:.0f}"), ("snr_db", "{:g} dB")):
        for row in rows:
            column = shown.format(1 / row["cbr"] if name == "cbr" else row[name])
            columns.setdefault(column, {}).setdefault(row["method"], []).append(row["psnr_db"])
    return {
        column: {method: float(np.mean(found)) for method, found in own.items()}
        for column, own in columns.items()
    }


def columns(results: Path) -> Lines:
    """Every method by channel, by rate and by SNR."""
    found = by_column(results)
    names = list(next(iter(found.values())))
    lines = [[column, *(f"{own[name]:.2f}" for name in names)] for column, own in found.items()]
    return table(["", *map(title, names)], lines)


def _cells(results: Path) -> Cells:
    found: Cells = {}
    for row in grid(results):
        place = (row["channel"], row["cbr"], row["snr_db"])
        found.setdefault(row["method"], {})[place] = row["psnr_db"]
    return found


def losing_conditions(results: Path) -> Lines:
    """Where CALA is not ahead: columns for baselines of its size, cells for all methods."""
    lines = []
    for column, own in by_column(results).items():
        ahead = [f"{title(name)} {own[name]:.2f}" for name in BASELINES if own[name] >= own["cala"]]
        if ahead:
            lines.append(f"- {column}: {', '.join(ahead)}, CALA {own['cala']:.2f}")
    lines = lines or ["In no channel, at no rate and at no SNR is a baseline of its size ahead."]
    cells = _cells(results)
    rows = [
        [title(name), str(sum(own[place] >= cells["cala"][place] for place in own)), str(len(own))]
        for name, own in cells.items()
        if name not in ("none", "cala")
    ]
    return [*lines, "", *table(["method", "cells where it is as good or better", "of"], rows)]


def oracles(results: Path) -> Lines:
    """CALA below a codec for each condition."""
    names = {"ceiling": "full fine-tune for each condition"}
    lines = [
        [names.get(row["method"]) or title(row["method"]), f"{row['psnr_db']:.2f}"]
        for row in rows_of(results, "ceilings")
    ]
    return table(["", "PSNR, dB"], lines)


def fractions(results: Path) -> Lines:
    """PSNR against the fraction of parameters."""
    found = {(row["method"], row["most"]): row for row in rows_of(results, "shares")}
    lines = []
    for method in FRACTION_METHODS:
        own = [found.get((method, most)) for most in FRACTIONS]
        cells = [f"{row['psnr_db']:.2f} ({100 * row['share']:.1f} %)" if row else "-" for row in own]
        lines.append([title(method), *cells])
    return table(["method", *(f"{100 * fraction:g} %" for fraction in FRACTIONS)], lines)


def unseen(results: Path) -> Lines:
    """Conditions that no training drew."""
    lines = [
        [
            row["condition"],
            *(f"{row[name]:.2f}" for name in ("psnr_db", "beside_psnr_db", "gap_db")),
            "{:.2f} .. {:.2f}".format(*row["ci95"]),
        ]
        for row in rows_of(results, "unseen")
    ]
    return table(["condition", "PSNR, dB", "trained neighbour, dB", "loss, dB", "95 % interval"], lines)


def mismatch(results: Path) -> Lines:
    """A sender that is told a wrong SNR."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows_of(results, "mismatch"):
        found.setdefault((row["channel"], row["offset_db"]), []).append(row["psnr_db"])
    lines = []
    for channel in dict.fromkeys(channel for channel, _ in found):
        right = np.mean(found[channel, 0.0])
        lines.append([channel, *(f"{np.mean(found[channel, o]) - right:+.2f}" for o in OFFSETS_DB)])
    return table(["channel", *(f"{offset:+g} dB" for offset in OFFSETS_DB)], lines)


def rate_control(results: Path) -> Lines:
    """Requests for a quality."""
    (setup,) = rows_of(results, "setup")
    requests: dict[float, list[Row]] = {}
    for row in rows_of(results, "requests"):
        requests.setdefault(row["offset_db"], []).append(row)
    lines = []
    for offset, own in requests.items():
        promised = [row for row in own if row["promised"]]
        kept = np.mean([row["psnr_db"] >= row["target_db"] for row in promised])
        spare = np.mean([row["psnr_db"] - row["target_db"] for row in promised])
        uses = np.mean([row["channel_uses"] for row in promised])
        lines.append(
            [
                f"{offset:+g} dB",
                str(len(own)),
                str(len(promised)),
                f"{100 * kept:.0f} %",
                f"{spare:.1f}",
                f"{uses:.0f}",
                f"{100 * uses / setup['most_channel_uses']:.0f} %",
            ]
        )
    header = ["SNR told is off by", "requests", "promised", "kept", "dB to spare", "mean channel uses"]
    return table([*header, "of the most"], lines)


def costs(results: Path) -> Lines:
    """What the gates cost."""
    lines = [
        [
            row["what"],
            f"{1000 * row['plain_s']:.2f}",
            f"{1000 * row['median_s']:.2f}",
            f"{row['ratio']:.2f}",
            "{:.2f} .. {:.2f}".format(*row["ci95"]),
        ]
        for row in rows_of(results, "costs")
    ]
    return table(["", "plain codec, ms", "with gates, ms", "ratio", "95 % interval"], lines)


def psnr_plot(results: Path) -> Any:
    """PSNR against SNR at the highest and at a low rate."""
    rows = [row for row in grid(results) if row["channel"] == SHOWN_CHANNEL]
    figure, axes = plots.panels(2, height_in=3.6, sharey=True)
    for axis, cbr in zip(axes[0], (RATES[0], RATES[2]), strict=True):
        for method, color in COLOURS.items():
            own = [row for row in rows if row["method"] == method and abs(row["cbr"] - cbr) < 1e-6]
            snrs, means = [row["snr_db"] for row in own], [row["psnr_db"] for row in own]
            bands = [row["psnr_ci95"] for row in own]
            plots.line(axis, snrs, means, SHORT[method], color, interval=bands)
        axis.set_title(f"CBR 1/{1 / cbr:.0f}: {round(cbr * 3 * 128 * 128)} channel uses")
        axis.set_xlabel("SNR, dB")
    axes[0, 0].set_ylabel("PSNR, dB")
    for axis in axes[0]:
        plots.label_lines(axis)
    return figure


def gain_plot(results: Path) -> Any:
    """Gain over no alignment by channel, at each rate."""
    cells = _cells(results)
    figure, axes = plots.panels(len(RATES), height_in=2.9, sharey=True, sharex=True)
    names = list(CHANNELS)
    for axis, cbr in zip(axes[0], RATES, strict=True):
        gains = [float(np.mean([_gain(cells, name, cbr, snr) for snr in GRID_SNRS_DB])) for name in names]
        plots.dots(axis, names, gains, text="{:.1f}")
        axis.set_title(f"CBR 1/{1 / cbr:.0f}")
        axis.set_xlim(0, 11)
    figure.supxlabel("gain in PSNR over no alignment, dB, mean over SNR -5 to 20 dB", fontsize=10.5)
    return figure


def _gain(
    cells: Mapping[str, Mapping[tuple[Any, ...], float]], channel: str, cbr: float, snr: float
) -> float:
    place = (channel, round(cbr, 6), snr)
    return cells["cala"][place] - cells["none"][place]


def fractions_plot(results: Path) -> Any:
    """PSNR against fraction of parameters."""
    figure, axes = plots.panels(height_in=2.9)
    (axis,) = axes[0]
    for method in FRACTION_METHODS:
        own = [row for row in rows_of(results, "shares") if row["method"] == method]
        plots.line(
            axis, [100 * row["share"] for row in own], [row["psnr_db"] for row in own], title(method),
            COLOURS[method], interval=[row["ci95"] for row in own],
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axis.minorticks_off()
    axis.set_xlabel("trained parameters, % of the codec's")
    axis.set_ylabel("PSNR, dB")
    plots.label_lines(axis)
    return figure


REPORT = Report(
    page="results-transmission.md",
    command=COMMAND,
    values=values,
    tables={
        "figures": figures_table(
            [
                "tka_gain_db", "tka_adapter_share", "tka_oracle_gap_db", "tka_lead_over_best_baseline_db",
                "tka_unseen_gap_db", "gate_cost_ratio", "auto_rate_hit_share",
            ]
        ),
        "methods": methods,
        "columns": columns,
        "losing-conditions": losing_conditions,
        "oracles": oracles,
        "shares": fractions,
        "unseen": unseen,
        "mismatch": mismatch,
        "rate-control": rate_control,
        "costs": costs,
    },
    plots={"psnr": psnr_plot, "gain": gain_plot, "shares": fractions_plot},
)  # fmt: skip
