"""`dekag sweep` and `dekag bench sweep`: measure the points of a grid that no earlier run has measured.

A finished point is a file of the `ResultStore`. A point that fails is reported, the others go on, and the
next run tries it again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from dekag.console import plain_console
from dekag.documents import read_json
from dekag.errors import DekagError, InvalidInputError
from dekag.evaluation.models import model_bank
from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.plots import write_plot
from dekag.evaluation.registry import RESULTS, current_commit, record
from dekag.evaluation.runner import WorkerDied, machine, run_on_ray, run_serially
from dekag.evaluation.store import ResultStore, write_whole
from dekag.evaluation.sweeps.checks import check_metrics, check_points
from dekag.evaluation.sweeps.evaluator import Evaluator, Measurement, as_one, identity
from dekag.evaluation.sweeps.grid import DELIVERIES, EvaluationPoint, Sweep, grouped, read_sweep
from dekag.evaluation.sweeps.table import metric_plot, table
from dekag.files import check_folder
from dekag.profile import load_profile

SCHEMA = 1
"""Version of a row; raised when fields change their meaning."""

RUNS = Path("runs/sweeps")
Machine = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run of a sweep came to.

    Attributes:
        rows: of all finished points, in the order of the grid: the point, what it depended on, where it was
            measured, and what came out.
        measured: points that this run measured; the others were read.
        failed: each failed point, and why.
    """

    rows: list[Row]
    measured: int
    failed: list[tuple[EvaluationPoint, str]]


def run(sweep: Sweep, *, runs: Path = RUNS, ray: str | None = None, workers: int | None = None) -> Outcome:
    """Measure the points of a sweep that no earlier run has measured.

    Args:
        sweep: the grid.
        runs: where finished points and images are kept.
        ray: None: one point after another in this process. "local": Ray on this machine. Else the address of
            a Ray cluster.
        workers: of Ray; None: as many as the cluster has CPUs.

    Raises:
        InvalidInputError: Ray is asked for and is not installed, or cannot be reached; or points that are to
            be measured cannot be.
        NotFoundError: there is no such profile, or it lacks a scorer that is needed.
        FileError: pictures are damaged or too large; names all of them.
    """
    hashes, commit = identity(sweep.profile), current_commit()
    known = as_one(hashes)
    store = ResultStore(runs)
    points = sweep.points()
    paths = {point: store.path("cells", point.key(known)) for point in points}
    todo = [point for point in points if not paths[point].exists()]
    check_metrics(sweep)
    check_points(todo)
    failed: list[tuple[EvaluationPoint, str]] = []
    measured = 0
    results: Iterator[tuple[EvaluationPoint, tuple[Measurement | str, Machine] | WorkerDied]]
    if ray is None or not todo:
        results = run_serially(partial(attempt, runs=runs), grouped(todo))
    else:
        results = run_on_ray(partial(attempt, runs=runs.absolute(), known=known), grouped(todo), ray, workers)
    with tqdm(total=len(points), initial=len(points) - len(todo), desc=sweep.name, unit="point") as bar:
        for point, result in results:
            bar.update()
            found, where = (result.why, {}) if isinstance(result, WorkerDied) else result
            if isinstance(found, str):
                failed.append((point, found))
                bar.write(f"failed: {described(point)}: {found}", file=sys.stderr)
                continue
            measured += 1
            row = {
                "schema": SCHEMA,
                "sweep": sweep.name,
                "key": paths[point].stem,
                "cell": point.model_dump(mode="json"),
                "hashes": hashes,
                "commit": commit,
                "machine": where,
                **asdict(found),
            }
            write_whole(paths[point], json.dumps(row).encode())
    rows = [read_json(paths[point]) for point in points if paths[point].exists()]
    return Outcome([{**row, "sweep": sweep.name} for row in rows], measured, failed)


@cache
def evaluator(profile: str, runs: Path) -> Evaluator:
    """This process's evaluator."""
    return Evaluator(model_bank(profile), ResultStore(runs))


_identity = cache(lambda profile: as_one(identity(profile)))  # reads all weights


def attempt(
    point: EvaluationPoint, *, runs: Path, known: str | None = None
) -> tuple[Measurement | str, Machine]:
    """What a point came to, or why it failed, and where: one bad point must not sink the rest.

    Args:
        point: to measure.
        runs: where images are kept.
        known: the hash of all that results depend on, where the sweep was started; a worker elsewhere may
            have other models or other code.
    """
    try:
        if known is not None and _identity(point.profile) != known:
            return "the worker has other models or other code than where the sweep was started", machine()
        return evaluator(point.profile, runs).measure(point), machine()
    except Exception as error:
        return f"{type(error).__name__}: {error}", machine()


def described(point: EvaluationPoint) -> str:
    """A point in a few words."""
    return (
        f"{point.delivery.name}, {point.topic}, {point.link.fading}, {point.link.snr_db:g} dB, "
        f"CBR 1/{1 / point.cbr:.0f}, seed {point.seed}"
    )


BENCH_COMMAND = "dekag bench sweep"


