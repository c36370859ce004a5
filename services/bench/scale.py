"""`dekag bench scale`: throughput of 1, 2 and 4 edges, and how a caller best chooses among them.

The edges are simulated machines: real services whose work is a sleep as long as the work was measured to take
(services/bench/sleeping_edge.py), so that four of them fit on one machine. Real channel services call them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dekag.evaluation.pages import Row, table
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from services.bench.channel import request_for
from services.bench.load import closed_loop, open_loop, poisson
from services.bench.processes import Server, server, start
from services.bench.results_io import read_bench, write_bench
from services.bench.sleeping_edge import CACHED, CHANNEL_USES
from services.common import clients
from services.common.request_context import begin_request
from services.common.settings import CommonSettings
from services.launcher.stack import LaunchError
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.downlink_pb2_grpc import DownlinkStub

COMMAND = "dekag bench scale"
EDGES = (1, 2, 4)
USERS_EACH = 4
"""Closed-loop users for each edge: it is never idle."""
LOAD = 0.7
"""Arrivals over capacity when choices are compared."""
CACHED_SHARE = 0.3
TOPICS = 16
CALLERS = 2
"""Independent callers when choices are compared, as each replica of the channel knows only its own calls."""
COLUMNS = ("edges", "images per second", "times one edge", "busiest edge over mean")
CHOICE_COLUMNS = ("choice", "requests", "median, s", "95th percentile, s", "busiest edge over mean")


def run_scale_bench(*, seconds: float = 20.0, rounds: int = 3, results: Path = RESULTS) -> list[Row]:
    """Load 1, 2 and 4 edges, and compare choices among four.

    Args:
        seconds: duration of each load, s.
        rounds: how often each is repeated, in turn.
        results: where headline.json is.

    Returns:
        Rows of `kind` "throughput": `round`, `edges`, `images_per_s`, `busiest` (requests of the busiest edge
        over the mean); and of `kind` "choice": `round`, `choice`, `p50_s`, `p95_s`, `requests`, `busiest`. In
        headline.json `scale_2_edges` and `scale_4_edges` are throughput over that of one edge in the same
        round.

    Raises:
        LaunchError: a service does not start.
        NotMeasuredError: `dekag bench deliveries`, which tells how long the work takes, has not been run.
    """
    console = Console()
    work_s = work_seconds(results)
    rows: list[Row] = []
    with contextlib.ExitStack() as running:

        def begin(name: str, module: str, *arguments: str, **env: str) -> Server:
            made = server(name, module, *arguments, health="grpc", DEKAG_REDIS_URL="none", **env)
            return running.enter_context(made)

        edges = [
            begin(f"scale-edge-{number}", "services.bench.sleeping_edge", str(work_s))
            for number in range(1, 5)
        ]
        channels = {}
        for number in EDGES:
            addresses = ",".join(edge.address for edge in edges[:number])
            channels[number] = begin(
                f"scale-channel-{number}", "services.channel", DEKAG_DOWNLINK_ADDRESS=addresses
            )
        for each in (*edges, *channels.values()):
            start(each, console)
        for turn in range(rounds):
            for number in EDGES:
                before = _requests(edges)
                rate = asyncio.run(_closed(channels[number].address, number * USERS_EACH, seconds))
                row = {
                    "kind": "throughput", "round": turn, "edges": number, "images_per_s": rate,
                    "busiest": _busiest(before, _requests(edges), number),
                }  # fmt: skip
                rows.append(row)
                console.print(f"{number} edges: {rate:.2f} images/s", highlight=False)
            for choice in CHOICES:
                before = _requests(edges)
                rate_hz = LOAD * len(edges) / work_s / (1 - CACHED_SHARE)
                latencies = asyncio.run(_open(choice, edges, rate_hz, seconds, turn))
                p50_s, p95_s = np.percentile(latencies, (50, 95))
                row = {
                    "kind": "choice", "round": turn, "choice": choice, "requests": len(latencies),
                    "p50_s": float(p50_s), "p95_s": float(p95_s),
                    "busiest": _busiest(before, _requests(edges), len(edges)),
                }  # fmt: skip
                rows.append(row)
                console.print(f"{choice}: {p50_s:.3f} s, 95 % within {p95_s:.3f} s", highlight=False)
    config = {
        "seconds": seconds, "rounds": rounds, "work_s": work_s, "users_each": USERS_EACH, "load": LOAD,
        "cached_share": CACHED_SHARE, "topics": TOPICS, "callers": CALLERS,
    }  # fmt: skip
    write_bench("scale", config, rows, results)
    for number in EDGES[1:]:
        mean, ci95 = mean_ci95(speedups(rows, number), POSITIVE)
        record(
            f"scale_{number}_edges", mean, "ratio", command=COMMAND, count=rounds, ci95=ci95, results=results
        )
    for columns, cells in ((COLUMNS, summary(rows)), (CHOICE_COLUMNS, choice_summary(rows))):
        for line in table(columns, cells):
            console.print(line, highlight=False)
    return rows


def work_seconds(results: Path = RESULTS) -> float:
    """CPU time of an edge for one new image, s, as `dekag bench deliveries` measured it."""
    (row,) = (
        row
        for row in read_bench("deliveries", results, "city")["rows"]
        if (row["kind"], row.get("phase")) == ("cpu", "latent")
    )
    return float(row["edge"]) / int(row["requests"])


def speedups(rows: Sequence[Row], edges: int) -> list[float]:
    """Throughput of that many edges over that of one in the same round."""
    rates = {(row["round"], row["edges"]): row["images_per_s"] for row in rows if row["kind"] == "throughput"}
    return [rate / rates[turn, 1] for (turn, number), rate in rates.items() if number == edges]


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Throughput by number of edges: cells of the table with COLUMNS."""
    cells = []
    for number in EDGES:
        of = [row for row in rows if row["kind"] == "throughput" and row["edges"] == number]
        rate = np.mean([row["images_per_s"] for row in of])
        times = np.mean(speedups(rows, number))
        cells.append([str(number), f"{rate:.2f}", f"{times:.2f}", f"{max(row['busiest'] for row in of):.3f}"])
    return cells


