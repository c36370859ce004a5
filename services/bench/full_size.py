"""`dekag bench full-size`: the chain and a distillation with models of the real architectures and sizes.

The weights are random, so times and memory are real and images are noise.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from dekag.client import Client
from dekag.console import plain_console
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS
from dekag.generation.images import from_bytes
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError
from services.launcher.up import RUN_DIR, await_ready

FOLDER = "real-models"
PROMPT = "a photograph of a red fox in the snow"
DEADLINE_S = 3600.0
_KIB_PER_GIB = 2**20


def run_full_size_bench(
    *, models: Path | None = None, results: Path = RESULTS, proc: Path = Path("/proc")
) -> list[Row]:
    """Deliver a 512x512 image semantically and conventionally over REST, and distil two steps (MAKD).

    Args:
        models: folder for the models, 5 GB, written if missing. Default: one in the runs folder.
        results: folder of the results; writes real-models/bench-full-size.json.
        proc: Linux's /proc.

    Returns:
        A row for each task (seconds, channel uses) and for each process (peak memory, GiB).

    Raises:
        LaunchError: a service did not start, or the distillation failed.
    """
    from dekag.training.full_size_models import save_full_size_models

    console = plain_console()
    folder = (models or RUN_DIR / "bench" / "full-size-models").resolve()
    if not (folder / "profile.json").exists():
        console.print(f"writing models to {folder}")
        save_full_size_models(folder)
    limits = {"DEKAG_DEADLINE_S": f"{DEADLINE_S:g}", "DEKAG_GRADIENT_CHECKPOINTING": "true"}
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        console.print(", ".join(f"{name} {value}" for name, value in row.items()))

    start = time.perf_counter()
    with (
        chain("full-size", str(folder), **limits) as stack,
        Client(stack.url, timeout_s=DEADLINE_S) as client,
    ):
        await_ready(stack, console)
        note({"task": "start", "seconds": time.perf_counter() - start})
        for delivery in ("semantic", "conventional"):
            start = time.perf_counter()
            image = client.image(PROMPT, seed=1, delivery=delivery, link={"snr_db": 20.0, "fading": "awgn"})
            row: Row = {"task": delivery, "seconds": time.perf_counter() - start}
            if image.png is None:
                raise LaunchError(f"the {delivery} delivery was not decoded")
            height, width, _ = from_bytes(image.png).shape
            row |= {"width": width, "height": height, "channel_uses": image.report.channel_uses}
            note(row | {f"{each.stage}_s": each.seconds for each in image.report.stages})
        start = time.perf_counter()
        *_, job = client.distill("fox", prompts=[f"{PROMPT}, {{1|2|3|4|5|6|7|8}}"], force=True)
        if job.status != "finished":
            raise LaunchError(f"the distillation ended as {job.status}: {job.error}")
        note({"task": "distillation", "seconds": time.perf_counter() - start})
        for child in stack.children:
            note({"process": child.name, "peak_gib": peak_gib(child.process.pid, proc)})
    write_bench("full-size", {"weights": "random", "dtype": "bfloat16"}, rows, results, folder=FOLDER)
    return rows


def peak_gib(pid: int, proc: Path = Path("/proc")) -> float:
    """Largest resident memory that a process has had, GiB."""
    status = (proc / str(pid) / "status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / _KIB_PER_GIB if found else 0.0
