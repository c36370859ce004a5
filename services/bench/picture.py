"""`dekag bench picture`: time of an image through the link, relative to the first edition's models.

The first edition's code and models are those of an earlier commit of this repository; they run in a process
of their own, in turn with today's.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import track

from dekag.evaluation.pages import Row
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import ratio_of_medians
from dekag.paths import SHIPPED
from dekag.profile import profile_folder
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError

FIRST_EDITION, FIRST_PROFILE = "af831e1", "embedded"
PROMPT = "a large red car in the middle of the beach, pastel style"
WARM_UP = 3
_WORKER = """
import sys, time, torch
torch.set_num_threads(1)
from dekag import LinkConditions, SemanticLink
link, conditions = SemanticLink.load(sys.argv[1]), LinkConditions(snr_db=10, fading="rayleigh")
for line in sys.stdin:
    start = time.perf_counter()
    link.image(sys.argv[2], conditions, seed=int(line)).psnr_db
    print(time.perf_counter() - start, flush=True)
"""


def run_picture_bench(*, requests: int = 20, profile: str = "stickers", results: Path = RESULTS) -> float:
    """Alternate images of today's profile and of the first edition's, each with a seed of its own.

    An image is generated, encoded, sent, equalised, decoded and compared with what was sent, on one thread.

    Args:
        requests: images of each.
        profile: today's models.
        results: where headline.json is.

    Returns:
        The ratio of the median times, written to headline.json as `picture_time_ratio`.

    Raises:
        LaunchError: the first edition's commit is not in this clone, or a process fails.
    """
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        unpack_commit(FIRST_EDITION, Path(folder))
        first = stack.enter_context(_worker(Path(folder), FIRST_PROFILE))
        ours = stack.enter_context(_worker(SHIPPED, str(profile_folder(profile).resolve())))
        for index in track(range(-WARM_UP, requests), "images", console=console):
            row: Row = {"request": index, "first_s": _seconds(first, index), "ours_s": _seconds(ours, index)}
            if index >= 0:
                rows.append(row)
    times, earlier = [row["ours_s"] for row in rows], [row["first_s"] for row in rows]
    ratio, ci95 = ratio_of_medians(times, earlier)
    config = {"profile": profile, "requests": requests, "first_edition": FIRST_EDITION}
    write_bench("picture", config, rows, results)
    record(
        "picture_time_ratio", ratio, "ratio",
        command="dekag bench picture", count=requests, ci95=ci95, results=results,
    )  # fmt: skip
    console.print(
        f"{1e3 * statistics.median(times):.0f} ms an image, "
        f"{1e3 * statistics.median(earlier):.0f} ms in the first edition: ratio {ratio:.2f}"
    )
    return ratio


def unpack_commit(commit: str, folder: Path) -> None:
    """Write library and models of a commit into `folder`; LaunchError if it is not in this clone."""
    command = ["git", "archive", commit, "dekag", "models", "pyproject.toml"]
    done = subprocess.run(command, cwd=SHIPPED, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise LaunchError(f"commit {commit} is needed: run this in a clone with its whole history")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


@contextmanager
def _worker(root: Path, profile: str) -> Iterator[subprocess.Popen[str]]:
    """A process that loads a profile with the code in `root`; prints seconds for each seed that it reads."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", _WORKER, profile, PROMPT],
        cwd=root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _seconds(process: subprocess.Popen[str], index: int) -> float:
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    print(index + WARM_UP, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise LaunchError(f"the process ended with status {process.wait()} instead of an image")
    return float(answer)
