"""`dekag bench upgrade`: whether requests fail while a replica of a service is upgraded or dies.

Requests come at a steady rate to a chain with two replicas of one service. Meanwhile, one of them restarts,
is replaced by another one at another address, or is killed and started again. The models are tiny and
untrained: what counts is what becomes of the requests.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dekag.evaluation.pages import Row, table
from dekag.evaluation.registry import RESULTS, record
from services.bench.load import ask_for_image, many_connections, open_loop
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError, Stack
from services.launcher.up import await_ready

COMMAND = "dekag bench upgrade"
EVENTS = ("restart", "replace", "kill")
SERVICES = ("edge", "channel", "user")
COLUMNS = ("", "runs", "requests", "failed", "median, s", "longest, s")
_LOADED_S = 600.0  # longest wait for a replica to load its models, s


def run_upgrade_bench(
    *,
    service: str = "edge",
    rate_hz: float = 8.0,
    runs: int = 3,
    around_s: float = 4.0,
    results: Path = RESULTS,
) -> list[Row]:
    """Upgrade one of two replicas under load and tell what becomes of every request.

    Args:
        service: what is upgraded: edge, channel or user.
        rate_hz: requests that come a second, at equal intervals.
        runs: how often each event happens.
        around_s: time of load before each event, and after the replica serves again, s.
        results: where headline.json is.

    Returns:
        A row for each request: `event` ("restart", "replace" or "kill"), `run`, `at_s` since the run began,
        `status` (0: the connection failed), `latency_s`. In headline.json `upgrade_failed_requests` is the
        number of those without status 200, if the service is the edge.

    Raises:
        LaunchError: the chain does not start, or a replica does not come back.
    """
    from dekag.training.tiny_models import save_dummy_models

    console = Console()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dekag-upgrade-") as folder:
        profile = save_dummy_models(Path(folder, "models"))
        env = {"DEKAG_DATA_DIR": str(Path(folder, "data"))}
        chain_of_three = chain("upgrade", str(profile), **env)
        chain_of_three.replicas = {service: 3}
        with chain_of_three as stack:
            await_ready(stack, console)
            replicas = Replicas(stack, service)
            for event in EVENTS:
                for run in range(1, runs + 1):
                    before = len(rows)
                    rows += _run(replicas, event, run, rate_hz, around_s)
                    failed = sum(row["status"] != 200 for row in rows[before:])
                    console.print(f"{event} {run}: {failed} of {len(rows) - before} failed", highlight=False)
    config = {"service": service, "rate_hz": rate_hz, "runs": runs, "around_s": around_s}
    name = "upgrade" if service == "edge" else f"upgrade-{service}"
    write_bench(name, config, rows, results)
    if service == "edge":
        failed = sum(row["status"] != 200 for row in rows)
        record(
            "upgrade_failed_requests", failed, "requests", command=COMMAND, count=len(rows), ci95=None,
            results=results,
        )  # fmt: skip
    for cells in table(COLUMNS, summary(config, rows)):
        console.print(cells, highlight=False)
    return rows


def summary(config: Mapping[str, Any], rows: Sequence[Row]) -> list[list[str]]:
    """What became of the requests of each event: cells of the table with COLUMNS."""
    names = {
        "restart": f"one {config['service']} of two restarts",
        "replace": f"one {config['service']} of two is replaced by a third",
        "kill": f"one {config['service']} of two is killed and started again",
    }
    cells = []
    for event in EVENTS:
        of = [row for row in rows if row["event"] == event]
        latencies = [row["latency_s"] for row in of]
        failed = sum(row["status"] != 200 for row in of)
        cells.append(
            [
                names[event],
                str(config["runs"]),
                f"{len(of):,}",
                str(failed),
                *(f"{each:.3f}" for each in (np.median(latencies), max(latencies))),
            ]
        )
    return cells


class Replicas:
    """Three replicas, of which two run at a time; the clients know the addresses of all three."""

    def __init__(self, stack: Stack, service: str) -> None:
        self._stack = stack
        self._names = [service, f"{service}-2", f"{service}-3"]
        self._end(self._names[-1])
        self.events: Mapping[str, Callable[[], None]] = {
            "restart": self._restart,
            "replace": self._replace,
            "kill": self._kill,
        }

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return self._stack.url

    def _restart(self) -> None:
        self._end(self._names[0])
        self._start(self._names[0])

    def _replace(self) -> None:
        """Starts the one that does not run, and then ends one that does."""
        old, kept, new = self._names
        self._start(new)
        self._end(old)
        self._names = [kept, new, old]

    def _kill(self) -> None:
        process = self._stack[self._names[0]].process
        process.kill()
        process.wait()
        self._start(self._names[0])

    def _end(self, name: str) -> None:
        process = self._stack[name].process
        process.terminate()
        process.wait(_LOADED_S)

    def _start(self, name: str) -> None:
        """Starts it and waits until its models are loaded."""
        self._stack.start_again(name)
        child, deadline = self._stack[name], time.monotonic() + _LOADED_S
        while not child.check():
            if time.monotonic() > deadline or child.process.poll() is not None:
                raise LaunchError(f"{name} did not come back; see {child.log}")
            time.sleep(0.25)
        child.ready = True


_seeds = count(7_000_000)  # so that no latent is cached


def _run(replicas: Replicas, event: str, run: int, rate_hz: float, around_s: float) -> list[Row]:
    """What becomes of the requests around one event.

    The event happens in this thread, as a process ends with the thread that started it; the load comes from
    another one.
    """
    ended = threading.Event()
    with ThreadPoolExecutor(1, "load") as pool:
        loading = pool.submit(lambda: asyncio.run(_load(replicas.url, rate_hz, ended)))
        try:
            time.sleep(around_s)
            replicas.events[event]()
            time.sleep(around_s)
        finally:
            ended.set()
        return [{"event": event, "run": run, **row} for row in loading.result()]


async def _load(url: str, rate_hz: float, ended: threading.Event) -> list[Row]:
    """What becomes of requests that come at that rate until the end."""

    async def ask(begin: float) -> Row:
        body = {"prompt": "a red fox in the forest", "seed": next(_seeds)}
        return await ask_for_image(client, body, begin)

    async with many_connections(url) as client:
        until_the_end = takewhile(lambda _: not ended.is_set(), count())
        return await open_loop(ask, (number / rate_hz for number in until_the_end))
