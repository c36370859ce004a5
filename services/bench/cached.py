"""`dekag bench cached`: an image that was asked for before, against the bare way from its latent on."""

from __future__ import annotations

import statistics
import time
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
from services.bench.throughput import CHAIN, Answer
from services.launcher.stack import LaunchError
from services.launcher.up import await_ready

COMMAND = "dekag bench cached"
PROMPT, SEED = "a large red boat in the middle under the sea, pastel style", 1
WARM_UP = 5


def run_cached_bench(*, requests: int = 100, profile: str = "embedded", results: Path = RESULTS) -> float:
    """Alternate the same request over REST and, in this process, everything from the latent on.

    Over REST the latent comes from Redis, is encoded, sent, decoded and scored. In this process it is there
    already and is encoded, sent, equalised, decoded, scored and written as PNG.

    Args:
        requests: how many each way.
        profile: the models; one thread each, in the services and in this process.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `bench_cached_ratio`.
    """
    console = Console()
    torch.set_num_threads(1)
    local = InProcessPipeline(profile)
    latents = local.latents([PROMPT], [SEED])
    rows: list[Row] = []
    with chain("cached", profile) as stack, httpx2.Client(trust_env=False, timeout=90.0) as client:
        await_ready(stack, console)
        for index in track(range(-WARM_UP, requests), "requests", console=console):
            start = time.perf_counter()
            answer: Answer = CHAIN.ask(client, stack.url, PROMPT, SEED)
            middle = time.perf_counter()
            (image,) = local.send(latents, [SEED])
            end = time.perf_counter()
            if index < 0:
                continue
            if not answer.cached:
                raise LaunchError("the services drew an image anew that they had just drawn; is Redis there?")
            rows.append(
                {
                    "request": index,
                    "services_s": middle - start,
                    "bare_s": end - middle,
                    "services_psnr_db": answer.psnr_db,
                    "bare_psnr_db": image.psnr_db,
                }
            )
    cached, bare = [row["services_s"] for row in rows], [row["bare_s"] for row in rows]
    ratio, ci95 = ratio_of_medians(cached, bare)
    write_bench("cached", {"profile": profile, "requests": requests, "link": LINK}, rows, results)
    record("bench_cached_ratio", ratio, "ratio", command=COMMAND, count=requests, ci95=ci95, results=results)
    console.print(
        f"{1e3 * statistics.median(cached):.1f} ms through all services, "
        f"{1e3 * statistics.median(bare):.1f} ms bare: ratio {ratio:.3f}"
    )
    return ratio
