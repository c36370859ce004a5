"""docs/results-restoration.md from results/restoration/: the receiver's step of the edge's denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, Report, Row, figures_table, read_rows, table
from dekag.evaluation.studies.restoration import COMMAND, FOLDER, SHOWN

KEYS = ("restored_mean_psnr_db", "restored_gain_db", "restored_lead_db", "restored_taught_lead_db")
TITLES = {
    "unaligned": "unaligned",
    "cala": "CALA",
    "right": "CALA, restored with its prompt",
    "withheld": "CALA, restored without a prompt",
    "foreign": "CALA, restored with another image's prompt",
    "wrong": "CALA, restored with a prompt of another subject",
}
SETS = {"known": "prompts that the edge knows", "taught": "topics that the edge was taught"}
STYLES = {
    "unaligned": ("unaligned", plots.BASE),
    "cala": ("CALA", plots.THIRD),
    "right": ("CALA, restored", plots.OURS),
}


def cells(results: Path) -> list[Row]:
    """A row for each set of images, channel, rate, SNR and way to show them."""
    return read_rows(results / FOLDER / "cells.jsonl")


def values(results: Path) -> Mapping[str, str]:
    """How it was measured."""
    rows = cells(results)
    return {
        "images": str(rows[0]["n"]),
        "channels": ", ".join(dict.fromkeys(row["channel"] for row in rows)),
        "snrs": ", ".join(f"{snr:g}" for snr in dict.fromkeys(row["snr_db"] for row in rows)),
        "rates": ", ".join(f"1/{1 / cbr:.0f}" for cbr in dict.fromkeys(row["cbr"] for row in rows)),
    }


def prompts(results: Path) -> Lines:
    """Mean PSNR over all cells by what the denoiser was told."""
    rows = cells(results)
    lines = []
    for name in SHOWN:
        line = [TITLES[name]]
        for images in SETS:
            own = [row for row in rows if (row["images"], row["shown"]) == (images, name)]
            gain = float(np.mean([row["gain_db"] for row in own]))
            line += [
                f"{np.mean([row['psnr_db'] for row in own]):.2f}",
                "" if name == "cala" else f"{gain:+.2f}",
            ]
        lines.append(line)
    header = [f"{title}, {what}" for title in SETS.values() for what in ("PSNR, dB", "change from CALA")]
    return table(["", *header], lines)


def by_rate(results: Path) -> Lines:
    """The change that restoration makes, by rate and SNR, for images that the edge knows."""
    rows = [row for row in cells(results) if (row["images"], row["shown"]) == ("known", "right")]
    lines = []
    for channel in dict.fromkeys(row["channel"] for row in rows):
        for cbr in dict.fromkeys(row["cbr"] for row in rows):
            own = [row for row in rows if (row["channel"], row["cbr"]) == (channel, cbr)]
            lines.append(
                [
                    channel,
                    f"1/{1 / cbr:.0f}",
                    *(f"{row['psnr_db']:.1f} ({row['gain_db']:+.1f})" for row in own),
                ]
            )
    snrs = dict.fromkeys(row["snr_db"] for row in rows)
    return table(["channel", "CBR", *(f"{snr:g} dB" for snr in snrs)], lines)


def psnr_plot(results: Path) -> Any:
    """PSNR against SNR at the highest and the lowest rate, Rayleigh fading."""
    rows = [row for row in cells(results) if (row["images"], row["channel"]) == ("known", "rayleigh-1us")]
    highest, *_, lowest = dict.fromkeys(row["cbr"] for row in rows)
    shown = (highest, lowest)
    figure, axes = plots.panels(2, height_in=3.6, sharey=True)
    for axis, cbr in zip(axes[0], shown, strict=True):
        for name, (label, color) in STYLES.items():
            own = [row for row in rows if (row["cbr"], row["shown"]) == (cbr, name)]
            plots.line(
                axis,
                [row["snr_db"] for row in own],
                [row["psnr_db"] for row in own],
                label,
                color,
                interval=[row["ci95"] for row in own],
            )
    plots.label_rates(axes[0], shown, "PSNR, dB")
    return figure


REPORT = Report(
    page="results-restoration.md",
    command=COMMAND,
    values=values,
    tables={"figures": figures_table(KEYS), "prompts": prompts, "by-rate": by_rate},
    plots={"psnr": psnr_plot},
)
