"""`dekag results quick`: what can be measured in minutes with the models that ship, no training in it.

Small counts and a corner of the grids, written beside the committed results and never over them. What needs
trainings (`dekag experiment gka` and `tka`) is left to `make results`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table

from dekag import paths
from dekag.console import plain_console
from dekag.errors import NotFoundError
from dekag.evaluation.registry import FIGURES, read_figures, record
from dekag.evaluation.studies import baseline_models
from dekag.evaluation.studies.end_to_end import run_overall
from dekag.evaluation.sweeps import command
from dekag.stickers.assets import artwork
from dekag.stickers.subjects import SUBJECT_BY_NAME
from dekag.training.worlds import artwork_needed

COMMAND = "dekag results quick --record"
QUICK = Path("runs/quick")
SWEEP = paths.SWEEPS / "quick.yaml"
IMAGES_AT_ONCE = 24


def run_quick(
    *,
    ray: str | None = None,
    workers: int | None = None,
    keep: bool = False,
    folder: Path = QUICK,
    sweep: Path = SWEEP,
    images: int = IMAGES_AT_ONCE,
    runs: Path = command.RUNS,
) -> None:
    """Measure, write results into `folder`, and show the figures beside the committed ones.

    Args:
        ray: of the sweep, as `dekag sweep` takes it.
        workers: of Ray.
        keep: write how long it took into the committed headline.json.
        folder: where results go.
        sweep: the grid.
        images: for each figure of the first image.
        runs: where finished points and images are kept.

    Raises:
        DekagError: points of the sweep failed.
    """
    if keep:  # what earlier runs measured must not count
        with tempfile.TemporaryDirectory() as name:
            seconds = _run(ray, workers, folder, sweep, images, Path(name))
        record("results_quick_seconds", seconds, "s", command=COMMAND, count=1)
    else:
        _run(ray, workers, folder, sweep, images, runs)


def _run(ray: str | None, workers: int | None, folder: Path, sweep: Path, images: int, runs: Path) -> float:
    """Seconds that it took."""
    start = time.perf_counter()
    torch.set_num_threads(2)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(baseline_models.PARTS)
    try:
        with artwork_needed():
            artwork(next(iter(SUBJECT_BY_NAME.values())).code)
    except NotFoundError as error:
        parts.remove("vae")
        plain_console().print(f"The autoencoder is not measured: {error}", soft_wrap=True)
    baseline_models.run(images, parts=parts, results=folder)
    run_overall(sweep=sweep, ray=ray, workers=workers, results=folder, runs=runs)
    seconds = time.perf_counter() - start
    show(folder)
    plain_console().print(f"{seconds:.0f} s -> {folder}", soft_wrap=True)
    return seconds


def show(folder: Path, committed: Path = paths.RESULTS) -> None:
    """A table of the figures in `folder` beside those of the same keys in `committed`."""
    whole = read_figures(committed)
    table = Table("figure", "quick", "n", "committed", "n", "unit")
    for key, figure in read_figures(folder).items():
        known = whole.get(key)
        there = ("", "") if known is None else (f"{known['value']:.4g}", str(known["n"]))
        name = FIGURES[key].name if key in FIGURES else key
        table.add_row(name, f"{figure['value']:.4g}", str(figure["n"]), *there, figure["unit"])
    plain_console().print(table)
