"""docs/results-digital.md from results/digital/: CALA beside the best digital sender."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, Report, Row, figures_table, read_rows, table
from dekag.evaluation.registry import MISSING, read_figures
from dekag.evaluation.reports import cala, end_to_end
from dekag.evaluation.studies.digital import (
    COMMAND,
    FOLDER,
    RATES,
    USES,
    Place,
    ahead_from_db,
    over_sender,
    place_of,
)
from dekag.evaluation.studies.end_to_end import COMMAND as OVERALL

COLUMNS = {
    "best-file": "whole file",
    "best": "bare file",
    "best-harq": "bare file, HARQ",
    "shannon-outage": "bound, fades unknown",
    "shannon-ergodic": "bound, all slots",
}
STYLES = {
    "best": ("image file", plots.SECOND),
    "best-harq": ("with HARQ", plots.FOURTH),
    "shannon-outage": ("Shannon bound", plots.BASE),
}
CROSSINGS = {
    "PSNR": ("best", "psnr_db"),
    "PSNR, with HARQ": ("best-harq", "psnr_db"),
    "consistency": ("consistent", "consistency"),
    "consistency, with HARQ": ("consistent-harq", "consistency"),
}
"""What a sender maximises and is compared by -> the sender and the metric."""
SHOWN_PLACE = (round(RATES[2], 6), 10.0)
SHOWN_CHANNELS = {"awgn": "awgn", "rayleigh-1us": "rayleigh"}
"""Channels of both alignments' grid: as they are called here and there."""
SHOWN_CHANNEL, SHOWN_RATES = "rayleigh-1us", (RATES[0], RATES[2])


def leads(results: Path) -> list[Row]:
    """CALA beside the best digital sender, by cell."""
    return read_rows(results / FOLDER / "leads.jsonl")


def cells(results: Path) -> list[Row]:
    """Every digital sender, by cell."""
    return read_rows(results / FOLDER / "rivals.jsonl")


def values(results: Path) -> Mapping[str, str]:
    """What the tables do not say."""
    rows = leads(results)
    never = sum(row["channel_use_ratio"] is None for row in rows)
    losing = sum(row["lead_db"] < 0 for row in rows)
    found = {
        "cells": str(len(rows)),
        "losing_conditions": str(losing),
        "never": str(never),
        "most_uses": f"{USES[-1]:,}",
        "images": MISSING,
        "first_images": MISSING,
        "unsent": MISSING,
    }
    if lead := read_figures(results).get("digital_lead_db"):
        found["images"] = str(lead["n"])
    with contextlib.suppress(FileNotFoundError):
        found["first_images"] = str(cala.setup(results)["pictures"])
    with contextlib.suppress(FileNotFoundError):
        found["unsent"] = f"{_overall(results, 'prompt-only-taught'):.2f}"
    return found


def _overall(results: Path, delivery: str, fading: str | None = None) -> float:
    """Mean consistency of a delivery at the shown rate and SNR, where both alignments were measured."""
    found = [
        row["metrics"]["consistency"]
        for row in end_to_end.points(results)
        if (cell := row["cell"])["delivery"]["name"] == delivery
        and fading in (None, cell["link"]["fading"])
        and (round(cell["cbr"], 6), cell["link"]["snr_db"]) == SHOWN_PLACE
    ]
    if not found:
        raise NotMeasuredError(OVERALL)
    return float(np.mean(found))


def senders_table(results: Path) -> Lines:
    """Consistency of senders that maximise PSNR, or consistency, beside CALA and DeKA-g."""
    here, lines = {place_of(row): row for row in leads(results)}, []
    maximised = _most_consistent(results)
    for channel, fading in SHOWN_CHANNELS.items():
        place = (channel, *SHOWN_PLACE)
        if (row := here.get(place)) is None:
            raise NotMeasuredError(COMMAND)
        own = [row["digital_consistency"], maximised.get(place), row["semantic_consistency"]]
        others = [_overall(results, name, fading) for name in ("digital", "deka-g")]
        shown = (MISSING if value is None else f"{value:.3f}" for value in (*own, *others))
        lines.append([channel, *shown])
    header = ["sender that maximises PSNR", "sender that maximises consistency", "CALA"]
    header += ["sender that maximises consistency, other images", "DeKA-g, other images"]
    return table(["consistency", *header], lines)


def _most_consistent(results: Path) -> dict[Place, float]:
    """Consistency of the sender that maximises it, by cell."""
    return {place_of(row): row["consistency"] for row in cells(results) if row["rival"] == "consistent"}


