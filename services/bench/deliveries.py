"""`dekag bench deliveries`: cost and quality of single deliveries, the table behind `dekag simulate`.

Every row comes from the link report of a request through all services, or from a distillation that they did.
The simulation of a city looks deliveries up in this table instead of generating images.

Compute is CPU time, since the duration of a stage depends on what else runs on the machine: the CPU time of a
service's process during a request is divided among its stages in proportion to their durations. Each model
has one thread, so on an idle machine CPU time and duration are nearly the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from dekag.api.schemas import LinkReport
from dekag.client import Client
from dekag.errors import NotFoundError
from dekag.evaluation.pages import Row
from dekag.evaluation.prompts import edge_prompts, topic_prompts
from dekag.evaluation.registry import RESULTS
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from dekag.simulation.deliveries import CITY, NAME
from dekag.stickers import TOPICS
from services.bench.processes import chain
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError
from services.launcher.up import RUN_DIR, await_ready

SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
SERVICES = ("edge", "cloud", "user")
CBRS = tuple(Fraction(1, parts) for parts in (768, 384, 192, 96))
FADING = "rayleigh"
SCORED_SNR_DB = 10.0  # where images are compared with the cloud's
FIRST_SEED = 5_000_000


def run_deliveries_bench(
    *,
    prompts: int = 8,
    topics: Sequence[str] = (),
    distil: str = "rocket",
    profile: str = "stickers",
    results: Path = RESULTS,
) -> list[Row]:
    """Measure deliveries of each kind over a grid of SNRs and rates, and one distillation.

    Args:
        prompts: prompts that the edge knows without any update.
        topics: topics whose shipped updates are published, one prompt each; all of the profile if empty.
        distil: topic that is distilled for its CPU time; no request uses it.
        profile: the models.
        results: the table is written into its folder city/.

    Returns:
        Rows of three kinds, `kind`: "delivery" (one per request), "update" (bytes of an update) and
        "distillation" (CPU seconds).

    Raises:
        NotFoundError: the profile ships no update of one of the topics.
    """
    console = Console()
    folder = load_profile(profile).knowledge
    shipped = sorted(path.parent for path in Path(folder or "").glob("*/knowledge.json")) if folder else []
    updates = {path.name: path for path in shipped if not topics or path.name in topics}
    updates.pop(distil, None)  # its new version would replace the one that requests use
    if missing := set(topics) - {*updates, distil}:
        raise NotFoundError(f"the profile {profile} ships no update of {', '.join(sorted(missing))}")
    rows: list[Row] = []
    load_before = os.getloadavg()[0]
    # jobs of an interrupted run would be resumed, and counted
    shutil.rmtree((RUN_DIR / "bench" / NAME).resolve(), ignore_errors=True)
    env = {"DEKAG_DEADLINE_S": "300"}  # the machine may be busy: times do not count, CPU time does
    with (
        chain(NAME, profile, **env) as stack,
        Client(stack.url, timeout_s=330, retries=5) as gateway,
    ):
        await_ready(stack, console)
        requests = list(_requests(prompts, sorted(updates)))
        for path in updates.values():
            gateway.publish(path)
            size = KnowledgeUpdate.load(path).size_bytes
            rows.append({"kind": "update", "topic": path.name, "bytes": size})
        pids = {name: stack[name].process.pid for name in (*SERVICES, "distiller")}
        before_s = _cpu_s(pids["distiller"])
        job_id = gateway.start(distil).id  # beside the requests: its process has a CPU time of its own
        for about, call in track(requests, "requests", console=console):
            before = {name: _cpu_s(pids[name]) for name in SERVICES}
            image = gateway.image(**call)
            spent = {name: _cpu_s(pids[name]) - before[name] for name in SERVICES}
            rows.append({"kind": "delivery", **about, **_row(image.report, spent), "consistency": None})
        for row, call in _scored(rows, requests):
            scored = gateway.image(**call, consistency=True)
            if scored.consistency is not None:
                row["consistency"] = scored.consistency.mean
        *_, job = gateway.watch(job_id)
        if job.status != "finished":
            raise LaunchError(f"the distillation of {distil} ended as {job.status}: {job.error}")
        seconds = _cpu_s(pids["distiller"]) - before_s
        rows.append({"kind": "distillation", "topic": distil, "seconds": seconds})
    config = {
        "profile": profile,
        "prompts": prompts,
        "topics": sorted(updates),
        "fading": FADING,
        "load_average": [load_before, os.getloadavg()[0]],
    }
    write_bench(NAME, config, rows, results, folder=CITY)
    return rows


def _requests(prompts: int, topics: Sequence[str]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """What a row says of a request, and the arguments of `Client.image`."""
    asked = [("known", prompt, seed) for _, prompt, seed in edge_prompts(prompts)]
    asked += [(name, prompt, seed) for name in topics for _, prompt, seed in topic_prompts(TOPICS[name], 1)]
    for number, (topic, prompt, _) in enumerate(asked):
        for snr_db in SNRS_DB:
            for cbr in CBRS:
                # without its update, a topic differs in what is generated, not in how it is transmitted
                scored = snr_db == SCORED_SNR_DB and cbr == CBRS[-1]
                for knowledge in ("auto", "none") if scored and topic != "known" else ("auto",):
                    about = {"topic": topic, "taught": knowledge == "auto", "delivery": "semantic"}
                    link = {"snr_db": snr_db, "fading": FADING, "cbr": float(cbr)}
                    yield (
                        {**about, "prompt": number, "snr_db": snr_db, "cbr_parts": cbr.denominator},
                        {
                            "prompt": prompt, "seed": FIRST_SEED + number, "link": link,
                            "knowledge": knowledge,
                        },
                    )  # fmt: skip
            yield (
                {"topic": topic, "taught": False, "delivery": "conventional", "prompt": number,
                 "snr_db": snr_db, "cbr_parts": None},
                {"prompt": prompt, "seed": FIRST_SEED + number, "delivery": "conventional",
                 "link": {"snr_db": snr_db, "fading": FADING}},
            )  # fmt: skip


def _scored(
    rows: Sequence[Row], requests: Sequence[tuple[Row, dict[str, Any]]]
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Rows whose images are compared with the cloud's, apart from those whose CPU time is measured."""
    deliveries = [row for row in rows if row["kind"] == "delivery"]
    for row, (about, call) in zip(deliveries, requests, strict=True):
        best = about["cbr_parts"] in (None, CBRS[-1].denominator)
        if row["decoded"] and best and about["snr_db"] == SCORED_SNR_DB:
            yield row, call


def _cpu_s(pid: int) -> float:
    """CPU time that a process has used so far in all threads, s."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _row(report: LinkReport, spent: Mapping[str, float]) -> Row:
    durations = {each.stage: each.seconds for each in report.stages}
    total: dict[str, float] = {}
    for stage, seconds in durations.items():
        service = stage.split(".")[0]
        total[service] = total.get(service, 0.0) + seconds
    stages = {
        stage: seconds / total[service] * spent[service]
        for stage, seconds in durations.items()
        if (service := stage.split(".")[0]) in spent and total[service] > 0
    }
    hops = {each.hop: each.sent_bytes for each in report.hops}
    return {
        "decoded": report.decoded,
        "psnr_db": report.psnr_db,
        "channel_uses": report.channel_uses + report.pilot_uses,
        "file_bytes": None if report.coding is None else report.coding.payload_bytes,
        "backhaul_bytes": hops.get("cloud-edge", 0),
        "cached": report.cached,
        "stages_s": {name: round(seconds, 6) for name, seconds in stages.items()},
    }
