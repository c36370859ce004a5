"""Runs the cells of a sweep: one after another, or on the workers of Ray.

A finished cell is a file under `runs`, named by the hash of all that it depends on: it is never measured
again, and an interrupted sweep loses at most the cell that each worker was at. A cell that fails is
reported, the others go on, and the next run tries it again.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dekag import plugins
from dekag.documents import read_json
from dekag.errors import InvalidInputError
from dekag.experiments.headline import current_commit
from dekag.sweeps.grid import Cell, Sweep, grouped
from dekag.sweeps.station import Measurement, Station, as_one, identity

SCHEMA = 1
"""Version of a row; raised when fields change their meaning."""

RUNS = Path("runs/sweeps")
LOCAL = "local"
Row = dict[str, Any]
Machine = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run of a sweep came to.

    Attributes:
        rows: of all finished cells, in the order of the grid; see `row_of`.
        measured: cells that this run measured; the others were read.
        failed: each failed cell, and why.
    """

    rows: list[Row]
    measured: int
    failed: list[tuple[Cell, str]]


def machine() -> Machine:
    """Where this process runs, and with what."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def row_of(
    sweep: str, cell: Cell, key: str, hashes: dict[str, str], commit: str, found: Measurement, where: Machine
) -> Row:
    """A tidy row: the cell, what it depended on, where it was measured, and what came out."""
    return {
        "schema": SCHEMA,
        "sweep": sweep,
        "key": key,
        "cell": cell.model_dump(mode="json"),
        "hashes": hashes,
        "commit": commit,
        "machine": where,
        **asdict(found),
    }


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
    cells = sweep.cells()
    paths = {cell: runs / "cells" / f"{cell.key(known)}.json" for cell in cells}
    todo = [cell for cell in cells if not paths[cell].exists()]
    failed: list[tuple[Cell, str]] = []
    measured = 0
    engine = _serially(todo, runs) if ray is None or not todo else _on_ray(todo, runs, ray, workers)
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc=sweep.name, unit="cell") as bar:
        for cell, found, where in engine:
            bar.update()
            if isinstance(found, str):
                failed.append((cell, found))
                bar.write(f"failed: {described(cell)}: {found}", file=sys.stderr)
                continue
            measured += 1
            _write(paths[cell], row_of(sweep.name, cell, paths[cell].stem, hashes, commit, found, where))
    rows = [read_json(paths[cell]) for cell in cells if paths[cell].exists()]
    return Outcome([{**row, "sweep": sweep.name} for row in rows], measured, failed)


def described(cell: Cell) -> str:
    """A cell in a few words."""
    return (
        f"{cell.delivery.name}, {cell.topic}, {cell.link.fading}, {cell.link.snr_db:g} dB, "
        f"CBR 1/{1 / cell.cbr:.0f}, seed {cell.seed}"
    )


def attempt(station: Station, cell: Cell) -> Measurement | str:
    """What a cell came to, or why it failed: one bad cell must not sink the rest."""
    try:
        return station.measure(cell)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@cache
def station(profile: str, runs: Path) -> Station:
    """This process's models of a profile, loaded once."""
    torch.set_num_threads(1)
    return Station(profile, runs)


def _serially(cells: Sequence[Cell], runs: Path) -> Iterator[tuple[Cell, Measurement | str, Machine]]:
    for group in grouped(cells):
        for cell in group:
            yield cell, attempt(station(cell.profile, runs), cell), machine()


def _on_ray(
    cells: Sequence[Cell], runs: Path, address: str, workers: int | None
) -> Iterator[tuple[Cell, Measurement | str, Machine]]:
    """Each worker takes the cells of one model after another, and helps with the longest queue at the end."""
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        allowed = "left out where Ray is not installed (pip install 'dekag[ray]')"
        raise InvalidInputError("ray", allowed, address) from None
    _check_reachable(address)
    try:
        ray.init(
            address=address,
            num_cpus=workers if address == LOCAL else None,
            runtime_env={"env_vars": {plugins.ENVIRONMENT: os.environ.get(plugins.ENVIRONMENT, "")}},
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        allowed = "local, or HOST:PORT of a running cluster; with RAY_AUTH_MODE=token if it asks for a token"
        raise InvalidInputError("ray", allowed, address) from error

    class Worker:
        def __init__(self) -> None:
            plugins.load_from_environment()
            self.identity = cache(lambda profile: as_one(identity(profile)))  # reads all weights

        def measure(self, cell: Cell, known: str) -> tuple[Measurement | str, Machine]:
            if self.identity(cell.profile) != known:
                return "the worker has other models or other code than where the sweep was started", machine()
            return attempt(station(cell.profile, runs.absolute()), cell), machine()

    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        count = min(workers or cpus, cpus, len(cells))
        if count == 0:
            raise InvalidInputError("ray", "a cluster with free CPUs", address)
        known = {profile: as_one(identity(profile)) for profile in {cell.profile for cell in cells}}
        queues = deque(deque(group) for group in grouped(cells))
        own: dict[Any, deque[Cell]] = {ray.remote(num_cpus=1)(Worker).remote(): deque() for _ in range(count)}
        running: dict[Any, tuple[Any, Cell]] = {}

        def give(actor: Any) -> None:
            """The actor's next cell: of its own queue, of one that nobody took, or of the longest."""
            if not own[actor]:
                own[actor] = queues.popleft() if queues else max(own.values(), key=len)
            if own[actor]:
                cell = own[actor].popleft()
                running[actor.measure.remote(cell, known[cell.profile])] = (actor, cell)

        for actor in list(own):
            give(actor)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, cell = running.pop(done)
            try:
                found, where = ray.get(done)
            except ray.exceptions.RayError as error:
                # whoever died takes no more: a new worker goes on with the rest of its queue
                found, where = f"the worker died ({type(error).__name__})", machine()
                rest = own.pop(actor)
                actor = ray.remote(num_cpus=1)(Worker).remote()
                own[actor] = rest
            yield cell, found, where
            give(actor)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """InvalidInputError unless something listens there: Ray itself tries for minutes and ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == LOCAL:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError):
        raise InvalidInputError("ray", "local, or HOST:PORT of a running cluster", address) from None


def _write(path: Path, row: Row) -> None:
    """Write a row so that a file is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(row))
    unfinished.replace(path)