def crossovers_table(results: Path) -> Lines:
    """The SNR from which on a digital sender is ahead at each rate, in the mean over the channels."""
    rows, rivals = leads(results), cells(results)
    rates = sorted({row["cbr"] for row in rows}, reverse=True)
    highest_db = max(row["snr_db"] for row in rows)
    lines = []
    for what, (sender, metric) in CROSSINGS.items():
        compared = over_sender(rows, rivals, sender, metric)
        found = [ahead_from_db(compared, cbr) for cbr in rates] if compared else []
        shown = [f"not up to {highest_db:g} dB" if each is None else f"{each:.1f} dB" for each in found]
        lines.append([what, *(shown or [MISSING] * len(rates))])
    return table(["compared by", *(f"CBR 1/{1 / cbr:.0f}" for cbr in rates)], lines)


def leads_table(results: Path) -> Lines:
    """The lead by channel, by rate and by SNR, over the best baseline and over it with HARQ."""
    harq = {place_of(row): row["psnr_db"] for row in cells(results) if row["rival"] == "best-harq"}
    maximised = _most_consistent(results)
    groups: dict[str, list[Row]] = {"all cells": leads(results)}
    for name, shown in (("channel", "{}"), ("cbr", "CBR 1/{:.0f}"), ("snr_db", "{:g} dB")):
        for row in groups["all cells"]:
            group = shown.format(1 / row["cbr"] if name == "cbr" else row[name])
            groups.setdefault(group, []).append(row)
    lines = []
    for group, own in groups.items():
        lead = np.mean([row["lead_db"] for row in own])
        over_harq = np.mean([row["semantic_psnr_db"] - harq[place_of(row)] for row in own])
        consistency = np.mean([row["semantic_consistency"] - row["digital_consistency"] for row in own])
        over_most = MISSING
        if all(place_of(row) in maximised for row in own):
            ahead = [row["semantic_consistency"] - maximised[place_of(row)] for row in own]
            over_most = f"{np.mean(ahead):+.3f}"
        losing = sum(row["lead_db"] < 0 for row in own)
        numbers = [f"{lead:+.2f}", f"{over_harq:+.2f}", f"{consistency:+.3f}", over_most]
        lines.append([group, *numbers, f"{losing} of {len(own)}"])
    header = ["CALA's lead", "PSNR, dB", "over HARQ, dB", "consistency, over a sender that maximises PSNR"]
    return table([*header, "over one that maximises consistency", "cells behind"], lines)


def psnr_tables(results: Path) -> Lines:
    """PSNR at the highest rate, channel by channel, and where most images are lost."""
    rows = cells(results)
    own = {place_of(row): row["semantic_psnr_db"] for row in leads(results)}
    cbr = max(row["cbr"] for row in rows)
    lines: Lines = []
    for channel in dict.fromkeys(row["channel"] for row in rows):
        by_snr: dict[float, dict[str, Row]] = {}
        for row in rows:
            if (row["channel"], row["cbr"]) == (channel, cbr):
                by_snr.setdefault(row["snr_db"], {})[row["rival"]] = row
        body = []
        for snr_db, cell in by_snr.items():
            mine = own.get((channel, cbr, snr_db))
            body.append(
                [f"{snr_db:g}", "" if mine is None else f"{mine:.1f}"]
                + [f"{cell[baseline]['psnr_db']:.1f}" for baseline in COLUMNS]
                + [f"{100 * cell['best']['lost']:.0f} %", f"{100 * cell['best-file']['unfit']:.0f} %"]
            )
        header = ["SNR, dB", "CALA", *COLUMNS.values(), "bare files lost", "whole files that do not fit"]
        lines += [f"### {channel}", "", *table(header, body, words=()), ""]
    return lines[:-1]


def failures(results: Path) -> Lines:
    """The highest SNR at which more than half of the images are lost."""
    rows = cells(results)
    rates = sorted({row["cbr"] for row in rows}, reverse=True)
    lines = []
    for channel in dict.fromkeys(row["channel"] for row in rows):
        for baseline in ("best-file", "best"):
            limits = [fails_up_to_db(rows, channel, cbr, baseline) for cbr in rates]
            shown = ["never" if limit is None else f"{limit:g} dB" for limit in limits]
            lines.append([channel, COLUMNS[baseline], *shown])
    return table(["channel", "sender", *(f"CBR 1/{1 / cbr:.0f}" for cbr in rates)], lines, words=(0, 1))


