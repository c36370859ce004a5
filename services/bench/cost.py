"""`dekag bench cost`: time, energy, backhaul and channel uses of one image, semantic and conventional.

The page on load adds them up over the number of images, with the cost of a topic's knowledge update.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from dekag.client import Client
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from services.bench.energy import EnergyMeter
from services.bench.pipeline import LINK
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.throughput import prompts_of_the_world
from services.launcher.up import await_ready

DELIVERIES = ("semantic", "conventional")
BACKHAUL = "cloud-edge"
WARM_UP = 2
FIRST_SEED = 3_000_000


def run_cost_bench(*, requests: int = 16, profile: str = "stickers", results: Path = RESULTS) -> list[Row]:
    """Ask for the same images with both deliveries, one after another, in turn.

    Args:
        requests: images of each delivery.
        profile: the models.
        results: the rows are written into its folder load/.

    Returns:
        A row for each image: `seconds` it took, `joules` of the processor (None where the machine has no
        counters that can be read), `backhaul_bytes` between cloud and edge, `channel_uses`
        with pilots, `psnr_db` against what was sent.
    """
    console = Console()
    prompts = prompts_of_the_world()
    rows: list[Row] = []
    meter = EnergyMeter()
    with chain("cost", profile) as stack, Client(stack.url) as gateway:
        await_ready(stack, console)
        for index in track(range(-WARM_UP, requests), "requests", console=console):
            for delivery in DELIVERIES:
                link = {k: v for k, v in LINK.items() if k != "cbr" or delivery != "conventional"}
                prompt, seed = prompts[index % len(prompts)], FIRST_SEED + index
                meter.joules()  # what was used before
                start_s = time.perf_counter()
                image = gateway.image(prompt, seed=seed, delivery=delivery, link=link)
                seconds, joules = time.perf_counter() - start_s, meter.joules()
                if index >= 0:
                    report = image.report
                    hops = {each.hop: each.sent_bytes for each in report.hops}
                    rows.append(
                        {
                            "request": index,
                            "delivery": delivery,
                            "seconds": seconds,
                            "joules": joules,
                            "backhaul_bytes": hops.get(BACKHAUL, 0),
                            "channel_uses": report.channel_uses + report.pilot_uses,
                            "psnr_db": report.psnr_db,
                        }
                    )
    write_bench("cost", {"profile": profile, "requests": requests, "link": LINK}, rows, results)
    return rows