def choice_summary(rows: Sequence[Row]) -> list[list[str]]:
    """What each choice among four edges gives: cells of the table with CHOICE_COLUMNS."""
    cells = []
    for choice in CHOICES:
        of = [row for row in rows if row.get("choice") == choice]
        cells.append(
            [
                choice,
                f"{sum(row['requests'] for row in of):,}",
                *(f"{np.mean([row[key] for row in of]):.3f}" for key in ("p50_s", "p95_s")),
                f"{max(row['busiest'] for row in of):.3f}",
            ]
        )
    return cells


def _requests(edges: Sequence[Server]) -> list[int]:
    """Requests that each edge has answered, as it logs them."""
    return [edge.children[0].log.read_text().count('"event": "request"') for edge in edges]


def _busiest(before: Sequence[int], after: Sequence[int], edges: int) -> float:
    served = [end - begin for begin, end in zip(before, after, strict=True)][:edges]
    return max(served) * edges / max(sum(served), 1)


async def _closed(address: str, users: int, seconds: float) -> float:
    """Images per second that so many users get, of whom each asks again when it is answered."""
    seeds = count()
    begin_request(None, None)
    async with clients.open_channel(address, CommonSettings()) as channel:
        stub = DownlinkStub(channel)

        async def ask(begin: float) -> float:
            request = request_for(CHANNEL_USES, next(seeds))
            async for _ in clients.stream(stub.Provide, request, "channel"):
                pass
            return time.perf_counter() - begin

        await closed_loop(ask, users, 1.0)  # connections open
        answered = sum(end_s < seconds for end_s in await closed_loop(ask, users, seconds))
    if not answered:
        raise LaunchError("no image came; see the logs of the edges")
    return answered / seconds


class _RoundRobin:
    """What the services do: gRPC asks the edges in turn."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.channels = [clients.open_channel(",".join(addresses), CommonSettings())]
        self._stub = DownlinkStub(self.channels[0])

    async def ask(self, request: ProvideRequest, topic: str) -> None:
        async for _ in clients.stream(self._stub.Provide, request, "edge"):
            pass


class _LeastLoaded:
    """The edge with the fewest of this caller's requests; one of them at random."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.channels = [clients.open_channel(address, CommonSettings()) for address in addresses]
        self._stubs = [DownlinkStub(channel) for channel in self.channels]
        self._load = [0] * len(addresses)

    def choose(self, topic: str) -> int:
        return min(range(len(self._load)), key=lambda number: (self._load[number], random.random()))

    async def ask(self, request: ProvideRequest, topic: str) -> None:
        chosen = self.choose(topic)
        self._load[chosen] += 1
        try:
            async for _ in clients.stream(self._stubs[chosen].Provide, request, "edge"):
                pass
        finally:
            self._load[chosen] -= 1


class _Hash(_LeastLoaded):
    """The edge that the topic's hash names, so that its updates stay in one memory."""

    def choose(self, topic: str) -> int:
        return zlib.crc32(topic.encode()) % len(self._load)


CHOICES: Mapping[str, Callable[[Sequence[str]], Any]] = {
    "round robin": _RoundRobin,
    "least loaded": _LeastLoaded,
    "hash of the topic": _Hash,
}


async def _open(
    choice: str, edges: Sequence[Server], rate_hz: float, seconds: float, seed: int
) -> list[float]:
    """Latencies of requests that come at random times, a share of them cached, with topics of Zipf's law."""
    rng = random.Random(seed)
    addresses = [edge.address for edge in edges]
    callers = [CHOICES[choice](addresses) for _ in range(CALLERS)]
    weights = [1 / rank for rank in range(1, TOPICS + 1)]
    begin_request(None, None)

    async def ask(_: float, caller: Any = None) -> float:
        (topic,) = rng.choices(range(TOPICS), weights)
        request = request_for(CHANNEL_USES, rng.randrange(2**31))
        if rng.random() < CACHED_SHARE:
            request.prompt = f"{CACHED} {request.prompt}"
        begin = time.perf_counter()
        await (caller or rng.choice(callers)).ask(request, f"topic {topic}")
        return time.perf_counter() - begin

    try:
        for caller in callers * len(edges):  # connections open
            await ask(0.0, caller)
        return await open_loop(ask, poisson(rate_hz, seconds, rng))
    finally:
        for caller in callers:
            for channel in caller.channels:
                await channel.close()
