"""`dekag bench cost`: time, energy, backhaul and channel uses of one image, semantic and conventional.

The page on load adds them up over the number of images, with the cost of a topic's knowledge update. It
also shows how the time of a semantic image grows with its size.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from dekag.api.limits import MIN_PIXELS, PIXEL_STEP
from dekag.client import Client
from dekag.energy import EnergyMeter
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from dekag.profile import load_profile
from services.bench.pipeline import LINK
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.throughput import prompts_of_the_world
from services.launcher.up import await_ready

DELIVERIES = ("semantic", "conventional")
DELIVERY, SIZE = "delivery", "size"
"""Kinds of rows."""
BACKHAUL = "cloud-edge"
WARM_UP = 2
FIRST_SEED, FIRST_SIZE_SEED = 3_000_000, 4_000_000


def run_cost_bench(*, requests: int = 16, profile: str = "stickers", results: Path = RESULTS) -> list[Row]:
    """Ask for the same images with both deliveries, one after another, in turn.

    Args:
        requests: images of each delivery.
        profile: the models.
        results: the rows are written into its folder load/.

    Returns:
        A row of kind "delivery" for each image: `seconds` it took, `joules` of the processor (None where the
        machine has no counters that can be read), `backhaul_bytes` between cloud and edge, `channel_uses`
        with pilots, `psnr_db` against what was sent. A row of kind "size" for each semantic image of half the
        profile's size, of its size and of twice its size: `pixels` and `seconds`.
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
                            "kind": DELIVERY,
                            "request": index,
                            "delivery": delivery,
                            "seconds": seconds,
                            "joules": joules,
                            "backhaul_bytes": hops.get(BACKHAUL, 0),
                            "channel_uses": report.channel_uses + report.pilot_uses,
                            "psnr_db": report.psnr_db,
                        }
                    )
        rows += _sizes(gateway, sides_of(profile), requests, console)
    write_bench("cost", {"profile": profile, "requests": requests, "link": LINK}, rows, results)
    return rows


def sides_of(profile: str) -> list[int]:
    """Sides of the images whose time is compared, pixels: half the profile's, its own, and twice that.

    Sides that no request may have are left out.
    """
    models = load_profile(profile)
    sides = (models.size // 2, models.size, 2 * models.size)
    return [side for side in sides if MIN_PIXELS <= side <= models.largest and side % PIXEL_STEP == 0]


def _sizes(gateway: Client, sides: list[int], requests: int, console: Console) -> list[Row]:
    """Semantic images of each size, in turn."""
    prompts = prompts_of_the_world()
    rows: list[Row] = []
    for index in track(range(-WARM_UP, requests), "sizes", console=console):
        for side in sides:
            start_s = time.perf_counter()
            gateway.image(
                prompts[index % len(prompts)], seed=FIRST_SIZE_SEED + index, size=f"{side}x{side}", link=LINK
            )
            if index >= 0:
                seconds = time.perf_counter() - start_s
                rows.append({"kind": SIZE, "request": index, "pixels": side**2, "seconds": seconds})
    return rows
