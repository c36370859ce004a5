"""docs/results-photos.md from results/photos/: photographs through every baseline and a profile's links."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import (
    Lines,
    NotMeasuredError,
    Report,
    Row,
    figures_table,
    read_measured,
    read_rows,
    table,
)
from dekag.evaluation.studies.photos import (
    CHANNELS,
    COMMAND,
    CURVE_SNR_DB,
    FOLDER,
    PIXELS,
    RATES,
    SEMANTIC,
    SNRS_DB,
    SNRS_OF,
    HevcGap,
    rate_of,
)

NAMES = {
    "hevc": "HEVC",
    "jxl": "JPEG XL",
    "avif": "AVIF",
    "webp": "WebP",
    "jpeg": "JPEG",
    "hevc-capacity": "HEVC, capacity",
    "avif-capacity": "AVIF, capacity",
    PIXELS: "codec of pixels",
    SEMANTIC: "semantic",
}
"""Columns of the tables."""
FORMATS = ("hevc", "jxl", "avif", "webp", "jpeg")
COLORS = {
    "hevc": plots.SECOND,
    "avif": plots.THIRD,
    "jxl": plots.FIFTH,
    "webp": plots.FOURTH,
    "jpeg": "#56B4E9",
    "hevc-capacity": plots.BASE,
    PIXELS: plots.OURS,
    SEMANTIC: "#000000",
}
_SHOWN_RATES = (RATES[0], RATES[2], RATES[4])

Cells = dict[tuple[str, float, float], dict[str, Row]]


def cells(results: Path) -> Cells:
    """Rows by sender, by channel, rounded rate and SNR."""
    found: Cells = {}
    for row in read_rows(results / FOLDER / "senders.jsonl"):
        found.setdefault((row["channel"], row["cbr"], row["snr_db"]), {})[row["sender"]] = row
    return found


def _gap(results: Path) -> HevcGap:
    return HevcGap(**read_measured(results / FOLDER / "gap.json"))


def values(results: Path) -> Mapping[str, str]:
    """What the tables do not say."""
    found, gap = cells(results), _gap(results)
    gaps = read_rows(results / FOLDER / "gaps.jsonl")
    best = [max(FORMATS, key=lambda name: cell[name]["psnr_db"]) for cell in found.values()]
    beside = [cell for cell in found.values() if PIXELS in cell]
    ahead = [cell for cell in beside if cell[PIXELS]["psnr_db"] > max(cell[n]["psnr_db"] for n in FORMATS)]
    return {
        "photo_cells": str(len(found)),
        "hevc_best": str(best.count("hevc")),
        "avif_best": str(best.count("avif")),
        "pixels_cells": str(len(beside)),
        "pixels_best": str(len(ahead)),
        "gap_total": f"{gap.total_db:.2f} dB",
        "gap_code": f"{gap.code_db:.2f} dB",
        "gap_steps": f"{gap.steps_db:.2f} dB",
        "gap_largest": f"{max(abs(row['difference_db']) for row in gaps):.2f} dB",
    }


def psnr_tables(results: Path) -> Lines:
    """Mean PSNR, dB, of every sender: a table for each channel."""
    found = cells(results)
    lines: Lines = []
    for channel in CHANNELS:
        body = []
        for cbr in RATES:
            for snr_db in SNRS_DB:
                cell = found[channel, round(cbr, 6), snr_db]
                numbers = [f"{cell[name]['psnr_db']:.1f}" if name in cell else "" for name in NAMES]
                body.append([f"1/{1 / cbr:.0f}", f"{snr_db:g}", *numbers])
        lines += [f"### {channel}", "", *table(["CBR", "SNR, dB", *NAMES.values()], body, words=(0,)), ""]
    return lines[:-1] + departures(found)


def departures(found: Cells) -> Lines:
    """At which rates a codec of pixels of one's own was left out, and at which it sends fewer symbols."""
    own = {cbr: cell[PIXELS] for (_, cbr, _), cell in found.items() if PIXELS in cell}
    if not own:
        return []
    without = [f"1/{1 / cbr:.0f}" for cbr in RATES if round(cbr, 6) not in own]
    sent = [(f"1/{1 / cbr:.0f}", own[cbr]["sent_cbr"]) for cbr in sorted(own)[::-1] if "sent_cbr" in own[cbr]]
    lines: Lines = []
    if without:
        lines += [
            "",
            f"The codec of pixels was left out where it needs more symbols: at {', '.join(without)}.",
        ]
    if sent:
        said = ", ".join(f"{rate} ({cbr:.6g})" for rate, cbr in sent)
        lines += ["", f"Rates of the codec of pixels, with what it sends on average: {said}."]
    return lines


def crossover(results: Path, link: str) -> Lines:
    """How far the best format is ahead of a link, and the SNR at which it comes to be ahead."""
    found, snrs_db = cells(results), SNRS_OF[link]
    if not any(link in cell for cell in found.values()):
        raise NotMeasuredError(COMMAND)
    body = []
    for channel in CHANNELS:
        for cbr in RATES:
            own = [found[channel, round(cbr, 6), snr_db] for snr_db in snrs_db]
            if not all(link in cell for cell in own):
                continue  # a codec of one's own does not have every rate
            leads = [max(cell[n]["psnr_db"] for n in FORMATS) - cell[link]["psnr_db"] for cell in own]
            numbers = [f"{lead:+.1f}" for lead in leads]
            body.append([channel, f"1/{1 / cbr:.0f}", *numbers, crossing_text(snrs_db, leads)])
    header = ["channel", "CBR", *(f"{snr:g} dB" for snr in snrs_db), "crossover"]
    lines = table(header, body, words=(0, 1, 2 + len(snrs_db)))
    return lines + departures(found) if link == PIXELS else lines


