"""`dekag bench restoration`: what the user service holds more once a request asked for restoration."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from dekag.client import Client
from dekag.errors import NotFoundError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from dekag.profile import load_profile
from services.bench.pipeline import LINK
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.bench.start import memory
from services.bench.throughput import prompts_of_the_world
from services.launcher.up import await_ready

SERVICE = "user"
PHASES = ("start", "images", "first restored image", "restored images")


def run_restoration_bench(
    *,
    requests: int = 4,
    profile: str = "stickers",
    results: Path = RESULTS,
    proc: Path = Path("/proc"),
) -> list[Row]:
    """Ask the chain for images, then for restored ones, and read from /proc what the user service holds.

    Args:
        requests: images of each kind.
        profile: the models; they need adapters that say how to restore.
        results: folder of the results; writes load/bench-restoration.json.
        proc: Linux's /proc.

    Returns:
        A row for each of PHASES: PSS and RSS of the user service afterwards, GiB, and the seconds that its
        last request took.

    Raises:
        NotFoundError: the profile has no adapters.
    """
    if load_profile(profile).adapters is None:
        raise NotFoundError(f"the profile {profile} names no adapters, which restoration needs")
    console, rows = Console(), []
    prompts = prompts_of_the_world()
    with chain("restoration", profile) as stack, Client(stack.url) as client:
        await_ready(stack, console)
        (pid,) = (child.process.pid for child in stack.children if child.name == SERVICE)
        for phase, images, restored in zip(PHASES, (0, requests, 1, requests), (0, 0, 1, 1), strict=True):
            row: Row = {"after": phase}
            for seed in range(images):
                link = {**LINK, "restoration": "denoiser" if restored else "none"}
                start = time.perf_counter()
                client.image(prompts[seed % len(prompts)], seed=seed, link=link)
                row["last_s"] = time.perf_counter() - start
            rows.append({**row, **memory([pid], proc)})
            console.print(f"after {phase}: PSS {rows[-1]['pss_gib']:.3f} GiB", highlight=False)
    write_bench("restoration", {"profile": profile, "requests": requests}, rows, results)
    return rows