def run_sweep(
    path: Path,
    *,
    ray: str | None,
    workers: int | None,
    pictures: Path | None = None,
    traces: Path | None = None,
    metrics: Sequence[str] | None = None,
    results: Path = RESULTS,
    as_json: bool = False,
) -> None:
    """Measure what is not measured yet of a grid, and write its rows, a table and plots.

    Args:
        path: the grid, a YAML file.
        ray, workers: as `run` takes them.
        pictures: pictures to send, instead of what the grid sends.
        traces: folder of the links' traces, instead of what the grid says.
        metrics: instead of the grid's.
        results: a folder with the sweep's name is made in it.
        as_json: the summary is JSON, and all that goes to the standard output.

    Raises:
        InvalidInputError: the grid is not valid.
        DekagError: points failed; what was measured is written nevertheless.
    """
    try:
        sweep = read_sweep(path, pictures=pictures, traces=traces, metrics=metrics)
    except InvalidInputError as error:
        if metrics and error.field == "metrics":
            raise error.named("--metric") from None
        raise
    if sweep.pictures is not None and (note := sweep.pictures.found().skipped_note):
        plain_console(stderr=True).print(note, soft_wrap=True)
    folder = results / sweep.name
    check_folder(folder)  # now, and not when all has been measured
    outcome = run(sweep, ray=ray, workers=workers)
    read = len(outcome.rows) - outcome.measured
    console = plain_console(stderr=as_json)
    if outcome.rows:
        write_rows(folder / "cells.jsonl", outcome.rows)
        (folder / "table.md").write_text("\n".join(table(outcome.rows)) + "\n")
        for metric in sweep.metrics:
            write_plot(metric_plot(outcome.rows, metric), folder / f"{metric}.svg")
        console.print(f"{outcome.measured} points measured, {read} read -> {folder}", soft_wrap=True)
    if as_json:
        failed = [{"cell": described(point), "error": why} for point, why in outcome.failed]
        summary = {"measured": outcome.measured, "read": read, "failed": failed, "folder": str(folder)}
        typer.echo(json.dumps(summary))
    if outcome.failed:
        for point, why in outcome.failed:
            console.print(f"failed: {described(point)}: {why}", style="red", soft_wrap=True)
        raise DekagError(f"{len(outcome.failed)} of {len(sweep.points())} points failed; run again to retry")


def bench_grid(points: int, profile: str = "stickers") -> Sweep:
    """A grid of about that many points of equal cost.

    Without adapters, a profile sends unaligned alone; without a scorer, the received images have no scores.

    Raises:
        NotFoundError: there is no such profile.
    """
    models = load_profile(profile)
    deliveries = ["unaligned", *(["cala"] if models.adapters is not None else [])]
    cbrs = [1 / 96, 1 / 384]
    count = points // (len(deliveries) * len(cbrs))
    scores = {} if models.scorer is not None else {"metrics": ["psnr_db"]}
    return Sweep(
        name="bench",
        profile=profile,
        deliveries=[DELIVERIES[name] for name in deliveries],
        snr_db=[round(20 * step / max(count - 1, 1), 3) for step in range(count)],
        cbr=cbrs,
        prompts=8,
        **scores,
    )


def bench_sweep(points: int, profile: str = "stickers", results: Path = RESULTS) -> dict[str, float]:
    """Seconds of the same grid serially and on one and two workers of Ray, images drawn beforehand.

    Everything counts: starting Ray, loading models in each worker, and measuring.

    Args:
        points: about how many the grid has.
        profile: the models.
        results: where headline.json is.

    Raises:
        DekagError: a point failed.
        InvalidInputError: Ray is not installed, or the profile's codec cannot send at the rates of the grid.
        NotFoundError: there is no such profile.
    """
    sweep = bench_grid(points, profile)
    count = len(sweep.points())
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name)
        run(sweep.model_copy(update={"snr_db": [30.0]}), runs=runs)  # draws the references
        engines = {"serial": (None, None), "1 worker": ("local", 1), "2 workers": ("local", 2)}
        for what, (ray, workers) in engines.items():
            evaluator.cache_clear()
            model_bank.cache_clear()  # loading models counts for all
            start = time.perf_counter()
            outcome = run(sweep, runs=runs, ray=ray, workers=workers)
            seconds[what] = time.perf_counter() - start
            if outcome.measured != count:
                raise DekagError(f"{count - outcome.measured} of {count} points failed: {outcome.failed[:1]}")
            for path in (runs / "cells").iterdir():
                path.unlink()
    overhead = (seconds["1 worker"] - seconds["serial"]) / count
    for what, value in seconds.items():
        plain_console().print(f"{what}: {value:.1f} s, {1000 * value / count:.0f} ms a point")
    plain_console().print(f"Ray's overhead: {1000 * overhead:.0f} ms a point, its start included")
    speed_up = seconds["1 worker"] / seconds["2 workers"]
    record("ray_speedup_2_workers", speed_up, "ratio", command=BENCH_COMMAND, count=count, results=results)
    return seconds
