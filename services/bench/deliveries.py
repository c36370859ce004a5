"""`dekag bench deliveries`: cost and quality of single deliveries, the table behind `dekag simulate`.

Quality, channel uses and bytes come from the link reports of requests through all services. The simulation of
a city looks deliveries up in this table instead of generating images.

Compute is CPU time, since the duration of a stage depends on what else runs on the machine. It is taken in
five phases, latents without and with an update, and files, that are new or cached: the CPU time of each
service's process in a phase, divided by its requests. Each model has one thread, so on an idle machine it is
close to the duration. The duration of a distillation is what `dekag bench distill` measured.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from services.bench.results_io import read_bench, write_bench
from services.launcher.up import RUN_DIR, await_ready

SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
CBRS = tuple(Fraction(1, parts) for parts in (768, 384, 192, 96))
FADING = "rayleigh"
FIRST_SNR_DB, FIRST_CBR = 10.0, CBRS[-1]
"""Of the first request for an image, which generates it."""
FIRST_SEED = 5_000_000
PHASES = ("latent", "taught latent", "cached latent", "file", "cached file")
SERVICES = ("edge", "cloud", "user")
_Request = tuple[Row, dict[str, Any]]  # what its row says, and the arguments of `Client.image`


def run_deliveries_bench(
    *,
    prompts: int = 8,
    topics: Sequence[str] = (),
    at_once: int = 4,
    profile: str = "stickers",
    results: Path = RESULTS,
) -> list[Row]:
    """Measure deliveries of each kind over a grid of SNRs and rates.

    Args:
        prompts: prompts that the edge knows without any update.
        topics: topics whose shipped updates are published, one prompt each; all of the profile if empty.
        at_once: requests in flight.
        profile: the models.
        results: the table is written into its folder city/.

    Returns:
        Rows of four kinds, `kind`: "delivery" (one per request), "cpu" (one per phase), "update" (bytes of an
        update) and "distillation" (seconds).

    Raises:
        NotFoundError: the profile ships no update of one of the topics.
        NotMeasuredError: no distillation was measured.
    """
    console = Console()
    folder = load_profile(profile).knowledge
    shipped = sorted(path.parent for path in Path(folder or "").glob("*/knowledge.json")) if folder else []
    updates = {path.name: path for path in shipped if not topics or path.name in topics}
    if missing := set(topics) - set(updates):
        raise NotFoundError(f"the profile {profile} ships no update of {', '.join(sorted(missing))}")
    distilled = read_bench("distill", results)
    source = {name: distilled[name] for name in ("command", "commit", "date")}
    rows: list[Row] = [{"kind": "distillation", **row, "source": source} for row in distilled["rows"]]
    load_before = os.getloadavg()[0]
    # an interrupted run would leave updates and jobs
    shutil.rmtree((RUN_DIR / "bench" / NAME).resolve(), ignore_errors=True)
    env = {"DEKAG_DEADLINE_S": "300"}  # the machine may be busy: times do not count, CPU time does
    with (
        chain(NAME, profile, **env) as stack,
        Client(stack.url, timeout_s=330, retries=5) as gateway,
        ThreadPoolExecutor(at_once) as threads,
    ):
        await_ready(stack, console)
        for path in updates.values():
            gateway.publish(path)
            size = KnowledgeUpdate.load(path).size_bytes
            rows.append({"kind": "update", "topic": path.name, "bytes": size})
        pids = {name: stack[name].process.pid for name in SERVICES}

        def answer(request: _Request, *, consistency: bool = False) -> Any:
            return gateway.image(**request[1], consistency=consistency)

        for phase, requests in _requests(prompts, sorted(updates)).items():
            before = {name: _cpu_s(pid) for name, pid in pids.items()}
            answers = threads.map(answer, requests)
            images = list(track(answers, phase, total=len(requests), console=console))
            spent = {name: _cpu_s(pid) - before[name] for name, pid in pids.items()}
            durations: Counter[str] = Counter()
            scores: list[float | None] = [None] * len(requests)
            if phase != "cached file":  # afterwards: it would count as CPU time of the phase
                scored = threads.map(lambda request: answer(request, consistency=True), requests)
                scores = [each.consistency and each.consistency.mean for each in scored]
            for (about, _), image, score in zip(requests, images, scores, strict=True):
                durations.update({each.stage: each.seconds for each in image.report.stages})
                rows.append({"kind": "delivery", "phase": phase, **about, **_row(image.report)})
                rows[-1]["consistency"] = score
            rows.append({"kind": "cpu", "phase": phase, "requests": len(requests), **spent})
            rows[-1]["durations_s"] = {stage: round(seconds, 4) for stage, seconds in durations.items()}
    config = {
        "profile": profile,
        "prompts": prompts,
        "topics": sorted(updates),
        "at_once": at_once,
        "fading": FADING,
        "load_average": [load_before, os.getloadavg()[0]],
    }
    write_bench(NAME, config, rows, results, folder=CITY)
    return rows


def _requests(prompts: int, topics: Sequence[str]) -> Mapping[str, Sequence[_Request]]:
    """The requests of each phase: all images are generated in the first and third, and then cached."""
    asked = [("known", prompt) for _, prompt, _ in edge_prompts(prompts)]
    asked += [(name, prompt) for name in topics for _, prompt, _ in topic_prompts(TOPICS[name], 1)]
    phases: dict[str, list[_Request]] = {phase: [] for phase in PHASES}
    for number, (topic, prompt) in enumerate(asked):
        common = {"prompt": prompt, "seed": FIRST_SEED + number}
        for snr_db in SNRS_DB:
            link = {"snr_db": snr_db, "fading": FADING}
            about = {"topic": topic, "prompt": number, "snr_db": snr_db}
            for cbr in CBRS:
                first = (snr_db, cbr) == (FIRST_SNR_DB, FIRST_CBR)
                for knowledge in ("auto",) if topic == "known" else ("auto", "none"):
                    row = {
                        "delivery": "semantic",
                        "taught": knowledge == "auto",
                        "cbr_parts": cbr.denominator,
                    }
                    call = {"link": {**link, "cbr": float(cbr)}, "knowledge": knowledge}
                    new = "latent" if topic == "known" or knowledge == "none" else "taught latent"
                    phase = new if first else "cached latent"
                    phases[phase].append(({**about, **row}, {**common, **call}))
            row = {"delivery": "conventional", "taught": False, "cbr_parts": None}
            phase = "file" if snr_db == FIRST_SNR_DB else "cached file"
            phases[phase].append(({**about, **row}, {**common, "link": link, "delivery": "conventional"}))
    return phases


def _cpu_s(pid: int) -> float:
    """CPU time that a process has used so far in all threads, s."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _row(report: LinkReport) -> Row:
    hops = {each.hop: each.sent_bytes for each in report.hops}
    return {
        "decoded": report.decoded,
        "psnr_db": report.psnr_db,
        "channel_uses": report.channel_uses + report.pilot_uses,
        "file_bytes": None if report.coding is None else report.coding.payload_bytes,
        "backhaul_bytes": hops.get("cloud-edge", 0),
        "cached": report.cached,
    }
