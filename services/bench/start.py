"""`dekag bench start`: how long the chain takes to be ready and to recover, and how much memory it holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count, product
from pathlib import Path

from rich.console import Console

from dekag.client import Client
from dekag.errors import DekagError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from services.bench.pipeline import LINK
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.throughput import prompts_of_the_world
from services.launcher.stack import SERVICES, LaunchError, Stack
from services.launcher.up import await_ready

COMMAND = "dekag bench start"
DELIVERIES = ("semantic", "semantic-unaligned", "conventional")
ALL = "all"
KILLED = (*SERVICES, "distiller")
_RECOVERY_S = 120.0  # after which a service counts as lost
_NEW_SEED = 1_000_000  # of images that are in no cache
_KIB_PER_GIB = 2**20


def run_start_bench(
    *,
    rounds: int = 5,
    requests: int = 4,
    profile: str = "stickers",
    results: Path = RESULTS,
    proc: Path = Path("/proc"),
) -> list[Row]:
    """Start the chain several times, ask it for images, read what its processes hold, and kill each service.

    Files are warm: a start that is not counted reads them before. Ready means that every service says so, as
    the launcher finds by asking four times a second. A service that was killed is started again at once, and
    has recovered when it is ready and new images arrive, one of the edge's and one of the cloud's.

    Args:
        rounds: starts that count; the intervals are over them.
        requests: images of each delivery that are asked for before memory is read.
        profile: the models.
        results: where headline.json is.
        proc: Linux's /proc.

    Returns:
        A row for each round and service and for all of them. In headline.json `ready_seconds` is the mean
        time from the first process to all ready, s, and `rss_gib` the mean sum of PSS, GiB: resident memory
        in which a page that several processes share counts once. The rows hold RSS too, which counts it in
        each. `recovery_seconds` is the mean time from the kill to the recovery of the slowest service, s.

    Raises:
        LaunchError: the chain does not start, or a service does not recover.
    """
    console = Console()
    prompts = prompts_of_the_world()
    rows: list[Row] = []
    for number in range(-1, rounds):
        start_s = time.perf_counter()
        with chain("start", profile) as stack:
            await_ready(stack, console)
            ready_s = time.perf_counter() - start_s
            if number < 0:
                continue
            with Client(stack.url) as client:
                _ask(client, prompts, range(requests), DELIVERIES)
                held = memory_of_each(stack, proc)
                recovered = recoveries(stack, client, prompts)
        held[ALL] = {what: sum(each[what] for each in held.values()) for what in ("pss_gib", "rss_gib")}
        for name, found in held.items():
            row: Row = {"round": number, "service": name, **found}
            if name in recovered:
                row["recovery_s"] = recovered[name]
            if name == ALL:
                row |= {"ready_s": ready_s, "recovery_s": max(recovered.values())}
            rows.append(row)
        pss, rss = held[ALL]["pss_gib"], held[ALL]["rss_gib"]
        console.print(
            f"ready after {ready_s:.1f} s; PSS {pss:.2f} GiB, RSS {rss:.2f} GiB; recovered after "
            + ", ".join(f"{seconds:.1f} s ({name})" for name, seconds in recovered.items()),
            highlight=False,
        )
    config = {"profile": profile, "rounds": rounds, "requests": requests, "deliveries": list(DELIVERIES)}
    write_bench("start", config, rows, results)
    for key, unit, what in (
        ("ready_seconds", "s", "ready_s"),
        ("recovery_seconds", "s", "recovery_s"),
        ("rss_gib", "GiB", "pss_gib"),
    ):
        mean, ci95 = mean_ci95([row[what] for row in rows if row["service"] == ALL], POSITIVE)
        record(
            key, mean, unit, command=COMMAND, count=rounds,
            ci95=ci95, results=results,
        )  # fmt: skip
    return rows


def _ask(client: Client, prompts: Sequence[str], seeds: Sequence[int], deliveries: Sequence[str]) -> None:
    for seed, delivery in product(seeds, deliveries):
        link = {k: v for k, v in LINK.items() if k != "cbr" or delivery != "conventional"}
        client.image(prompts[seed % len(prompts)], seed=seed, delivery=delivery, link=link)


def recoveries(stack: Stack, client: Client, prompts: Sequence[str]) -> Mapping[str, float]:
    """Time from the kill of each service until it is ready and new images arrive, s.

    Raises:
        LaunchError: a service does not recover within two minutes.
    """
    taken = {}
    seeds = count(_NEW_SEED)
    for name in (child.name for child in stack.children if child.name in KILLED):
        start_s = time.perf_counter()
        stack[name].process.kill()
        stack[name].process.wait()
        stack.start_again(name)
        stack["gateway"].ready = False  # it tells whether the whole chain is ready
        for _ in stack.wait_ready(_RECOVERY_S):
            pass
        while True:
            try:
                _ask(client, prompts, [next(seeds)], ("semantic", "conventional"))
                break
            except DekagError as error:
                if time.perf_counter() - start_s > _RECOVERY_S:
                    raise LaunchError(f"{name} was killed, and no image arrives: {error}") from None
                time.sleep(0.1)
        taken[name] = time.perf_counter() - start_s
    return taken


def pids_of_each(stack: Stack, proc: Path = Path("/proc")) -> Mapping[str, Sequence[int]]:
    """Process ids by the child's name: its own, and those of what it started that is no child itself."""
    own = {child.name: child.process.pid for child in stack.children}
    others = set(own.values())
    return {name: [pid, *(set(descendants(pid, proc)) - others)] for name, pid in own.items()}


def memory_of_each(stack: Stack, proc: Path = Path("/proc")) -> dict[str, Mapping[str, float]]:
    """`memory` by the child's name."""
    return {name: memory(pids, proc) for name, pids in pids_of_each(stack, proc).items()}


def memory(pids: Sequence[int], proc: Path = Path("/proc")) -> Mapping[str, float]:
    """`pss_gib` and `rss_gib` of these processes together, GiB."""
    held = {"pss_gib": 0.0, "rss_gib": 0.0}
    for each in pids:
        sizes = {}
        for line in (proc / str(each) / "smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            sizes[name] = int(size)
        held["pss_gib"] += sizes["Pss:"] / _KIB_PER_GIB
        held["rss_gib"] += sizes["Rss:"] / _KIB_PER_GIB
    return held


def descendants(pid: int, proc: Path = Path("/proc")) -> Sequence[int]:
    """Ids of all processes that a process started, and those started in turn."""
    found: list[int] = []
    for thread in (proc / str(pid) / "task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            found += [child, *descendants(child, proc)]
    return found
