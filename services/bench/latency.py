"""`dekag bench chain` and `cached`: an image through all services against library calls in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx2
import torch
from rich.console import Console
from rich.progress import track

from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import ratio_of_medians
from services.bench.pipeline import LINK, InProcessPipeline
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.throughput import CHAIN, Answer
from services.launcher.stack import LaunchError
from services.launcher.up import await_ready

PROMPT = "a large red car in the middle of the beach, pastel style"
Ask = Callable[[int], Answer]


def run_chain_bench(*, requests: int = 40, profile: str = "stickers", results: Path = RESULTS) -> float:
    """Alternate requests over REST and in one process, each with a seed of its own so that no cache helps.

    Args:
        requests: how many each way.
        profile: the models; one thread each, in the services and in the one process.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `bench_chain_ratio`.
    """
    torch.set_num_threads(1)
    local, seeds = InProcessPipeline(profile), count(1_000_000)

    def measure(ask: Ask) -> Row:
        start = time.perf_counter()
        ask(next(seeds))
        middle = time.perf_counter()
        local.deliver([PROMPT], [next(seeds)])
        return {"services_s": middle - start, "one_process_s": time.perf_counter() - middle}

    return _compare("chain", "one_process_s", measure, requests, profile, results, warm_up=3)


def run_cached_bench(*, requests: int = 100, profile: str = "stickers", results: Path = RESULTS) -> float:
    """Alternate the same request over REST and, in this process, everything from the latent on.

    Over REST the latent comes from Redis, is encoded, sent, decoded and scored. In this process it is there
    already and is encoded, sent, equalised, decoded, scored and written as PNG.

    Args:
        requests: how many each way.
        profile: the models; one thread each, in the services and in this process.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `bench_cached_ratio`.

    Raises:
        LaunchError: the services generated the image again.
    """
    torch.set_num_threads(1)
    local, seed = InProcessPipeline(profile), 1
    latents = local.latents([PROMPT], [seed])

    def measure(ask: Ask) -> Row:
        start = time.perf_counter()
        answer = ask(seed)
        middle = time.perf_counter()
        (image,) = local.send(latents, [PROMPT], [seed])
        return {
            "services_s": middle - start,
            "bare_s": time.perf_counter() - middle,
            "services_psnr_db": answer.psnr_db,
            "bare_psnr_db": image.psnr_db,
            "cached": answer.cached,
        }

    return _compare("cached", "bare_s", measure, requests, profile, results, warm_up=5)


def _compare(
    name: str,
    reference: str,
    measure: Callable[[Ask], Row],
    requests: int,
    profile: str,
    results: Path,
    *,
    warm_up: int,
) -> float:
    """Measure so many pairs; write the rows and the ratio of the median times, services over `reference`.

    The client keeps its connection: making one, certificates and all, takes longer than all hops.
    """
    console = Console()
    rows: list[Row] = []
    with chain(name, profile) as stack, httpx2.Client(trust_env=False, timeout=90.0) as client:
        await_ready(stack, console)
        for index in track(range(-warm_up, requests), "requests", console=console):
            row = measure(lambda seed: CHAIN.ask(client, stack.url, PROMPT, seed))
            if index < 0:
                continue
            if not row.pop("cached", True):
                raise LaunchError("the services generated a cached image again; is Redis running?")
            rows.append({"request": index, **row})
    through, bare = [row["services_s"] for row in rows], [row[reference] for row in rows]
    ratio, ci95 = ratio_of_medians(through, bare)
    write_bench(name, {"profile": profile, "requests": requests, "link": LINK}, rows, results)
    command, key = f"dekag bench {name}", f"bench_{name}_ratio"
    record(key, ratio, "ratio", command=command, count=requests, ci95=ci95, results=results)
    console.print(
        f"{1e3 * statistics.median(through):.1f} ms through all services, "
        f"{1e3 * statistics.median(bare):.1f} ms in this process: ratio {ratio:.3f}"
    )
    return ratio
