"""`dekag bench throughput`: images per second of the services, of LitServe and of a plain FastAPI handler.

Closed loop: each user asks for its next image when the last has come, with a seed of its own so that no
cache helps. In the same round all servers are asked for the same images.
"""

from __future__ import annotations

import base64
import importlib.util
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from dekag.evaluation.pages import Row
from dekag.evaluation.prompts import edge_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.evaluation.statistics import POSITIVE, mean_ci95
from services.bench.pipeline import LINK
from services.bench.processes import THREADS, awake, chain, server, start
from services.bench.results_io import write_bench
from services.launcher.stack import LaunchError, Stack

COMMAND = "dekag bench throughput"
OURS = "services"
USERS = (1, 2, 4, 8, 16)
HEADLINE_USERS = (8, 16)
HEADLINES = {"bench_litserve_ratio": "litserve", "bench_fastapi_ratio": "fastapi"}
PROMPTS = 16
FIRST_SEED = 20
SEEDS = 100_000  # kept for each round and number of users
MAX_BATCH = 16
_LITSERVE, _FASTAPI = "services.bench.litserve_server", "services.bench.fastapi_server"


class Answer(NamedTuple):
    """What a server made of one question.

    Attributes:
        png: the image.
        psnr_db: against what was sent, dB.
        cached: whether it was drawn for an earlier request.
    """

    png: bytes
    psnr_db: float
    cached: bool


@dataclass(frozen=True)
class Kind:
    """How the servers of one kind are asked.

    Attributes:
        path: of the URL.
        fields: of the body, beside prompt and seed.
        read: the answer in the body that comes back.
    """

    path: str
    fields: Mapping[str, Any]
    read: Callable[[Any], Answer]

    def ask(self, client: httpx2.Client, url: str, prompt: str, seed: int) -> Answer:
        """The answer to one question; LaunchError if it is none."""
        body = {"prompt": prompt, "seed": seed, **self.fields}
        try:
            response = client.post(f"{url}{self.path}", json=body)
        except httpx2.HTTPError as error:
            raise LaunchError(f"{url} does not answer: {error!r}") from error
        if response.status_code != 200:
            raise LaunchError(f"{url} answers {response.status_code}: {response.text[:500]}")
        return self.read(response.json())


def _ours(body: Any) -> Answer:
    image = body["data"][0]
    report = image["link_report"]
    return Answer(base64.b64decode(image["b64_json"]), report["psnr_db"], report["cached"])


CHAIN = Kind("/v1/images/generations", {"link": LINK}, _ours)
PREDICT = Kind(
    "/predict", {}, lambda body: Answer(base64.b64decode(body["b64_json"]), body["psnr_db"], False)
)


@dataclass(frozen=True)
class Contender:
    """A server that is running."""

    name: str
    url: str
    kind: Kind


def litserve_is_there() -> bool:
    """Whether LitServe is installed, the extra `bench`."""
    return importlib.util.find_spec("litserve") is not None


def servers_of(profile: str) -> dict[str, Stack]:
    """What is compared, by name; none of them started."""
    options = ("--profile", profile)
    return {
        OURS: chain("throughput", profile),
        "litserve": server("litserve", _LITSERVE, *options),
        "fastapi": server("fastapi", _FASTAPI, *options),
        "fastapi, 2 processes": server("fastapi-2", _FASTAPI, *options, "--workers", "2"),
        "litserve, 2 workers": server("litserve-2", _LITSERVE, *options, "--workers", "2"),
        "litserve, batches": server("litserve-batch", _LITSERVE, *options, "--max-batch", str(MAX_BATCH)),
    }