def crossing_text(snrs_db: tuple[float, ...], leads: list[float]) -> str:
    """The SNR at which a lead that grows with the SNR becomes positive, interpolated linearly."""
    if leads[0] > 0:
        return f"below {snrs_db[0]:g} dB"
    for i in range(1, len(leads)):
        if leads[i] > 0:
            share = -leads[i - 1] / (leads[i] - leads[i - 1])
            return f"{snrs_db[i - 1] + share * (snrs_db[i] - snrs_db[i - 1]):.0f} dB"
    return f"above {snrs_db[-1]:g} dB"


def gaps(results: Path) -> Lines:
    """HEVC + LDPC + QAM over AWGN beside the arithmetic: PSNR as it is, and how far that is off, dB."""
    rows = read_rows(results / FOLDER / "gaps.jsonl")
    at = {(row["cbr"], row["snr_db"]): row for row in rows}
    body = []
    for cbr in RATES:
        own = [at[round(cbr, 6), snr_db] for snr_db in SNRS_DB]
        shown = [f"{row['psnr_db']:.1f} ({row['difference_db']:+.2f})" for row in own]
        body.append([f"1/{1 / cbr:.0f}", *shown])
    return table(["CBR", *(f"{snr_db:g} dB" for snr_db in SNRS_DB)], body)


def decoded(results: Path) -> Lines:
    """Deliveries that were really decoded, beside what was predicted of them."""
    rows = read_rows(results / FOLDER / "decoded.jsonl")
    body = []
    for channel in CHANNELS:
        own = [row for row in rows if row["channel"] == channel]
        if not own:
            continue
        means = {
            name: float(np.mean([row[name] for row in own]))
            for name in ("predicted_arrival", "arrived", "predicted_psnr_db", "psnr_db")
        }
        body.append(
            [
                channel,
                str(len(own)),
                f"{100 * means['predicted_arrival']:.0f} %",
                f"{100 * means['arrived']:.0f} %",
                f"{means['predicted_psnr_db']:.2f}",
                f"{means['psnr_db']:.2f}",
            ]
        )
    header = ["channel", "n", "predicted to arrive", "arrived", "predicted PSNR, dB", "PSNR, dB"]
    return table(header, body)


def photographs(results: Path) -> Lines:
    """The photographs, with their package and sizes."""
    body = [
        [row["name"], row["source"], "x".join(map(str, row["original"])), "x".join(map(str, row["sent"]))]
        for row in read_rows(results / FOLDER / "photographs.jsonl")
    ]
    return table(["photograph", "from", "pixels", "sent with"], body, words=(0, 1))


def rate_plot(results: Path) -> Any:
    """PSNR against rate at one SNR, a panel for each channel."""
    found = cells(results)
    figure, axes = plots.panels(2, height_in=3.8, sharey=True)
    for axis, channel in zip(axes[0], CHANNELS, strict=True):
        for sender, color in COLORS.items():
            own = [found[channel, round(cbr, 6), CURVE_SNR_DB] for cbr in reversed(RATES)]
            rows = [cell[sender] for cell in own if sender in cell]
            if not rows:
                continue
            style = "--" if sender.endswith("capacity") else "-"
            x, y = [rate_of(row) for row in rows], [row["psnr_db"] for row in rows]
            plots.line(axis, x, y, NAMES[sender], color, style=style)
        axis.set_xscale("log")
        axis.set_xticks(RATES, [f"1/{1 / cbr:.0f}" for cbr in RATES])
        axis.minorticks_off()
        axis.set_title(f"{channel}, {CURVE_SNR_DB:g} dB")
        axis.set_xlabel("CBR, channel uses per value")
    axes[0][0].set_ylabel("PSNR, dB")
    for axis in axes[0]:
        plots.label_lines(axis)
    return figure


def snr_plot(results: Path) -> Any:
    """PSNR against SNR over AWGN at three rates."""
    found = cells(results)
    figure, axes = plots.panels(3, height_in=3.8, sharey=True)
    for axis, cbr in zip(axes[0], _SHOWN_RATES, strict=True):
        for sender in ("hevc", "webp", "hevc-capacity", PIXELS, SEMANTIC):
            own = {snr: found["awgn", round(cbr, 6), snr] for snr in SNRS_DB}
            points = [(snr, cell[sender]["psnr_db"]) for snr, cell in own.items() if sender in cell]
            if not points:
                continue
            style = "--" if sender.endswith("capacity") else "-"
            x, y = [point[0] for point in points], [point[1] for point in points]
            plots.line(axis, x, y, NAMES[sender], COLORS[sender], style=style)
    plots.label_rates(axes[0], _SHOWN_RATES, "PSNR, dB")
    return figure


REPORT = Report(
    page="results-photos.md",
    command=COMMAND,
    values=values,
    tables={
        "figures": figures_table(["photos_tried", "hevc_capacity_gap_db"]),
        "psnr": psnr_tables,
        "crossover-pixels": partial(crossover, link=PIXELS),
        "crossover-semantic": partial(crossover, link=SEMANTIC),
        "gaps": gaps,
        "decoded": decoded,
        "photographs": photographs,
    },
    plots={"rate": rate_plot, "snr": snr_plot},
)