def fails_up_to_db(rows: Sequence[Row], channel: str, cbr: float, baseline: str) -> float | None:
    """The highest SNR of the grid, dB, at which more than half of the images do not arrive, if any."""
    cell = [row for row in rows if (row["channel"], row["cbr"], row["rival"]) == (channel, cbr, baseline)]
    return max((row["snr_db"] for row in cell if row["lost"] > 0.5), default=None)


def decoded(results: Path) -> Lines:
    """Deliveries that were really decoded, beside what was predicted of them."""
    checks = read_rows(results / FOLDER / "decoded.jsonl")
    lines = []
    for most in sorted({row["max_transmissions"] for row in checks}):
        own = [row for row in checks if row["max_transmissions"] == most]
        means = {
            name: float(np.mean([row[name] for row in own]))
            for name in ("predicted_arrival", "arrived", "predicted_psnr_db", "psnr_db")
        }
        lines.append(
            [
                str(most),
                str(len(own)),
                f"{100 * means['predicted_arrival']:.0f} %",
                f"{100 * means['arrived']:.0f} %",
                f"{means['predicted_psnr_db']:.2f}",
                f"{means['psnr_db']:.2f}",
            ]
        )
    header = [
        "transmissions allowed",
        "n",
        "predicted to arrive",
        "arrived",
        "predicted PSNR, dB",
        "PSNR, dB",
    ]
    return table(header, lines, words=())


def psnr_plot(results: Path) -> Any:
    """PSNR against SNR over one channel, at the highest and at a low rate."""
    rows = [row for row in cells(results) if row["channel"] == SHOWN_CHANNEL]
    own = [row for row in leads(results) if row["channel"] == SHOWN_CHANNEL]
    figure, axes = plots.panels(2, height_in=3.6, sharey=True)
    for axis, cbr in zip(axes[0], SHOWN_RATES, strict=True):
        for baseline, (label, color) in STYLES.items():
            line = [row for row in rows if row["rival"] == baseline and abs(row["cbr"] - cbr) < 1e-6]
            snrs = [row["snr_db"] for row in line]
            bands = [row["psnr_ci95"] for row in line]
            plots.line(axis, snrs, [row["psnr_db"] for row in line], label, color, interval=bands)
        mine = [row for row in own if abs(row["cbr"] - cbr) < 1e-6]
        snrs, psnrs = [row["snr_db"] for row in mine], [row["semantic_psnr_db"] for row in mine]
        plots.line(axis, snrs, psnrs, "CALA", plots.OURS)
    plots.label_rates(axes[0], SHOWN_RATES, "PSNR, dB")
    return figure


def leads_plot(results: Path) -> Any:
    """The lead in every cell: channels down, SNRs across, a panel for each rate."""
    rows = leads(results)
    channels = list(dict.fromkeys(row["channel"] for row in rows))
    snrs = sorted({row["snr_db"] for row in rows})
    found = {place_of(row): row["lead_db"] for row in rows}
    figure, axes = plots.panels(2, 2, height_in=4.6, sharex=True, sharey=True)
    for axis, cbr in zip(axes.ravel(), sorted({row["cbr"] for row in rows}, reverse=True), strict=False):
        grid = np.array([[found.get((name, cbr, snr), np.nan) for snr in snrs] for name in channels])
        image = axis.imshow(grid, cmap="PuOr", vmin=-6, vmax=6, aspect="auto")
        axis.set_xticks(range(0, len(snrs), 2), [f"{snr:g}" for snr in snrs[::2]])
        axis.set_yticks(range(len(channels)), channels)
        axis.grid(visible=False)
        axis.set_title(f"CBR 1/{1 / cbr:.0f}")
    for axis in axes[-1]:
        axis.set_xlabel("SNR, dB")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[-6, -3, 0, 3, 6])
    bar.set_label("digital ahead  <  lead in PSNR, dB  >  CALA ahead")
    return figure


REPORT = Report(
    page="results-digital.md",
    command=COMMAND,
    values=values,
    tables={
        "figures": figures_table(
            [
                "digital_lead_db",
                "digital_channel_use_ratio",
                "digital_ahead_from_db",
                "digital_harq_ahead_from_db",
                "digital_awgn_ahead_from_db",
                "digital_low_rate_consistency_lead",
            ]
        ),
        "leads": leads_table,
        "crossovers": crossovers_table,
        "senders": senders_table,
        "psnr": psnr_tables,
        "failures": failures,
        "decoded": decoded,
    },
    plots={"psnr": psnr_plot, "leads": leads_plot},
)
