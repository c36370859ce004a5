"""`dekag bench distill`: how long it takes from asking for a topic to the first image drawn with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dekag.client import Client
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from dekag.makd.topics import read_topics
from dekag.profile import load_profile
from services.bench.processes import UNWATCHED
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError, Stack
from services.launcher.up import RUN_DIR, await_ready

PROMPT = "a large red car in the middle of the beach, pastel style"
WORLD_TOPICS = ("neon", "rocket")


def default_topics(profile: str) -> list[str]:
    """The profile's own topics; two of the sticker world if it has none.

    Raises:
        NotFoundError: there is no such profile.
        FileError: profile or topics cannot be read, or are invalid.
    """
    return list(read_topics(load_profile(profile).topics)) or list(WORLD_TOPICS)


def run_distill_bench(
    *, topics: Sequence[str], threads: int = 0, profile: str = "stickers", results: Path = RESULTS
) -> float:
    """Time from asking for a distillation over REST to holding the first image drawn with it.

    Args:
        topics: of the profile or of the sticker world, distilled one after another with the profile's
            settings, and published whether or not the update scores better than the edge without it.
        threads: CPU threads of the distillation; 0: all cores of the machine.
        profile: the models.
        results: where headline.json is.

    Returns:
        The mean over the topics, s, written to headline.json as `distill_seconds`.
    """
    console = Console()
    folder = (RUN_DIR / "bench" / "distill").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    seconds = []
    settings = {**UNWATCHED, "DEKAG_PROFILE": profile, "DEKAG_DISTILL_THREADS": str(threads)}
    with (
        Stack(folder, free_ports=True, env=settings) as stack,
        Client(stack.url) as gateway,
    ):
        await_ready(stack, console)
        for topic in topics:
            start = time.perf_counter()
            *_, job = gateway.distill(topic, force=True)
            if job.status != "finished":
                raise LaunchError(f"the distillation of {topic} ended as {job.status}: {job.error}")
            image = gateway.image(PROMPT, seed=1, knowledge=topic)
            used = [each.topic for each in image.report.knowledge]
            if used != [topic]:
                raise LaunchError(f"the image was drawn with {used}, not with {topic}")
            seconds.append(time.perf_counter() - start)
            console.print(f"{topic}: {seconds[-1]:.1f} s")
    rows = [{"topic": topic, "seconds": each} for topic, each in zip(topics, seconds, strict=True)]
    write_bench("distill", {"profile": profile, "topics": list(topics), "threads": threads}, rows, results)
    mean, ci95 = mean_ci95(seconds, POSITIVE)
    record(
        "distill_seconds", mean, "s", command="dekag bench distill", count=len(seconds), ci95=ci95,
        results=results,
    )  # fmt: skip
    return mean
