"""docs/results-overall.md from results/overall/: both alignments together, over the channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dekag.evaluation import plots
from dekag.evaluation.pages import Lines, NotMeasuredError, Report, Row, figures_table, read_rows, table
from dekag.evaluation.registry import MISSING
from dekag.evaluation.statistics import bootstrap_ci95, percent_gain
from dekag.evaluation.studies import makd
from dekag.evaluation.studies.end_to_end import COMMAND, FOLDER, USUAL_QUALITY, image_topics, per_image
from dekag.evaluation.sweeps.table import draw_lines

TITLES = {
    "unaligned": "no alignment",
    "makd": "MAKD alone",
    "cala": "CALA alone",
    "deka-g": "DeKA-g",
    "cala-restored": "CALA alone, restored at the receiver",
    "digital": "best digital",
    "prompt-only": "prompt only",
    "prompt-only-taught": "prompt and update only",
}
STYLES = {
    "unaligned": ("no alignment", plots.BASE),
    "makd": ("MAKD alone", plots.FOURTH),
    "cala": ("CALA alone", plots.THIRD),
    "deka-g": ("DeKA-g", plots.OURS),
    "digital": ("best digital", plots.SECOND),
}
FILES = {"webp": "WebP", "avif": "AVIF", "jpeg": "JPEG", "usual": f"WebP at quality {USUAL_QUALITY}"}
SHOWN_FADING = "rayleigh"


def points(results: Path) -> list[Row]:
    """Every cell of the sweep."""
    return read_rows(results / FOLDER / "cells.jsonl")


def deliveries(rows: Sequence[Row]) -> list[str]:
    """Deliveries that were measured."""
    there = {row["cell"]["delivery"]["name"] for row in rows}
    return [name for name in TITLES if name in there]


def values(results: Path) -> Mapping[str, str]:
    """How it was measured, and what the tables do not say."""
    rows = points(results)
    of = [row["cell"] for row in rows]
    return {
        "prompts": str(of[0]["prompts"]),
        "topics": str(len({point["topic"] for point in of})),
        "channels": ", ".join(dict.fromkeys(point["link"]["fading"] for point in of)),
        "snrs": ", ".join(f"{snr:g}" for snr in sorted({point["link"]["snr_db"] for point in of})),
        "rates": ", ".join(
            f"1/{1 / cbr:.0f}" for cbr in sorted({point["cbr"] for point in of}, reverse=True)
        ),
        **{
            f"{name.replace('-', '')}_consistency": f"{per_image(rows, name).mean():.2f}"
            if name in deliveries(rows)
            else MISSING
            for name in TITLES
        },
    }


def deliveries_table(results: Path) -> Lines:
    """Each delivery over all cells."""
    rows = points(results)
    none = per_image(rows, "unaligned")
    lines = []
    for name in deliveries(rows):
        own = [row for row in rows if row["cell"]["delivery"]["name"] == name]
        both = per_image(rows, name)
        value, (low, high) = bootstrap_ci95(
            percent_gain, none.tolist(), both.tolist(), groups=image_topics(rows, name)
        )
        gain = ["", ""] if name == "unaligned" else [f"{value:+.1f} %", f"{low:+.1f} .. {high:+.1f}"]
        means = {m: float(per_image(rows, name, m).mean()) for m in ("clip", "dino", "probe", "psnr_db")}
        lines.append(
            [
                f"**{TITLES[name]}**" if name == "deka-g" else TITLES[name],
                f"{both.mean():.3f}",
                *gain,
                f"{means['clip']:.3f}",
                f"{means['dino']:.3f}",
                f"{100 * means['probe']:.0f} %",
                f"{means['psnr_db']:.1f}" if math.isfinite(means["psnr_db"]) else "–",
                f"{np.mean([row['channel_uses'] for row in own]):.0f}",
                f"{np.mean([row['backhaul_bytes'] for row in own]):.0f}",
            ]
        )
    header = ["delivery", "consistency", "gain", "95 % interval", "CLIP", "DINO", "attributes correct"]
    return table([*header, "PSNR, dB", "channel uses", "backhaul, B"], lines)


def topics_table(results: Path) -> Lines:
    """Consistency by topic."""
    rows = points(results)
    names = deliveries(rows)
    lines = []
    for topic in dict.fromkeys(row["cell"]["topic"] for row in rows):
        own = [row for row in rows if row["cell"]["topic"] == topic]
        lines.append([topic, *(f"{per_image(own, name).mean():.3f}" for name in names)])
    return table(["topic", *(TITLES[name] for name in names)], lines)


def snr_table(results: Path) -> Lines:
    """Consistency by rate and SNR."""
    rows = points(results)
    names = deliveries(rows)
    places: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        places.setdefault((row["cell"]["cbr"], row["cell"]["link"]["snr_db"]), []).append(row)
    lines = [
        [f"1/{1 / cbr:.0f}", f"{snr_db:g}", *(f"{per_image(own, name).mean():.3f}" for name in names)]
        for (cbr, snr_db), own in places.items()
    ]
    return table(["CBR", "SNR, dB", *(TITLES[name] for name in names)], lines)


def break_even(results: Path) -> Lines:
    """After how many images an update has cost less backhaul than image files."""
    lines = []
    for row in read_rows(results / FOLDER / "break-even.jsonl"):
        sizes = [f"{row[f'{name}_bytes']:.0f}" for name in FILES]
        images = [str(row[f"{name}_images"]) for name in FILES]
        lines.append([row["topic"], f"{row['update_bytes']:,}", f"{row['consistency']:.3f}", *sizes, *images])
    header = ["topic", "update, B", "consistency", *(f"{name}, B" for name in FILES.values())]
    return table([*header, *(f"images, {name}" for name in FILES.values())], lines)


def smaller_updates(results: Path) -> Lines:
    """Break-even of every form of the updates that ship, against the same files.

    Raises:
        NotMeasuredError: the files were made for other updates, or there are no forms.
    """
    rows = read_rows(results / FOLDER / "break-even.jsonl")
    webp = {row["topic"]: row["webp_bytes"] for row in rows}
    made_for = {row["topic"]: row["update_bytes"] for row in rows}
    path = results / makd.FOLDER / "updates.jsonl"
    if not path.exists():
        raise NotMeasuredError(makd.COMMAND)
    tried: dict[str, list[tuple[int, float, float]]] = {}
    for each in read_rows(path):
        if each["topic"] in webp:
            if each["bytes"] != made_for[each["topic"]]:
                raise NotMeasuredError(COMMAND)
            for rung in each["ladder"]:
                found = (rung["bytes"], rung["gain"], rung["bytes"] / webp[each["topic"]])
                tried.setdefault(rung["form"], []).append(found)
    lines = []
    for form, own in sorted(tried.items(), key=lambda each: np.mean([size for size, *_ in each[1]])):
        size, gain, _ = np.mean(own, axis=0)
        images = np.median([images for *_, images in own])
        lines.append([form, f"{size:,.0f}", f"{gain:+.3f}", f"{images:,.0f}"])
    return table(["form", "bytes", "gain in consistency", "images, WebP"], lines)


def _against_snr(results: Path, metric: str, label: str) -> Any:
    by_fading: dict[str, list[Row]] = {}
    for row in points(results):
        by_fading.setdefault(row["cell"]["link"]["fading"], []).append(row)
    rows = by_fading.get(SHOWN_FADING) or next(iter(by_fading.values()))
    rates = sorted({row["cell"]["cbr"] for row in rows}, reverse=True)
    figure, axes = plots.panels(len(rates), height_in=3.6, sharey=True)
    for axis, cbr in zip(axes[0], rates, strict=True):
        draw_lines(axis, [row for row in rows if row["cell"]["cbr"] == cbr], metric, STYLES)
    plots.label_rates(axes[0], rates, label)
    return figure


def consistency_plot(results: Path) -> Any:
    """Consistency of received images against SNR."""
    return _against_snr(results, "consistency", "consistency with the cloud's image")


def psnr_plot(results: Path) -> Any:
    """PSNR against SNR."""
    return _against_snr(results, "psnr_db", "PSNR, dB")


REPORT = Report(
    page="results-overall.md",
    command=COMMAND,
    values=values,
    tables={
        "figures": figures_table(["overall_gain_percent", "break_even_images", "break_even_q75_images"]),
        "deliveries": deliveries_table,
        "topics": topics_table,
        "snr": snr_table,
        "break-even": break_even,
        "smaller-updates": smaller_updates,
    },
    plots={"consistency": consistency_plot, "psnr": psnr_plot},
)
