"""`dekag sweep` and `dekag bench sweep`: measure the cells of a grid that no earlier run has measured.

A finished cell is a file of the `ResultStore`. A cell that fails is reported, the others go on, and the next
run tries it again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from tqdm import tqdm

from dekag.documents import read_json
from dekag.errors import DekagError
from dekag.evaluation.models import model_bank
from dekag.evaluation.pages import Row, write_rows
from dekag.evaluation.plots import write_plot
from dekag.evaluation.registry import RESULTS, current_commit, record
from dekag.evaluation.runner import Died, in_turn, machine, on_ray
from dekag.evaluation.store import ResultStore, write_whole
from dekag.evaluation.sweeps.evaluator import Evaluator, Measurement, as_one, identity
from dekag.evaluation.sweeps.grid import DELIVERIES, Cell, Sweep, grouped, read_sweep
from dekag.evaluation.sweeps.table import metric_plot, table
from dekag.files import check_folder

SCHEMA = 1
"""Version of a row; raised when fields change their meaning."""

RUNS = Path("runs/sweeps")
Machine = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run of a sweep came to.

    Attributes:
        rows: of all finished cells, in the order of the grid: the cell, what it depended on, where it was
            measured, and what came out.
        measured: cells that this run measured; the others were read.
        failed: each failed cell, and why.
    """

    rows: list[Row]
    measured: int
    failed: list[tuple[Cell, str]]


def run(sweep: Sweep, *, runs: Path = RUNS, ray: str | None = None, workers: int | None = None) -> Outcome:
    """Measure the cells of a sweep that no earlier run has measured.

    Args:
        sweep: the grid.
        runs: where finished cells and pictures are kept.
        ray: None: one cell after another in this process. "local": Ray on this machine. Else the address of
            a Ray cluster.
        workers: of Ray; None: as many as the cluster has CPUs.

    Raises:
        InvalidInputError: Ray is asked for and is not installed, or cannot be reached.
        NotFoundError: there is no such profile.
    """
    hashes, commit = identity(sweep.profile), current_commit()
    known = as_one(hashes)
    store = ResultStore(runs)
    cells = sweep.cells()
    paths = {cell: store.path("cells", cell.key(known)) for cell in cells}
    todo = [cell for cell in cells if not paths[cell].exists()]
    failed: list[tuple[Cell, str]] = []
    measured = 0
    results: Iterator[tuple[Cell, tuple[Measurement | str, Machine] | Died]]
    if ray is None or not todo:
        results = in_turn(partial(attempt, runs=runs), grouped(todo))
    else:
        results = on_ray(partial(attempt, runs=runs.absolute(), known=known), grouped(todo), ray, workers)
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc=sweep.name, unit="cell") as bar:
        for cell, result in results:
            bar.update()
            found, where = (result.why, {}) if isinstance(result, Died) else result
            if isinstance(found, str):
                failed.append((cell, found))
                bar.write(f"failed: {described(cell)}: {found}", file=sys.stderr)
                continue
            measured += 1
            row = {
                "schema": SCHEMA,
                "sweep": sweep.name,
                "key": paths[cell].stem,
                "cell": cell.model_dump(mode="json"),
                "hashes": hashes,
                "commit": commit,
                "machine": where,
                **asdict(found),
            }
            write_whole(paths[cell], json.dumps(row).encode())
    rows = [read_json(paths[cell]) for cell in cells if paths[cell].exists()]
    return Outcome([{**row, "sweep": sweep.name} for row in rows], measured, failed)


@cache
def evaluator(profile: str, runs: Path) -> Evaluator:
    """This process's evaluator."""
    return Evaluator(model_bank(profile), ResultStore(runs))


_identity = cache(lambda profile: as_one(identity(profile)))  # reads all weights


