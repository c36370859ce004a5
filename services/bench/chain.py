"""`dekag bench chain`: one request through all services against the same library calls in one process."""

from __future__ import annotations

import statistics
import time
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
from services.bench.rows import write_bench
from services.bench.throughput import CHAIN
from services.launcher.up import await_ready

COMMAND = "dekag bench chain"
PROMPT = "a large red boat in the middle under the sea, pastel style"
WARM_UP = 3


def run_chain_bench(*, requests: int = 40, profile: str = "embedded", results: Path = RESULTS) -> float:
    """Alternate requests over REST and in one process, each with a seed of its own so that no cache helps.

    The client keeps its connection: making one, certificates and all, takes longer than all hops.

    Args:
        requests: how many each way.
        profile: the models; one thread each, in the services and in the one process.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `bench_chain_ratio`.
    """
    console = Console()
    seeds = count(1_000_000)
    torch.set_num_threads(1)
    local = InProcessPipeline(profile)
    rows: list[Row] = []
    with chain("chain", profile) as stack, httpx2.Client(trust_env=False, timeout=90.0) as client:
        await_ready(stack, console)
        for index in track(range(-WARM_UP, requests), "requests", console=console):
            start = time.perf_counter()
            CHAIN.ask(client, stack.url, PROMPT, next(seeds))
            middle = time.perf_counter()
            local.deliver([PROMPT], [next(seeds)])
            end = time.perf_counter()
            if index >= 0:
                rows.append({"request": index, "services_s": middle - start, "one_process_s": end - middle})
    through, alone = [row["services_s"] for row in rows], [row["one_process_s"] for row in rows]
    ratio, ci95 = ratio_of_medians(through, alone)
    write_bench("chain", {"profile": profile, "requests": requests, "link": LINK}, rows, results)
    record("bench_chain_ratio", ratio, "ratio", command=COMMAND, count=requests, ci95=ci95, results=results)
    console.print(
        f"{1e3 * statistics.median(through):.0f} ms through all services, "
        f"{1e3 * statistics.median(alone):.0f} ms in one process: ratio {ratio:.3f}"
    )
    return ratio
