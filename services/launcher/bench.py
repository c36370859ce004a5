"""`dekag bench chain`: one request through all services against the same library calls in one process.

`dekag bench distill`: how long it takes from asking for a topic to the first picture drawn with it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import torch
from rich.console import Console

from dekag.cala import condition_vector
from dekag.cala.aligned import AlignedCodec
from dekag.cala.conditions import block_snr_db
from dekag.codec import LatentCodec
from dekag.experiments.headline import RESULTS, mean_ci95, record
from dekag.generation.images import to_png
from dekag.generation.models import Generator
from dekag.generation.profile import load_profile
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.link.equalizer import mmse_equalize
from dekag.metrics.image import psnr_db
from services.launcher.demo import ask
from services.launcher.stack import LaunchError, Stack
from services.launcher.up import RUN_DIR, await_ready

COMMAND = "dekag bench chain"
PROMPT = "a large red boat in the middle under the sea, pastel style"
CBR = 1 / 96
LINK = {"snr_db": 10.0, "cbr": CBR, "fading": "rayleigh"}


class OneProcess:
    """The semantic delivery as plain library calls: what the services do, without services."""

    def __init__(self, profile_name: str) -> None:
        profile = load_profile(profile_name)
        self._edge = Generator.from_profile(profile.edge)
        self._codec = LatentCodec.load(profile.codec)
        self._aligned = None
        if profile.adapters is not None:
            self._aligned = AlignedCodec.load(profile.codec, profile.adapters)

    @torch.inference_mode()
    def deliver(self, seed: int) -> bytes:
        """Prompt to PNG, PSNR included, as one request does it."""
        latents = self._edge.latents(PROMPT, seed)
        shape = (latents.shape[1], latents.shape[2], latents.shape[3])
        link, channel_uses = LinkConditions(snr_db=10.0, fading="rayleigh"), round(CBR * 3 * 128 * 128)
        if self._aligned is None:
            reception = transmit(self._codec.encode(latents, channel_uses), [link], [seed])
            received = self._codec.decode(mmse_equalize(reception).symbols, shape)
        else:
            told = condition_vector(CBR, link, at="sender")[None]
            reception = transmit(self._aligned.encode(latents, [channel_uses], told), [link], [seed])
            blocks = block_snr_db(reception.gains, reception.no)[0]
            seen = condition_vector(CBR, link, at="receiver", block_snr_db=blocks)[None]
            received = self._aligned.decode(mmse_equalize(reception).symbols, shape, seen)
        pixels = self._edge.decoder.decode(received)[0]
        psnr_db(pixels, self._edge.decoder.decode(latents)[0])
        return to_png(pixels)


def run_chain_bench(
    *, requests: int = 40, threads: int = 1, profile: str = "embedded", results: Path = RESULTS
) -> float:
    """Alternate requests over REST and in one process, each with a seed of its own so that no cache helps.

    Args:
        requests: how many each way.
        threads: CPU threads of each model, the same in the services and in the one process.
        profile: the models.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `chain_overhead_ratio`; its interval is
        that of the median over the paired ratios' 2.5 and 97.5 % order statistics.
    """
    console = Console()
    seeds = count(1_000_000)
    torch.set_num_threads(threads)
    os.environ["DEKAG_THREADS"] = str(threads)
    local = OneProcess(profile)
    through, alone = [], []
    with Stack((RUN_DIR / "bench").resolve(), free_ports=True) as stack:
        await_ready(stack, console)
        for index in range(-3, requests):  # the first three warm up
            start = time.perf_counter()
            ask(stack.url, {"prompt": PROMPT, "seed": next(seeds), "link": LINK})
            middle = time.perf_counter()
            local.deliver(next(seeds))
            if index >= 0:
                through.append(middle - start)
                alone.append(time.perf_counter() - middle)
    ratio = statistics.median(through) / statistics.median(alone)
    pairs = sorted(a / b for a, b in zip(through, alone, strict=True))
    spread = 0.98 * len(pairs) ** 0.5  # 95 % order-statistic interval of a median
    low, high = pairs[int(len(pairs) / 2 - spread)], pairs[int(len(pairs) / 2 + spread)]
    record(
        "chain_overhead_ratio", ratio, "ratio", command=COMMAND, count=requests, ci95=[low, high],
        results=results,
    )  # fmt: skip
    console.print(
        f"{1e3 * statistics.median(through):.0f} ms through all services, "
        f"{1e3 * statistics.median(alone):.0f} ms in one process: ratio {ratio:.3f}"
    )
    return ratio


def run_distill_bench(*, topics: Sequence[str], profile: str = "embedded", results: Path = RESULTS) -> float:
    """Time from asking for a distillation over REST to holding the first picture drawn with it.

    Args:
        topics: of the embedded world, distilled one after another with the default settings.
        profile: the models.
        results: where headline.json is.

    Returns:
        The mean over the topics, s, written to headline.json as `distill_seconds`.
    """
    console = Console()
    os.environ["DEKAG_PROFILE"] = profile
    folder = (RUN_DIR / "bench-distill").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    seconds = []
    with Stack(folder, free_ports=True) as stack:
        await_ready(stack, console)
        for topic in topics:
            start = time.perf_counter()
            job = _answer(httpx2.post(f"{stack.url}/v1/knowledge", json={"topic": topic}, trust_env=False))
            while job["status"] in ("queued", "running"):
                time.sleep(0.2)
                job = _answer(httpx2.get(f"{stack.url}/v1/jobs/{job['id']}", trust_env=False))
            if job["status"] != "finished":
                raise LaunchError(f"the distillation of {topic} ended as {job['status']}: {job['error']}")
            image = ask(stack.url, {"prompt": PROMPT, "seed": 1, "knowledge": topic})
            used = [each["topic"] for each in image["link_report"]["knowledge"]]
            if used != [topic]:
                raise LaunchError(f"the picture was drawn with {used}, not with {topic}")
            seconds.append(time.perf_counter() - start)
            console.print(f"{topic}: {seconds[-1]:.1f} s")
    mean = statistics.mean(seconds)
    ci95 = mean_ci95(seconds)[1] if len(seconds) > 1 else None
    record(
        "distill_seconds", mean, "s", command="dekag bench distill", count=len(seconds), ci95=ci95,
        results=results,
    )  # fmt: skip
    return mean


def _answer(response: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    if response.status_code >= 400:
        raise LaunchError(f"{body['title']}: {body['detail']}")
    return body
