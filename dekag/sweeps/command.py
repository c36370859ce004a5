"""`dekag sweep` and `dekag bench sweep`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import typer
from rich.console import Console

from dekag.errors import DekagError
from dekag.experiments.files import write_rows
from dekag.experiments.headline import RESULTS, record
from dekag.files import check_folder
from dekag.sweeps import engine
from dekag.sweeps.grid import DELIVERIES, Sweep, read_sweep
from dekag.sweeps.table import save_plot, table

BENCH_COMMAND = "dekag bench sweep"


def run_sweep(
    path: Path, *, ray: str | None, workers: int | None, results: Path = RESULTS, as_json: bool = False
) -> None:
    """Measure what is not measured yet of a grid, and write its rows, a table and plots.

    Args:
        path: the grid, a YAML file.
        ray, workers: as `dekag.sweeps.engine.run` takes them.
        results: a folder with the sweep's name is made in it.
        as_json: the summary is JSON, and all that goes to the standard output.

    Raises:
        InvalidInputError: the grid is not valid.
        DekagError: cells failed; what was measured is written nevertheless.
    """
    sweep = read_sweep(path)
    folder = results / sweep.name
    check_folder(folder)  # now, and not when all has been measured
    outcome = engine.run(sweep, ray=ray, workers=workers)
    read = len(outcome.rows) - outcome.measured
    console = Console(stderr=as_json)
    if outcome.rows:
        write_rows(folder / "cells.jsonl", outcome.rows)
        (folder / "table.md").write_text("\n".join(table(outcome.rows)) + "\n")
        for metric in sweep.metrics:
            save_plot(outcome.rows, metric, folder / f"{metric}.svg")
        console.print(f"{outcome.measured} cells measured, {read} read -> {folder}")
    if as_json:
        failed = [{"cell": engine.described(cell), "error": why} for cell, why in outcome.failed]
        summary = {"measured": outcome.measured, "read": read, "failed": failed, "folder": str(folder)}
        typer.echo(json.dumps(summary))
    if outcome.failed:
        for cell, why in outcome.failed:
            console.print(f"[red]failed[/red]: {engine.described(cell)}: {why}")
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
        engine.run(sweep.model_copy(update={"snr_db": [30.0]}), runs=runs)  # draws the references
        engines = {"serial": (None, None), "1 worker": ("local", 1), "2 workers": ("local", 2)}
        for what, (ray, workers) in engines.items():
            engine.station.cache_clear()  # loading models counts for all
            start = time.perf_counter()
            outcome = engine.run(sweep, runs=runs, ray=ray, workers=workers)
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
