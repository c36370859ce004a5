"""`dekag results quick`: what can be measured in minutes with the models that ship, no training in it.

Small counts and a corner of the grids, written beside the committed results and never over them. What needs
trainings (`dekag experiment gka` and `tka`) is left to `make results`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dekag import places
from dekag.documents import read_json
from dekag.experiments import first_image
from dekag.experiments.headline import record
from dekag.experiments.overall import run_overall
from dekag.experiments.page import write_first_image_page
from dekag.sweeps import engine

COMMAND = "dekag results quick --record"
QUICK = Path("runs/quick")
SWEEP = places.SWEEPS / "quick.yaml"
PICTURES = 24


def run_quick(
    *,
    ray: str | None = None,
    workers: int | None = None,
    keep: bool = False,
    folder: Path = QUICK,
    sweep: Path = SWEEP,
    pictures: int = PICTURES,
    runs: Path = engine.RUNS,
) -> None:
    """Measure, write results and pages into `folder`, and show the figures beside the committed ones.

    Args:
        ray: of the sweep, as `dekag.sweeps.engine.run` takes it.
        workers: of Ray.
        keep: write how long it took into the committed headline.json.
        folder: where results go.
        sweep: the grid.
        pictures: for each figure of the first image.
        runs: where finished cells and pictures are kept.

    Raises:
        DekagError: cells of the sweep failed.
    """
    if keep:  # what earlier runs measured must not count
        with tempfile.TemporaryDirectory() as name:
            _run(ray, workers, folder, sweep, pictures, Path(name), keep=True)
    else:
        _run(ray, workers, folder, sweep, pictures, runs, keep=False)


def _run(
    ray: str | None, workers: int | None, folder: Path, sweep: Path, pictures: int, runs: Path, *, keep: bool
) -> None:
    start = time.perf_counter()
    torch.set_num_threads(2)
    folder.mkdir(parents=True, exist_ok=True)
    first_image.run(pictures, results=folder)
    write_first_image_page(folder / "results-first-image.md", folder)
    run_overall(
        sweep=sweep, ray=ray, workers=workers, results=folder, page=folder / "results-overall.md", runs=runs
    )
    seconds = time.perf_counter() - start
    show(folder)
    Console().print(f"{seconds:.0f} s -> {folder}")
    if keep:
        record("results_quick_seconds", seconds, "s", command=COMMAND, count=1)


def show(folder: Path, committed: Path = places.RESULTS) -> None:
    """A table of the figures in `folder` beside those of the same keys in `committed`."""
    quick, whole = (read_json(place / "headline.json") for place in (folder, committed))
    table = Table("figure", "quick", "n", "committed", "n", "unit")
    for key, figure in quick.items():
        known = whole.get(key)
        there = ("", "") if known is None else (f"{known['value']:.4g}", str(known["n"]))
        table.add_row(key, f"{figure['value']:.4g}", str(figure["n"]), *there, figure["unit"])
    Console().print(table)
