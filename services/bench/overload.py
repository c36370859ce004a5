"""`dekag bench overload`: what happens when four times as much is asked for as there is time for.

First so many closed-loop users as keep the chain busy tell its capacity and the latency under full load. Then
requests come at a multiple of that capacity, whatever becomes of those before them.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from dekag.evaluation.pages import Row, table
from dekag.evaluation.registry import RESULTS, record
from services.bench.load import Ask, ask_for_image, closed_loop, many_connections, open_loop, poisson
from services.bench.pipeline import LINK
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.start import memory_of_each
from services.bench.throughput import prompts_of_the_world
from services.launcher.stack import LaunchError, Stack
from services.launcher.up import await_ready

COMMAND = "dekag bench overload"
USERS = 16
FIRST_SEED = 4_000_000


def run_overload_bench(
    *,
    times: float = 4.0,
    seconds: float = 120.0,
    loaded_s: float = 30.0,
    profile: str = "stickers",
    results: Path = RESULTS,
) -> list[Row]:
    """Overload the chain and tell what becomes of every request.

    Args:
        times: arrivals over capacity. They are a Poisson process.
        seconds: how long they come, s.
        loaded_s: how long 16 closed-loop users tell what the capacity is, s.
        profile: the models.
        results: where headline.json is.

    Returns:
        A row for each request: `phase` ("loaded" or "overload"), `at_s` since the phase began, `status` (0:
        the connection failed), `latency_s`. In headline.json `overload_p50_ratio` is the median latency of
        the requests that were served under overload over that under full load.

    Raises:
        LaunchError: the chain does not start, a service ended, or none of one phase was served.
    """
    console = Console()
    with chain("overload", profile) as stack:
        await_ready(stack, console)
        loaded = asyncio.run(_closed(stack, loaded_s, console))
        before = _memory(stack)
        rate_hz = times * len(_served(loaded)) / loaded_s
        console.print(f"{rate_hz / times:.2f} images/s at most; now {rate_hz:.1f}/s are asked for")
        over = asyncio.run(_open(stack, rate_hz, seconds, console))
        after = _memory(stack)
        stack.check_alive()
    rows = [{"phase": phase, **row} for phase, of in (("loaded", loaded), ("overload", over)) for row in of]
    if not _served(loaded) or not _served(over):
        raise LaunchError("no request was served; see the logs")
    config = {
        "profile": profile, "times": times, "seconds": seconds, "loaded_s": loaded_s, "users": USERS,
        "rate_hz": rate_hz, "link": LINK, "pss_gib_before": before, "pss_gib_after": after,
    }  # fmt: skip
    write_bench("overload", config, rows, results)
    ratio = statistics.median(_served(over)) / statistics.median(_served(loaded))
    record(
        "overload_p50_ratio", ratio, "ratio", command=COMMAND, count=len(_served(over)), ci95=None,
        results=results,
    )  # fmt: skip
    for cells in table(COLUMNS, summary(config, rows)):
        console.print(cells, highlight=False)
    return rows


COLUMNS = ("", "requests", "images per second", "median, s", "95th percentile, s", "99th percentile, s")


def summary(config: Mapping[str, Any], rows: Sequence[Row]) -> list[list[str]]:
    """What became of requests: cells of the table with COLUMNS."""
    loaded, over = ([row for row in rows if row["phase"] == phase] for phase in ("loaded", "overload"))
    refused = [row["latency_s"] for row in over if row["status"] == 429]
    others = [row["latency_s"] for row in over if row["status"] not in (200, 429)]
    times = f"{config['times']:g} times that"
    kinds = {
        "served under full load": (_served(loaded), config["loaded_s"]),
        f"served under {times}": (_served(over), config["seconds"]),
        "refused with status 429": (refused, None),
        "another status or none": (others, None),
    }
    return [
        [
            name,
            f"{len(latencies):,}",
            "" if seconds is None else f"{len(latencies) / seconds:.2f}",
            *([f"{each:.3f}" for each in np.percentile(latencies, (50, 95, 99))] if latencies else [""] * 3),
        ]
        for name, (latencies, seconds) in kinds.items()
    ]


def _served(rows: Sequence[Row]) -> list[float]:
    return [row["latency_s"] for row in rows if row["status"] == 200]


def _memory(stack: Stack) -> float:
    """PSS of all processes of the chain, GiB."""
    return sum(held["pss_gib"] for held in memory_of_each(stack).values())


async def _closed(stack: Stack, seconds: float, console: Console) -> list[Row]:
    """What 16 users get who ask for the next image when the last one has come; a warm-up is left out."""
    rows: list[Row] = []
    async with many_connections(stack.url) as client:
        for duration in (min(5.0, seconds), seconds):
            with console.status(f"full load for {duration:g} s"):
                rows = await closed_loop(_new_images(client), USERS, duration)
    return rows


async def _open(stack: Stack, rate_hz: float, seconds: float, console: Console) -> list[Row]:
    """What becomes of requests that come at that rate."""
    async with many_connections(stack.url) as client:
        with Progress(console=console) as progress:
            task = progress.add_task("overload", total=seconds)

            def shown() -> Iterator[float]:
                for at_s in poisson(rate_hz, seconds, random.Random(0)):
                    progress.update(task, completed=at_s)
                    yield at_s

            return await open_loop(_new_images(client), shown())


_seeds = count(FIRST_SEED)


def _new_images(client: httpx2.AsyncClient) -> Ask[Row]:
    """Asks for images that nobody asked for before."""
    prompts = prompts_of_the_world()

    async def ask(begin: float) -> Row:
        seed = next(_seeds)
        body = {"prompt": prompts[seed % len(prompts)], "seed": seed, "link": LINK}
        return await ask_for_image(client, body, begin)

    return ask