def run_throughput_bench(
    *,
    requests: int = 48,
    rounds: int = 5,
    users: Sequence[int] = USERS,
    profile: str = "stickers",
    servers: Sequence[str] = (),
    results: Path = RESULTS,
) -> list[Row]:
    """Measure every server with every number of users, the servers in turn and in another order each round.

    Args:
        requests: images that are timed for each server, number of users and round; besides, two for each
            user are not timed, as not all users are busy then.
        rounds: how often; the intervals are over them.
        users: numbers of closed-loop users.
        profile: the models.
        servers: names of those to measure; all if empty.
        results: where headline.json is.

    Returns:
        A row for each measurement. Of `bench_litserve_ratio` and `bench_fastapi_ratio` in headline.json, each
        is the smallest ratio of images per second, ours to theirs, over 8 and 16 users.

    Raises:
        LaunchError: a server does not start or does not answer with an image, or LitServe is missing.
    """
    if not litserve_is_there():
        raise LaunchError("LitServe is not installed: pip install -e '.[bench]'")
    console = Console()
    known = servers_of(profile)
    if unknown := set(servers) - set(known):
        raise LaunchError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    rows: list[Row] = []
    with ExitStack() as stacks:
        contenders = []
        for name in servers or known:
            stack = stacks.enter_context(known[name])
            start(stack, console)
            kind = CHAIN if name == OURS else PREDICT
            contenders.append(Contender(name, stack.url, kind))
        prompts = prompts_of_the_world()
        seeds = count(FIRST_SEED)
        for contender in contenders:  # the first images pay for what is set up at first use
            with awake(known[contender.name]):
                measure(contender, users=max(users), requests=max(users), prompts=prompts, first_seed=0)
        with Progress(console=console) as progress:
            task = progress.add_task("throughput", total=rounds * len(users) * len(contenders))
            for number in range(rounds):
                for busy in users:
                    first_seed = next(seeds) * SEEDS
                    turn = (number + users.index(busy)) % len(contenders)
                    for contender in [*contenders[turn:], *contenders[:turn]]:
                        with awake(known[contender.name]):
                            found = measure(
                                contender,
                                users=busy,
                                requests=requests,
                                prompts=prompts,
                                first_seed=first_seed,
                            )
                        rows.append({"round": number, "users": busy, "server": contender.name, **found})
                        progress.advance(task)
    config = {
        "profile": profile,
        "requests": requests,
        "rounds": rounds,
        "users": list(users),
        "prompts": len(prompts),
        "link": LINK,
        "threads": dict(THREADS),
    }
    write_bench("throughput", config, rows, results)
    record_headlines(rows, results)
    for name in (contender.name for contender in contenders):
        shown = ", ".join(f"{mean_of(rows, name, busy, 'images_per_s'):.2f} at {busy}" for busy in users)
        console.print(f"{name}: {shown} users, images/s", highlight=False)
    return rows


def prompts_of_the_world(number: int = PROMPTS) -> list[str]:
    """Held-out prompts that the edge knows without any update."""
    return [prompt for _, prompt, _ in edge_prompts(number)]


def measure(
    contender: Contender, *, users: int, requests: int, prompts: Sequence[str], first_seed: int
) -> dict[str, float]:
    """ImageSet per second of one server with so many users, while all of them are busy.

    Args:
        baseline: asked.
        users: who ask, each its next question as soon as the last is answered.
        requests: images timed, from when as many have come as there are users.
        prompts: asked for in turn.
        first_seed: the questions count up from it.

    Returns:
        `images_per_s`; `p50_s` and `p95_s`, latencies; `psnr_db`, mean over the `images` that came, all dB
        and s.
    """
    total = requests + 2 * users
    numbers: Iterator[int] = iter(range(total))
    taking = threading.Lock()
    came: list[tuple[float, float, float]] = []

    def user() -> None:
        with httpx2.Client(trust_env=False, timeout=90.0) as client:
            while True:
                with taking:
                    number = next(numbers, None)
                if number is None:
                    return
                asked = time.perf_counter()
                prompt, seed = prompts[number % len(prompts)], first_seed + number
                answer = contender.kind.ask(client, contender.url, prompt, seed)
                end = time.perf_counter()
                if answer.cached or not answer.png.startswith(b"\x89PNG"):
                    raise LaunchError(f"{contender.name} answers with no image of its own for seed {seed}")
                came.append((end, end - asked, answer.psnr_db))

    with ThreadPoolExecutor(users) as pool:
        for working in [pool.submit(user) for _ in range(users)]:
            working.result()
    came.sort()
    # of all questions as many are left as there are users when the last of these comes: all were busy
    begin, end = came[users - 1][0], came[users - 1 + requests][0]
    latencies = [latency for _, latency, _ in came[users : users + requests]]
    return {
        "images_per_s": requests / (end - begin),
        "p50_s": float(np.percentile(latencies, 50)),
        "p95_s": float(np.percentile(latencies, 95)),
        "psnr_db": statistics.fmean(psnr for _, _, psnr in came),
        "images": total,
    }


def mean_of(rows: Sequence[Row], name: str, users: int, what: str) -> float:
    """Mean over the rounds of one column, of one server at one number of users."""
    return statistics.fmean(values(rows, name, users, what))


def values(rows: Sequence[Row], name: str, users: int, what: str) -> list[float]:
    """One column of one server at one number of users, a value for each round."""
    return [row[what] for row in rows if (row["server"], row["users"]) == (name, users)]


def ratios(rows: Sequence[Row], name: str, users: int) -> list[float]:
    """ImageSet per second of the services over those of a server, for each round."""
    ours, theirs = (values(rows, each, users, "images_per_s") for each in (OURS, name))
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def record_headlines(rows: Sequence[Row], results: Path) -> None:
    """The two figures of headline.json, if what they are made of was measured."""
    measured = {(row["server"], row["users"]) for row in rows}
    for key, name in HEADLINES.items():
        if not {(each, users) for each in (OURS, name) for users in HEADLINE_USERS} <= measured:
            continue
        means = {users: mean_ci95(ratios(rows, name, users), POSITIVE) for users in HEADLINE_USERS}
        users = min(means, key=lambda each: means[each][0])
        value, ci95 = means[users]
        rounds = len(ratios(rows, name, users))
        record(key, value, "ratio", command=COMMAND, count=rounds, ci95=ci95, results=results)
