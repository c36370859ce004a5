"""Processes of the cloud are killed at random moments while they publish and distil; `make test-trust`.

Nothing half-written may ever be seen, no job may be lost, revived or published twice, and after the next
start nothing may be left of what was killed. KILLS sets the number of kills, SEED their moments; MINUTES ends
the kills of each kind after that time, however many there were.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from dekag.errors import ConflictError
from dekag.evaluation.registry import record
from dekag.evaluation.reports.robustness import REPORT
from dekag.makd.update import KnowledgeUpdate
from services.cloud.housekeeping import Housekeeping
from services.cloud.jobs import OVER
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import clients
from services.proto import cloud_pb2
from services.proto.cloud_pb2 import DistillRequest, Job, JobId
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from tests.chain import starter
from tests.hostile.artifacts import tiny_update
from tests.runs import write_run
from tests.trust.killing import Moments, Reader, Zygote, is_alive, kill, residue

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

pytestmark = [pytest.mark.trust, pytest.mark.asyncio(loop_scope="session")]
KINDS = {"publishing": 0.8, "distilling": 0.2}
WANTED = os.environ.get("KILLS", "")
KILLS = {kind: round(share * int(WANTED or 1000)) for kind, share in KINDS.items()}
MINUTES = os.environ.get("MINUTES", "")
COMMAND = f"{WANTED and f'KILLS={WANTED} '}{MINUTES and f'MINUTES={MINUTES} '}make test-trust"
MAY_END = 10  # processes that end before they are killed; each is an error
TIDY_EVERY = 50  # kills: a running cloud tidies every minute
SEED = int(os.environ.get("SEED", "1"))
TOPICS = ("neon", "snail", "crown", "rocket")
SMALL = {"images": 4, "steps": 2, "rank": 1, "tokens": 1, "force": True}
NAMES = {number: name.removeprefix("JOB_STATUS_").lower() for name, number in cloud_pb2.JobStatus.items()}
Start = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, Any]]]:
    """What was found by kind; a whole run with ``--record`` writes it."""
    found: dict[str, dict[str, Any]] = {}
    start = time.monotonic()
    yield found
    if request.config.getoption("--record") and found.keys() == KINDS.keys():
        write(found, time.monotonic() - start)


def write(found: dict[str, dict[str, Any]], seconds: float) -> None:
    """Writes results/trust/kills.json, two figures and the page that shows them."""
    tried = sum(kind["kills"] for kind in found.values())
    left = sum(
        len(kind[name]) for kind in found.values() for name in ("residue", "half_visible", "lost", "wrong")
    )
    content = {
        "seconds": round(seconds),
        "seed": SEED,
        "kinds": found,
    }
    write_run("kills", COMMAND, content)
    record("kills_tried", tried, "kills", command=COMMAND, count=tried)
    record("kills_residue", left, "items", command=COMMAND, count=tried)
    REPORT.write()


def more(kills: int, kind: str, start: float) -> bool:
    """Whether to kill again."""
    return kills < KILLS[kind] and time.monotonic() - start < 60 * float(MINUTES or "inf")


@pytest.fixture(scope="module")
def zygote(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(dummy_profile, tmp_path_factory.mktemp("killed")) as zygote:
        yield zygote


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_killed_while_publishing(
    zygote: Zygote, dummy_profile: Path, data: Path, tmp_path: Path, tally: dict[str, dict[str, Any]]
) -> None:
    await asyncio.to_thread(_kill_publishing, zygote, dummy_profile, data, tmp_path, tally)


def _kill_publishing(
    zygote: Zygote, profile: Path, data: Path, tmp_path: Path, tally: dict[str, dict[str, Any]]
) -> None:
    update, folders = tiny_update(profile), []
    for number in range(2):
        folders.append(tmp_path / f"update{number}")
        info = {**update.info, "guidance_scale": 1.5 + number}
        KnowledgeUpdate.new(info, update.metaword, update.lora, bits=16).save(folders[-1])
    env = {"DEKAG_DATA_DIR": str(data), "DEKAG_PROFILE": str(profile), "DEKAG_LOG_LEVEL": "error"}
    store, moments, store_folder = KnowledgeStore(data), Moments(SEED), data / "knowledge"
    found: dict[str, Any] = {"kills": 0, "lost": [], "wrong": []}
    housekeeping, leftovers = Housekeeping(CloudSettings(data_dir=data)), set[str]()
    published, start = 0, time.monotonic()
    with Reader(data) as reader:
        while more(found["kills"], "publishing", start) and len(found["wrong"]) < MAY_END:
            process = zygote.start("publish", env, [str(folder) for folder in folders] * 500)
            watched = [store_folder, store_folder / update.topic]
            for _ in range(moments.rng.randint(1, 6)):
                moments.wait_for_change(watched, 20)
            if kill(process):
                found["kills"] += 1
            else:
                found["wrong"].append("a process ended before it was killed")
            leftovers |= {path.name for path in store_folder.glob(".*")}
            if found["kills"] % TIDY_EVERY == 0:
                housekeeping.tidy()
            version = store.current_version(update.topic)
            if version < published:
                found["lost"].append(f"version {published} of {update.topic}, now {version}")
            published = version
    housekeeping.tidy()  # as the cloud does when it starts
    found |= {
        "leftovers": len(leftovers),
        "versions": published,
        "reads": reader.seen,
        "half_visible": reader.half_visible,
        "residue": residue(data),
    }
    tally["publishing"] = found
    _check(found)


@pytest_asyncio.fixture(loop_scope="session")
async def start() -> AsyncIterator[Start]:
    async with starter() as run:
        yield run


async def test_killed_while_distilling(
    zygote: Zygote,
    dummy_profile: Path,
    data: Path,
    new_database: Callable[[], str],
    start: Start,
    tally: dict[str, dict[str, Any]],
) -> None:
    settings = CloudSettings(
        port=0,
        redis_url=new_database(),
        profile=str(dummy_profile),
        data_dir=data,
        job_heartbeat_s=2,
        job_attempts=100_000,
        mirror_every_s=0.2,
        keep_versions=1000,
        keep_jobs=100_000,
    )
    address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
    channel = clients.open_channel(address, settings)
    found = await _kill_distilling(zygote, CloudStub(channel), settings)
    await channel.close()
    Housekeeping(settings).tidy()
    found["residue"] = residue(data)
    tally["distilling"] = found
    _check(found)


async def _kill_distilling(zygote: Zygote, cloud: CloudAsyncStub, settings: CloudSettings) -> dict[str, Any]:
    moments, data = Moments(SEED), settings.data_dir
    env = {
        "DEKAG_DATA_DIR": str(data),
        "DEKAG_PROFILE": settings.profile,
        "DEKAG_REDIS_URL": settings.redis_url,
        "DEKAG_SWEEP_EVERY_S": "1",
        "DEKAG_PREVIEWS": "1",
        "DEKAG_JOB_KEEP_S": str(settings.job_keep_s),
    }
    jobs: dict[str, Job] = {}
    cancelled: set[str] = set()
    found: dict[str, Any] = {"kills": 0}
    leftovers, by_themselves, start = set[str](), list[str](), time.monotonic()
    with Reader(data) as reader:
        while more(found["kills"], "distilling", start) and len(by_themselves) < MAY_END:
            unfinished = await _renew(cloud, jobs, cancelled, moments)
            process = await asyncio.to_thread(zygote.start, "distiller", env)
            await asyncio.to_thread(_wait, moments, data, unfinished)
            if await asyncio.to_thread(kill, process):
                found["kills"] += 1
            else:
                by_themselves.append("a process ended before it was killed")
            leftovers |= {path.name for path in (data / "knowledge").glob(".*")}
        last = await asyncio.to_thread(zygote.start, "distiller", env)
        deadline = time.monotonic() + 300
        while await _unfinished(cloud, jobs, cancelled) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        os.kill(last, signal.SIGTERM)
        while is_alive(last) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    versions = {topic: KnowledgeStore(data).versions(topic) for topic in KnowledgeStore(data).topics()}
    makers = [manifest.job for known in versions.values() for manifest in known.values()]
    ended = [name for name in jobs if NAMES[(await _get(cloud, name)).status] == "finished"]
    found |= {
        "leftovers": len(leftovers),
        "jobs": len(jobs),
        "cancelled": len(cancelled),
        "reads": reader.seen,
        "half_visible": reader.half_visible,
        "lost": [name for name in jobs if name not in cancelled and name not in ended],
        "wrong": [
            *by_themselves,
            *(f"{name} was cancelled and published" for name in cancelled & set(makers)),
            *(
                f"{name} was published {makers.count(name)} times"
                for name in ended
                if makers.count(name) != 1
            ),
        ],
    }
    return found


def _wait(moments: Moments, data: Path, unfinished: list[str]) -> None:
    """Until the process is at a random stage of its work, and a random moment longer."""
    stage = moments.rng.choice(["start", "images", "checkpoint", "decision", "publish"])
    watched = {
        "images": [data / "jobs" / name / "images" for name in unfinished],
        "checkpoint": [data / "jobs" / name / "checkpoint" for name in unfinished],
        "decision": [data / "ended", data / "jobs"],
        "publish": [data / "knowledge", *(data / "knowledge" / topic for topic in TOPICS)],
    }
    if stage == "start":
        time.sleep(moments.rng.uniform(0.0, 3.0))
    else:
        for _ in range(moments.rng.randint(1, 3)):
            moments.wait_for_change(watched[stage], 15)


async def _renew(
    cloud: CloudAsyncStub, jobs: dict[str, Job], cancelled: set[str], moments: Moments
) -> list[str]:
    """Starts jobs, so that two are unfinished, and sometimes cancels one; returns the unfinished ones."""
    unfinished = await _unfinished(cloud, jobs, cancelled)
    if unfinished and moments.rng.random() < 0.1:
        name = moments.rng.choice(unfinished)
        with contextlib.suppress(ConflictError):  # over or publishing already
            await clients.call(cloud.CancelJob, JobId(id=name), "cloud")
            cancelled.add(name)
    unfinished = await _unfinished(cloud, jobs, cancelled)
    free = [topic for topic in TOPICS if topic not in {jobs[name].topic for name in unfinished}]
    for topic in moments.rng.sample(free, max(0, 2 - len(unfinished))):
        order = DistillRequest(topic=topic, seed=len(jobs), **SMALL)
        job = await clients.call(cloud.Distill, order, "cloud")
        jobs[job.id] = job
        unfinished.append(job.id)
    return unfinished


async def _unfinished(cloud: CloudAsyncStub, jobs: dict[str, Job], cancelled: set[str]) -> list[str]:
    states = {name: NAMES[(await _get(cloud, name)).status] for name in jobs}
    for name in cancelled:
        assert states[name] == "cancelled", "a decision is final"
    return [name for name, status in states.items() if status not in OVER]


async def _get(cloud: CloudAsyncStub, name: str) -> Job:
    return await clients.call(cloud.GetJob, JobId(id=name), "cloud")


def _check(found: dict[str, Any]) -> None:
    print(json.dumps({name: value for name, value in found.items() if value}, indent=1))  # noqa: T201
    for name in ("half_visible", "residue", "lost", "wrong"):
        assert not found[name], name