def attempt(cell: Cell, *, runs: Path, known: str | None = None) -> tuple[Measurement | str, Machine]:
    """What a cell came to, or why it failed, and where: one bad cell must not sink the rest.

    Args:
        cell: to measure.
        runs: where pictures are kept.
        known: the hash of all that results depend on, where the sweep was started; a worker elsewhere may
            have other models or other code.
    """
    try:
        if known is not None and _identity(cell.profile) != known:
            return "the worker has other models or other code than where the sweep was started", machine()
        return evaluator(cell.profile, runs).measure(cell), machine()
    except Exception as error:
        return f"{type(error).__name__}: {error}", machine()


def described(cell: Cell) -> str:
    """A cell in a few words."""
    return (
        f"{cell.delivery.name}, {cell.topic}, {cell.link.fading}, {cell.link.snr_db:g} dB, "
        f"CBR 1/{1 / cell.cbr:.0f}, seed {cell.seed}"
    )


BENCH_COMMAND = "dekag bench sweep"


def run_sweep(
    path: Path, *, ray: str | None, workers: int | None, results: Path = RESULTS, as_json: bool = False
) -> None:
    """Measure what is not measured yet of a grid, and write its rows, a table and plots.

    Args:
        path: the grid, a YAML file.
        ray, workers: as `run` takes them.
        results: a folder with the sweep's name is made in it.
        as_json: the summary is JSON, and all that goes to the standard output.

    Raises:
        InvalidInputError: the grid is not valid.
        DekagError: cells failed; what was measured is written nevertheless.
    """
    sweep = read_sweep(path)
    folder = results / sweep.name
    check_folder(folder)  # now, and not when all has been measured
    outcome = run(sweep, ray=ray, workers=workers)
    read = len(outcome.rows) - outcome.measured
    console = Console(stderr=as_json)
    if outcome.rows:
        write_rows(folder / "cells.jsonl", outcome.rows)
        (folder / "table.md").write_text("\n".join(table(outcome.rows)) + "\n")
        for metric in sweep.metrics:
            write_plot(metric_plot(outcome.rows, metric), folder / f"{metric}.svg")
        console.print(f"{outcome.measured} cells measured, {read} read -> {folder}")
    if as_json:
        failed = [{"cell": described(cell), "error": why} for cell, why in outcome.failed]
        summary = {"measured": outcome.measured, "read": read, "failed": failed, "folder": str(folder)}
        typer.echo(json.dumps(summary))
    if outcome.failed:
        for cell, why in outcome.failed:
            console.print(f"[red]failed[/red]: {described(cell)}: {why}")
        raise DekagError(f"{len(outcome.failed)} of {len(sweep.cells())} cells failed; run again to retry")


def bench_grid(cells: int) -> Sweep:
    """A grid of about that many cells of equal cost."""
    snrs_db = [round(20 * step / max(cells // 4 - 1, 1), 3) for step in range(cells // 4)]
    return Sweep(
        name="bench",
        deliveries=[DELIVERIES["unaligned"], DELIVERIES["cala"]],
        snr_db=snrs_db,
        cbr=[1 / 96, 1 / 384],
        prompts=8,
    )


def bench_sweep(cells: int, results: Path = RESULTS) -> dict[str, float]:
    """Seconds of the same grid serially and on one and two workers of Ray, pictures drawn beforehand.

    Everything counts: starting Ray, loading models in each worker, and measuring.
    """
    sweep = bench_grid(cells)
    count = len(sweep.cells())
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
                raise DekagError(f"{count - outcome.measured} of {count} cells failed: {outcome.failed[:1]}")
            for path in (runs / "cells").iterdir():
                path.unlink()
    overhead = (seconds["1 worker"] - seconds["serial"]) / count
    for what, value in seconds.items():
        Console().print(f"{what}: {value:.1f} s, {1000 * value / count:.0f} ms a cell")
    Console().print(f"Ray's overhead: {1000 * overhead:.0f} ms a cell, its start included")
    speed_up = seconds["1 worker"] / seconds["2 workers"]
    record("ray_speedup_2_workers", speed_up, "ratio", command=BENCH_COMMAND, count=count, results=results)
    return seconds
