"""`dekag experiment overall`: generation and transmission together, from a sweep's rows.

DeKA-g beside no alignment, MAKD alone, CALA alone and the best digital delivery, on prompts of topics that
the edge does not know; and after how many pictures an update has paid for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.documents import parse_json, read_json
from dekag.errors import DekagError, InvalidInputError
from dekag.experiments.consistency import bootstrap_ci95
from dekag.experiments.digital import Ladder, picture_ladders
from dekag.experiments.files import write_rows
from dekag.experiments.headline import RESULTS, record
from dekag.generation.images import IMAGE_FORMATS
from dekag.link.source import encode
from dekag.places import SWEEPS
from dekag.sweeps import engine
from dekag.sweeps.engine import Row
from dekag.sweeps.grid import WORLD, Sweep, read_sweep
from dekag.sweeps.station import Station
from dekag.sweeps.table import save_plot
from dekag.world import TOPICS

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment overall"
SWEEP = SWEEPS / "overall.yaml"
FOLDER = "overall"
USUAL_QUALITY = 75  # of WebP, where nobody asks for another
FILES = {"webp": "WebP", "avif": "AVIF", "jpeg": "JPEG", "usual": f"WebP at {USUAL_QUALITY}"}
NEEDED = ("psnr_db", "clip", "dino", "consistency", "probe")
PAGE = Path("docs/results-overall.md")
TITLES = {
    "unaligned": "no alignment",
    "makd": "MAKD alone",
    "cala": "CALA alone",
    "deka-g": "**DeKA-g**",
    "digital": "best digital",
}


def run_overall(
    *,
    sweep: Path = SWEEP,
    ray: str | None = None,
    workers: int | None = None,
    results: Path = RESULTS,
    page: Path = PAGE,
    runs: Path = engine.RUNS,
) -> None:
    """Measure what is not measured yet, then write figures, tables, plots and page.

    Args:
        sweep: the grid.
        ray: as `dekag.sweeps.engine.run` takes it.
        workers: of Ray.
        results: where headline.json is.
        page: where the page goes.
        runs: where finished cells and pictures are kept.

    Raises:
        DekagError: cells failed; those that did not are kept.
    """
    grid = read_sweep(sweep)
    names = {delivery.name for delivery in grid.deliveries}
    if not {"unaligned", "deka-g"} <= names or WORLD in grid.topics or not set(NEEDED) <= set(grid.metrics):
        allowed = (
            f"a grid of unaligned and deka-g, {', '.join(NEEDED)}, on topics that the edge does not know"
        )
        raise InvalidInputError(str(sweep), allowed, ", ".join(sorted(names)))
    outcome = engine.run(grid, runs=runs, ray=ray, workers=workers)
    missing = len(grid.cells()) - len(outcome.rows)
    if missing:
        raise DekagError(f"{missing} of {len(grid.cells())} cells failed; run it again")
    even = break_even(Station(grid.profile, runs), grid, outcome.rows)
    write(grid, outcome.rows, even, results, page)


def per_picture(rows: Sequence[Row], delivery: str, metric: str = "consistency") -> Array:
    """Mean of a metric over channels, SNRs, rates and seeds for each picture of each topic, (pictures,)."""
    topics: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["cell"]["delivery"]["name"] == delivery:
            topics.setdefault(row["cell"]["topic"], []).append(row["metrics"][metric])
    means: Array = np.concatenate([np.mean(values, axis=0) for values in topics.values()])
    return means


def break_even(station: Station, sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """After how many pictures each topic's update has cost less backhaul than the pictures as files.

    A file of equal quality is one whose consistency with the cloud's picture is, in the mean over the topic's
    pictures, what DeKA-g's received picture has at the best SNR and rate of the sweep.
    """
    best_snr, best_rate = max(sweep.snr_db), max(sweep.cbr)
    found = []
    for topic in sweep.topics:
        at_best = [
            row
            for row in rows
            if (row["cell"]["delivery"]["name"], row["cell"]["topic"]) == ("deka-g", topic)
            and (row["cell"]["link"]["snr_db"], row["cell"]["cbr"]) == (best_snr, best_rate)
        ]
        target = float(np.mean([row["metrics"]["consistency"] for row in at_best]))
        size = int(at_best[0]["update_bytes"])
        row: Row = {"topic": topic, "kind": TOPICS[topic].kind, "update_bytes": size}
        row["consistency"] = round(target, 4)
        pictures = station.references(topic, sweep.prompts)
        ladders = [picture_ladders(picture, station.scorer, station.runs) for picture in pictures]
        for image_format in IMAGE_FORMATS:
            bytes_ = file_bytes([each[(image_format, False)] for each in ladders], target)
            row[f"{image_format}_bytes"] = round(bytes_, 1)
            row[f"{image_format}_images"] = math.ceil(size / bytes_)
        usual = float(np.mean([len(encode(picture, "webp", USUAL_QUALITY)) for picture in pictures]))
        row |= {"usual_bytes": round(usual, 1), "usual_images": math.ceil(size / usual)}
        found.append(row)
    return found


def file_bytes(ladders: Sequence[Ladder], target: float) -> float:
    """Mean bytes of files at the lowest quality setting whose mean consistency reaches `target`.

    Every picture gets as many bytes as it is allowed; the allowance rises until the mean consistency is
    reached. If it never is, the largest files count.
    """
    allowances = sorted({size for ladder in ladders for size in ladder.sizes})
    mean_size = 0.0
    for allowed in allowances:
        sizes, scores = [], []
        for ladder in ladders:
            rung = max(ladder.within(allowed), 0)
            sizes.append(ladder.sizes[rung])
            scores.append(float(ladder.values[rung, 1:].mean()))
        mean_size = float(np.mean(sizes))
        if np.mean(scores) >= target:
            return mean_size
    return mean_size


def gain(before: Array, after: Array) -> float:
    """Gain of the mean, percent."""
    return float(100 * (after.mean() / before.mean() - 1))


def write(sweep: Sweep, rows: Sequence[Row], even: Sequence[Row], results: Path, page: Path) -> None:
    """Write results/overall/*, the figures of headline.json and the page."""
    folder = results / FOLDER
    write_rows(folder / "cells.jsonl", rows)
    write_rows(folder / "break-even.jsonl", even)
    none, both = per_picture(rows, "unaligned"), per_picture(rows, "deka-g")
    value, ci95 = bootstrap_ci95(gain, none.tolist(), both.tolist())
    record("overall_gain_percent", value, "%", command=COMMAND, count=len(both), ci95=ci95, results=results)
    images = [row["webp_images"] for row in even]
    mean, ci95 = bootstrap_ci95(lambda each: float(each.mean()), images)
    record(
        "break_even_images", mean, "images", command=COMMAND, count=len(images), ci95=ci95, results=results
    )
    save_plot(rows, "consistency", folder / "consistency.svg")
    save_plot(rows, "psnr_db", folder / "psnr.svg")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_text(sweep, rows, even, results))


def page_text(sweep: Sweep, rows: Sequence[Row], even: Sequence[Row], results: Path) -> str:
    """docs/results-overall.md."""
    figures = read_json(results / "headline.json")
    links = ", ".join(f"{link.get('fading', 'rayleigh')}" for link in sweep.links)
    lines = [
        "# Overall: generation and transmission together",
        "",
        f"Written by `{COMMAND}` from its measurements; do not edit. {sweep.prompts} held-out prompts of",
        f"each of {len(sweep.topics)} topics that the edge does not know; {links};",
        f"SNR {_list(sweep.snr_db)} dB; CBR {', '.join(f'1/{1 / cbr:.0f}' for cbr in sweep.cbr)}.",
        "Consistency is the mean of the CLIP- and DINO-score of the *received* picture against the",
        "cloud's. Updates and adapters are those that ship.",
        "",
        "| figure | value | interval | n |",
        "|---|---:|---:|---:|",
    ]
    for key in ("overall_gain_percent", "break_even_images"):
        each = figures[key]
        low, high = each["ci95"]
        interval = f"{low:.1f} .. {high:.1f}"
        lines.append(f"| `{key}` | {each['value']:.4g} {each['unit']} | {interval} | {each['n']} |")
    lines += ["", "## Both halves", "", *_deliveries_table(rows)]
    lines += [
        "",
        "![Consistency](../results/overall/consistency.svg)",
        "",
        "![PSNR](../results/overall/psnr.svg)",
    ]
    lines += ["", "## By topic: consistency", "", *_topics_table(rows)]
    lines += ["", "## By SNR: consistency", "", *_snr_table(rows)]
    lines += ["", "## Break-even", "", *_break_even_text(even, results)]
    lines += ["", "Every cell: `results/overall/cells.jsonl`; `break-even.jsonl`.", ""]
    return "\n".join(lines)


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _present(rows: Sequence[Row]) -> list[str]:
    there = {row["cell"]["delivery"]["name"] for row in rows}
    return [name for name in TITLES if name in there]


def _deliveries_table(rows: Sequence[Row]) -> list[str]:
    none = per_picture(rows, "unaligned")
    lines = [
        "| delivery | consistency | gain | interval | CLIP | DINO | probe | PSNR, dB | uses | backhaul, B |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in _present(rows):
        own = [row for row in rows if row["cell"]["delivery"]["name"] == name]
        both = per_picture(rows, name)
        value, (low, high) = bootstrap_ci95(gain, none.tolist(), both.tolist())
        means = {m: float(per_picture(rows, name, m).mean()) for m in ("clip", "dino", "probe", "psnr_db")}
        uses = np.mean([row["channel_uses"] for row in own])
        sent = np.mean([row["backhaul_bytes"] for row in own])
        shown = "|" if name == "unaligned" else f"{value:+.1f} % | {low:+.1f} .. {high:+.1f}"
        lines.append(
            f"| {TITLES[name]} | {both.mean():.3f} | {shown} "
            f"| {means['clip']:.3f} | {means['dino']:.3f} | {100 * means['probe']:.0f} % "
            f"| {means['psnr_db']:.1f} | {uses:.0f} | {sent:.0f} |"
        )
    return [
        *lines,
        "",
        "Uses are channel uses of a picture, backhaul is bytes of a picture from cloud to edge.",
        "PSNR is against what was sent: the edge's own picture, or the cloud's for a digital delivery. A",
        "picture that does not arrive digitally counts as the mean picture of the world, weighted with the",
        "chance that it does not, and its sender picks what promises the best consistency, without the bytes",
        "that the receiver knows anyway. All semantic deliveries meet the same fades and noise. An update's",
        "own bytes are counted under break-even.",
    ]


def _topics_table(rows: Sequence[Row]) -> list[str]:
    names = _present(rows)
    lines = ["| topic | " + " | ".join(TITLES[name].strip("*") for name in names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for topic in dict.fromkeys(row["cell"]["topic"] for row in rows):
        own = [row for row in rows if row["cell"]["topic"] == topic]
        values = [f"{per_picture(own, name).mean():.3f}" for name in names]
        lines.append(f"| {topic} | " + " | ".join(values) + " |")
    return lines


def _snr_table(rows: Sequence[Row]) -> list[str]:
    names = _present(rows)
    lines = ["| CBR | SNR, dB | " + " | ".join(TITLES[name].strip("*") for name in names) + " |"]
    lines.append("|---|---:|" + "---:|" * len(names))
    for cbr in dict.fromkeys(row["cell"]["cbr"] for row in rows):
        for snr_db in dict.fromkeys(row["cell"]["link"]["snr_db"] for row in rows):
            own = [
                row for row in rows if (row["cell"]["cbr"], row["cell"]["link"]["snr_db"]) == (cbr, snr_db)
            ]
            values = [f"{per_picture(own, name).mean():.3f}" for name in names]
            lines.append(f"| 1/{1 / cbr:.0f} | {snr_db:g} | " + " | ".join(values) + " |")
    return lines


def _break_even_text(even: Sequence[Row], results: Path) -> list[str]:
    sizes_of = " | ".join(f"{shown}, B" for shown in FILES.values())
    after = " | ".join(f"after, {shown}" for shown in FILES.values())
    lines = [
        "Pictures after which an update has cost less backhaul than sending each picture from the cloud as a",
        "file of equal quality: equal consistency with the cloud's picture as DeKA-g has at the best SNR and",
        "rate of the sweep.",
        "",
        f"| topic | update, B | consistency | {sizes_of} | {after} |",
        "|---|---:|---:|" + "---:|" * 2 * len(FILES),
    ]
    for row in even:
        sizes = " | ".join(f"{row[f'{name}_bytes']:.0f}" for name in FILES)
        images = " | ".join(str(row[f"{name}_images"]) for name in FILES)
        lines.append(
            f"| {row['topic']} | {row['update_bytes']:,} | {row['consistency']:.3f} | {sizes} | {images} |"
        )
    lines += [
        "",
        f"*WebP at {USUAL_QUALITY}* is a file of usual quality, better than what DeKA-g delivers. Files of",
        "equal consistency are so small because the judges see 64 x 64 pixels and pictures of this world are",
        "flat: they forgive a blur that people would not.",
    ]
    trainings = results / "gka" / "trainings.jsonl"
    return lines if not trainings.exists() else [*lines, "", *_smaller_updates(even, trainings)]


def _smaller_updates(even: Sequence[Row], trainings: Path) -> list[str]:
    """Break-even of the other updates that `dekag experiment gka` trained, against the same files."""
    webp = {row["topic"]: row["webp_bytes"] for row in even}
    tried: dict[str, dict[str, tuple[int, float]]] = {}
    for line in trainings.read_text().splitlines():
        each: dict[str, Any] = parse_json(line, str(trainings))
        config = each["config"]
        if config["seed"] != 0 or config["method"] not in ("makd", "metaword") or each["topic"] not in webp:
            continue
        what = (
            "metaword alone"
            if config["method"] == "metaword"
            else f"rank {config['rank']}, {config['layers']}"
        )
        for bits, size in each["bytes"].items():
            name = what if config["method"] == "metaword" else f"{what}, {bits} bits"
            score = each["rows"][bits]["consistency"]
            tried.setdefault(name, {}).setdefault(each["topic"], (size, score))
    lines = [
        "Smaller updates, trained by `dekag experiment gka`, against the same files although their pictures",
        "are less consistent; consistency without a channel, of that experiment's prompts:",
        "",
        "| update | topics | bytes | consistency | WebP pictures |",
        "|---|---:|---:|---:|---:|",
    ]
    means = {
        name: (
            len(found),
            float(np.mean([size for size, _ in found.values()])),
            float(np.mean([score for _, score in found.values()])),
            float(np.mean([size / webp[topic] for topic, (size, _) in found.items()])),
        )
        for name, found in tried.items()
    }
    for name, (topics, size, score, images) in sorted(means.items(), key=lambda each: each[1][1]):
        lines.append(f"| {name} | {topics} | {size:,.0f} | {score:.3f} | {images:.0f} |")
    return lines
