"""`dekag experiment overall`: generation and transmission together, from a sweep's rows.

DeKA-g beside no alignment, MAKD alone, CALA alone and the best digital delivery, on prompts of topics that
the edge does not know; and after how many images an update has paid for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dekag.errors import DekagError, InvalidInputError
from dekag.evaluation.models import ModelBank, model_bank
from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import bootstrap_ci95, percent_gain
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies.digital import CONSISTENCY, Ladder, image_ladders
from dekag.evaluation.sweeps import command
from dekag.evaluation.sweeps.evaluator import Evaluator
from dekag.evaluation.sweeps.grid import WORLD, Sweep, read_sweep
from dekag.generation.images import IMAGE_FORMATS
from dekag.link.image_coding import encode
from dekag.paths import SWEEPS

Array = npt.NDArray[np.float64]

COMMAND = "dekag experiment overall"
SWEEP = SWEEPS / "overall.yaml"
FOLDER = "overall"
USUAL_QUALITY = 75  # of WebP, where nobody asks for another
NEEDED = ("psnr_db", "clip", "dino", "consistency", "probe")


def run_overall(
    *,
    profile: str | None = None,
    sweep: Path = SWEEP,
    ray: str | None = None,
    workers: int | None = None,
    results: Path = RESULTS,
    runs: Path = command.RUNS,
) -> None:
    """Measure what is not measured yet, then write rows and figures.

    Args:
        profile: the models; those of the grid if left out.
        sweep: the grid.
        ray: as `dekag sweep` takes it.
        workers: of Ray.
        results: where headline.json is.
        runs: where finished points and images are kept.

    Raises:
        InvalidInputError: the grid does not have what the figures follow from.
        NotFoundError: there is no such profile, or it has no evaluators, adapters or update of a topic.
        DekagError: points failed; those that did not are kept.
    """
    grid = read_sweep(sweep, profile=profile)
    names = {delivery.name for delivery in grid.deliveries}
    if not {"unaligned", "deka-g"} <= names or WORLD in grid.topics or not set(NEEDED) <= set(grid.metrics):
        allowed = (
            f"a grid of unaligned and deka-g, {', '.join(NEEDED)}, on topics that the edge does not know"
        )
        raise InvalidInputError(str(sweep), allowed, ", ".join(sorted(names)))
    bank = model_bank(grid.profile)
    check_complete(bank, grid)
    outcome = command.run(grid, runs=runs, ray=ray, workers=workers)
    missing = len(grid.points()) - len(outcome.rows)
    if missing:
        raise DekagError(f"{missing} of {len(grid.points())} points failed; run it again")
    write(outcome.rows, break_even(Evaluator(bank, ResultStore(runs)), grid, outcome.rows), results)


def check_complete(bank: ModelBank, sweep: Sweep) -> None:
    """Raises NotFoundError, before hours of measurement, for what every point would fail without."""
    _ = bank.evaluators
    if any(delivery.codec == "adapters" for delivery in sweep.deliveries):
        _ = bank.adapters
    if any(delivery.knowledge for delivery in sweep.deliveries):
        for topic in sweep.topics:
            bank.update(topic)


def per_image(rows: Sequence[Row], delivery: str, metric: str = "consistency") -> Array:
    """Mean of a metric over channels, SNRs, rates and seeds for each image of each topic, (images,)."""
    topics: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["cell"]["delivery"]["name"] == delivery:
            topics.setdefault(row["cell"]["topic"], []).append(row["metrics"][metric])
    # None, where a metric has no value, becomes NaN
    means: Array = np.concatenate([np.mean(np.array(each, float), axis=0) for each in topics.values()])
    return means


def image_topics(rows: Sequence[Row], delivery: str) -> list[str]:
    """The topic of each image of `per_image`."""
    images: dict[str, int] = {}
    for row in rows:
        if row["cell"]["delivery"]["name"] == delivery:
            images[row["cell"]["topic"]] = len(row["metrics"]["consistency"])
    return [topic for topic, count in images.items() for _ in range(count)]


def break_even(evaluator: Evaluator, sweep: Sweep, rows: Sequence[Row]) -> list[Row]:
    """After how many images each topic's update has cost less backhaul than the images as files.

    A file of equal quality is one whose consistency with the cloud's image is, in the mean over the topic's
    images, what DeKA-g's received image has at the best SNR and rate of the sweep.
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
        row: Row = {"topic": topic, "kind": evaluator.kind(topic), "update_bytes": size}
        row["consistency"] = round(target, 4)
        images = evaluator.references(topic, sweep.prompts)
        ladders = [image_ladders(image, evaluator.bank.scorer, evaluator.store) for image in images]
        for image_format in IMAGE_FORMATS:
            bytes_ = file_bytes([each[(image_format, False)] for each in ladders], target)
            row[f"{image_format}_bytes"] = round(bytes_, 1)
            row[f"{image_format}_images"] = math.ceil(size / bytes_)
        usual = float(np.mean([len(encode(image, "webp", USUAL_QUALITY)) for image in images]))
        row |= {"usual_bytes": round(usual, 1), "usual_images": math.ceil(size / usual)}
        found.append(row)
    return found


def file_bytes(ladders: Sequence[Ladder], target: float) -> float:
    """Mean bytes of files at the lowest quality setting whose mean consistency reaches `target`.

    Every image gets as many bytes as it is allowed; the allowance rises until the mean consistency is
    reached. If it never is, the largest files count.
    """
    allowances = sorted({size for ladder in ladders for size in ladder.sizes})
    mean_size = 0.0
    for allowed in allowances:
        sizes, scores = [], []
        for ladder in ladders:
            rung = max(ladder.best(allowed, CONSISTENCY), 0)
            sizes.append(ladder.sizes[rung])
            scores.append(float(ladder.values[rung, 1:].mean()))
        mean_size = float(np.mean(sizes))
        if np.mean(scores) >= target:
            return mean_size
    return mean_size


def write(rows: Sequence[Row], even: Sequence[Row], results: Path = RESULTS) -> None:
    """Write results/overall/* and the figures of headline.json."""
    folder = results / FOLDER
    write_rows(folder / "cells.jsonl", rows)
    write_rows(folder / "break-even.jsonl", even)
    none, both = per_image(rows, "unaligned"), per_image(rows, "deka-g")
    value, ci95 = bootstrap_ci95(
        percent_gain, none.tolist(), both.tolist(), groups=image_topics(rows, "deka-g")
    )
    record("overall_gain_percent", value, "%", command=COMMAND, count=len(both), ci95=ci95, results=results)
    for key, column in (("break_even_images", "webp_images"), ("break_even_q75_images", "usual_images")):
        images = [row[column] for row in even]
        median, ci95 = bootstrap_ci95(lambda each: float(np.median(each)), images)
        record(key, median, "images", command=COMMAND, count=len(images), ci95=ci95, results=results)
