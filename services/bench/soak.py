"""`dekag bench soak`: whether memory, file descriptors or Redis keys grow under hours of mixed load.

Requests of every kind come at random times, refused ones, cached ones and distillations among them. What is
kept in Redis expires within minutes here, so that growth cannot hide behind a cache that is still filling.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis
from rich.console import Console
from rich.progress import Progress

from dekag.errors import DekagError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.start import memory, pids_of_each
from services.bench.throughput import prompts_of_the_world
from services.launcher.stack import Stack
from services.launcher.up import await_ready

COMMAND = "dekag bench soak"
KEPT_S = 120
"""Time that Redis keeps latents, images, reports and jobs here, s."""
WARM_UP = (
    0.15  # of the time; then everything that is loaded once is loaded, and Redis keeps as much as it will
)
WINDOW = 0.15  # of the time, at the begin after the warm-up and at the end, whose means are compared
_PATH = "/v1/images/generations"
_DISTILL_EVERY_S = 600.0
_ALL = "all"


def run_soak_bench(
    *,
    seconds: float = 3600.0,
    rate_hz: float = 1.0,
    every_s: float = 15.0,
    profile: str = "stickers",
    results: Path = RESULTS,
) -> list[Row]:
    """Load the chain for a long time and read again and again what it holds.

    Args:
        seconds: how long, s.
        rate_hz: requests that arrive a second; a Poisson process.
        every_s: time between two readings, s.
        profile: the models.
        results: where headline.json is.

    Returns:
        A row for each reading and process, and for all of them: `at_s`, `service`, `rss_gib`, `pss_gib`,
        `files` (open file descriptors); for Redis its `keys` too. In headline.json `soak_rss_growth_percent`
        is how much larger the mean RSS of all is at the end than after the warm-up.

    Raises:
        LaunchError: the chain does not start, or a service ended.
    """
    console = Console()
    rows: list[Row] = []
    kept = {f"DEKAG_{name}": str(KEPT_S) for name in ("CACHE_TTL_S", "REPORT_TTL_S", "JOB_KEEP_S")}
    with (
        tempfile.TemporaryDirectory(prefix="dekag-soak-") as data,
        chain("soak", profile, DEKAG_DATA_DIR=data, **kept) as stack,
    ):
        await_ready(stack, console)
        statuses = asyncio.run(_load(stack, seconds, rate_hz, every_s, rows, console))
        stack.check_alive()
    growth = growths(rows, seconds)
    config = {
        "profile": profile, "seconds": seconds, "rate_hz": rate_hz, "every_s": every_s, "kept_s": KEPT_S,
        "warm_up": WARM_UP, "window": WINDOW, "statuses": statuses, "growth_percent": growth,
    }  # fmt: skip
    write_bench("soak", config, rows, results)
    readings = sum(row["service"] == _ALL for row in rows)
    record(
        "soak_rss_growth_percent", growth["rss_gib"], "%", command=COMMAND, count=readings, results=results
    )
    for line in summary(config):
        console.print(line, highlight=False)
    return rows


def growths(rows: Sequence[Row], seconds: float) -> dict[str, float]:
    """How much larger each of what all processes hold is at the end than after the warm-up, %."""
    of_all = [row for row in rows if row["service"] == _ALL]
    begin = WARM_UP * seconds
    after = [row for row in of_all if begin <= row["at_s"] < begin + WINDOW * seconds]
    end = [row for row in of_all if row["at_s"] >= (1 - WINDOW) * seconds]
    if not after or not end:
        raise DekagError("too few readings to compare; take more time or read more often")
    return {
        what: 100
        * (statistics.fmean(row[what] for row in end) / statistics.fmean(row[what] for row in after) - 1)
        for what in ("rss_gib", "pss_gib", "files", "keys")
    }


def summary(config: Mapping[str, Any]) -> list[str]:
    """What a run tells, a line for each thing."""
    growth = config["growth_percent"]
    held = {"rss_gib": "RSS", "pss_gib": "PSS", "files": "open files", "keys": "Redis keys"}
    changes = ", ".join(f"{name} {growth[what]:+.1f} %" for what, name in held.items())
    statuses = ", ".join(f"{number} with {status}" for status, number in config["statuses"].items())
    return [
        f"{sum(config['statuses'].values())} requests in {config['seconds'] / 60:.0f} min: {statuses}.",
        f"From after the warm-up to the end: {changes}.",
    ]


async def _load(
    stack: Stack, seconds: float, rate_hz: float, every_s: float, rows: list[Row], console: Console
) -> dict[str, int]:
    """Asks and reads; returns how many requests ended with which status, or because their client left."""
    statuses: Counter[str] = Counter()
    rng, pending = random.Random(0), set[asyncio.Task[None]]()
    requests = random_requests(rng)
    begin, next_reading_s, next_job_s = time.perf_counter(), 0.0, 0.0
    async with httpx2.AsyncClient(base_url=stack.url, timeout=90.0, trust_env=False) as client:

        async def ask(method: str, path: str, body: Any, patience_s: float | None) -> None:
            try:
                answer = await client.request(method, path, json=body, timeout=patience_s or 90.0)
                statuses[str(answer.status_code)] += 1
            except httpx2.TimeoutException:
                statuses["the client gone" if patience_s else "no answer"] += 1
            except httpx2.HTTPError:
                statuses["no answer"] += 1

        with Progress(console=console) as progress:
            bar = progress.add_task("soak", total=seconds)
            while (at_s := time.perf_counter() - begin) < seconds:
                if at_s >= next_reading_s:
                    rows += await asyncio.to_thread(read, stack, at_s)
                    next_reading_s += every_s
                if at_s >= next_job_s:
                    pending.add(asyncio.create_task(_distill(client)))
                    next_job_s += _DISTILL_EVERY_S
                pending.add(asyncio.create_task(ask(*next(requests))))
                pending = {task for task in pending if not task.done()}
                progress.update(bar, completed=at_s)
                await asyncio.sleep(rng.expovariate(rate_hz))
        await asyncio.gather(*pending)
    return dict(statuses.most_common())


async def _distill(client: httpx2.AsyncClient) -> None:
    """Has a topic distilled as quickly as can be; what was known of it is forgotten before."""
    await client.delete("/v1/knowledge/neon")
    await client.post("/v1/knowledge", json={"topic": "neon", "images": 8, "steps": 12, "rank": 1})


_Request = tuple[str, str, Any, float | None]


def random_requests(rng: random.Random) -> Iterator[_Request]:
    """Method, path, body and, of clients that leave early, how long they wait, s."""
    prompts, seeds = prompts_of_the_world(), count(7_000_000)
    look = (
        "/v1/knowledge",
        "/v1/jobs",
        "/v1/traffic",
        "/v1/transmission",
        "/readyz",
        "/v1/reports/none",
        "/",
    )
    while True:
        link: dict[str, Any] = {
            "snr_db": rng.uniform(-5, 25),
            "fading": rng.choice(["awgn", "rayleigh", "rician", "tdl-c"]),
            "csi": rng.choice(["perfect", "pilots"]),
        }
        body = {
            "prompt": rng.choice(prompts),
            "seed": next(seeds),
            "link": link,
            "details": rng.random() < 0.1,
        }
        body["size"] = rng.choice(["128x128", "128x128", "64x96"])
        kind = rng.choices(
            ["semantic", "unaligned", "conventional", "again", "refused", "leaves", "look"],
            [45, 10, 15, 10, 5, 5, 10],
        )[0]
        if kind == "look":
            yield "GET", rng.choice(look), None, None
            continue
        if kind == "unaligned":
            body["delivery"] = "semantic-unaligned"
        elif kind == "conventional":
            body |= {"delivery": kind, "image_format": rng.choice(["webp", "avif", "jpeg"])}
        else:
            link["cbr"] = rng.choice([1 / 96, 1 / 192, 1 / 384])
        if kind == "again":
            body |= {"prompt": prompts[0], "seed": rng.randrange(8), "size": "128x128"}
        elif kind == "refused":
            link["snr_db"] = 99
        yield "POST", _PATH, body, 0.1 if kind == "leaves" else None


def read(stack: Stack, at_s: float) -> list[Row]:
    """What each process, and all of them, hold now."""
    rows: list[Row] = []
    for name, pids in pids_of_each(stack).items():
        files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
        rows.append({"at_s": at_s, "service": name, **memory(pids), "files": files})
    with Redis.from_url(stack.redis_url) as redis:
        keys = redis.dbsize()
    total = {what: sum(row[what] for row in rows) for what in ("rss_gib", "pss_gib", "files")}
    return [*rows, {"at_s": at_s, "service": _ALL, **total, "keys": keys}]
