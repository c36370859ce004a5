"""The life of a distillation: queue, progress, result, cancelling, and workers that die."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from saq import Status
from structlog.testing import capture_logs

from dekag.documents import read_json
from dekag.errors import ConflictError, ExhaustedError, InvalidInputError, NotFoundError, UnavailableError
from dekag.makd.update import KnowledgeUpdate
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from services.cloud.distiller import Distiller
from services.cloud.housekeeping import check_quotas
from services.cloud.job_folder import JobFolders
from services.cloud.jobs import DistillQueue
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings, DistillerSettings
from services.cloud.version_store import KnowledgeStore
from services.common import clients
from services.common.errors import SettingError
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
from services.proto import cloud_pb2
from services.proto.cloud_pb2 import DeleteKnowledgeRequest, DistillRequest, GetKnowledgeRequest, Job, JobId
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub
from tests.chain import ended, gone
from tests.hostile.artifacts import tiny_update

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("redis")]
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]
Work = Callable[[], subprocess.Popen[bytes]]

SMALL = {"images": 4, "steps": 4, "rank": 1, "tokens": 1}
ENDLESS = SMALL | {"steps": 100_000}
HEARTBEAT_S = 3


@pytest.fixture(scope="module")
def redis_url(new_database: Callable[[], str]) -> str:
    """Of a database for these tests alone."""
    return new_database()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> CloudAsyncStub:
    """A cloud whose Redis is mirrored often."""
    settings = CloudSettings(
        port=0,
        redis_url=redis_url,
        profile=str(dummy_profile),
        data_dir=data_dir,
        job_heartbeat_s=HEARTBEAT_S,
        job_poll_s=0.05,
        mirror_every_s=0.1,
    )
    return CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))


@pytest.fixture
def settings(dummy_profile: Path, redis_url: str, data_dir: Path, tmp_path: Path) -> DistillerSettings:
    """Of a distiller."""
    return DistillerSettings(
        redis_url=redis_url,
        profile=str(dummy_profile),
        data_dir=data_dir,
        sweep_every_s=1,
        distill_threads=1,
        health_file=tmp_path / "healthy",
    )


async def test_a_client_cannot_fill_the_queue(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    settings = CloudSettings(
        port=0,
        redis_url=redis_url,
        profile=str(dummy_profile),
        data_dir=data_dir,
        max_client_jobs=2,
        max_jobs=3,
    )
    cloud = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))

    async def order(topic: str, client: str, job_id: str = "") -> Job:
        return await clients.call(
            cloud.Distill, DistillRequest(topic=topic, client=client, job_id=job_id, **SMALL), "cloud"
        )

    first = await order("snail", "alice", "a" * 32)
    await order("crown", "alice")
    with pytest.raises(ExhaustedError, match="2 jobs of this client wait or run") as refused:
        await order("neon", "alice")
    assert refused.value.retry_after_s
    assert (await order("snail", "alice", "a" * 32)).id == first.id, "it is the same job"
    await order("neon", "bob")
    with pytest.raises(ExhaustedError, match="3 jobs wait or run"):
        await order("rocket", "carol")
    await clients.call(cloud.CancelJob, JobId(id=first.id), "cloud")
    await order("rocket", "carol")
    with pytest.raises(InvalidInputError, match="client"):
        await order("ufo", "x" * 65)


CASTLES = [f"castle number {number}" for number in range(20)]
VAST = [f"{number:03} " + "\U00020000" * 996 for number in range(1000)]


async def test_a_client_cannot_fill_redis_or_the_disk_with_prompts(
    start: Start, connect: Connect, redis: Redis, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    settings = CloudSettings(
        port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir, max_jobs_mib=8
    )
    cloud = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))

    async def order(topic: str, client: str, job_id: str = "", prompts: list[str] = VAST) -> Job:
        given = {"topic": topic, "client": client, "job_id": job_id, **SMALL}
        asked = DistillRequest(prompts=prompts, triggers=["vast"], **given)
        return await clients.call(cloud.Distill, asked, "cloud")

    before = (await redis.info("memory"))["used_memory"]
    for number in range(3):
        name = f"{number:032x}"
        job, second = await order("vast", "alice", name), await order("broad", "alice")
        with pytest.raises(ExhaustedError, match=r"would take 11.. MiB, and the limit is 8 MiB") as refused:
            await order("wide", "alice")
        assert "of all jobs of this client" in str(refused.value)
        assert "DEKAG_MAX_CLIENT_JOBS_MIB" in str(refused.value)
        with pytest.raises(ExhaustedError, match="DEKAG_MAX_JOBS_MIB"):
            await order("wide", "bob")
        assert refused.value.retry_after_s
        small = await order("crown", "alice", prompts=[])
        assert (await redis.info("memory"))["used_memory"] - before < 2**20
        assert (await order("vast", "alice", name)).id == job.id
        for each in (job, second, small):
            await clients.call(cloud.CancelJob, JobId(id=each.id), "cloud")
        assert (await order("vast", "alice", name)).status == cloud_pb2.JOB_STATUS_CANCELLED
        with pytest.raises(ConflictError, match="started with other parameters"):
            await order("vast", "alice", name, VAST[1:])
    records = list((data_dir / "ended").iterdir())
    assert len(records) == 9
    assert max(record.stat().st_size for record in records) < 2000


async def test_the_prompts_of_a_job_are_read_from_its_folder(
    cloud: CloudAsyncStub, redis: Redis, settings: DistillerSettings, data_dir: Path
) -> None:
    folders = JobFolders(data_dir)
    job = await distil(cloud, "castle", prompts=CASTLES, triggers=["castle"], **SMALL)
    damaged = await distil(cloud, "palace", prompts=CASTLES, triggers=["castle"], **SMALL)
    for key in await redis.keys("saq:job:*"):
        assert b"castle in winter" not in (await redis.get(key) or b"")
    (folders.work(damaged.id) / "texts.json").write_text("{}")
    serving = asyncio.create_task(Distiller(settings).serve())
    try:
        finished = await until(cloud, job, over)
        failed = await until(cloud, damaged, over)
    finally:
        await ended(serving)
    assert finished.status == cloud_pb2.JOB_STATUS_FINISHED, finished
    assert KnowledgeStore(data_dir).find("castle").triggers == ("castle",)
    assert failed.error == (
        f"the prompts of job {damaged.id} on the disk are missing or damaged; start it again"
    )
    assert b"castle in winter" not in (data_dir / "ended" / f"{job.id}.json").read_bytes()


async def test_a_job_whose_prompts_an_earlier_release_saved_in_its_order_is_worked_off(
    cloud: CloudAsyncStub, settings: DistillerSettings, data_dir: Path
) -> None:
    folders = JobFolders(data_dir)
    order = {"prompts": CASTLES, "triggers": ["castle"], "config": SMALL, "force": False}
    names = {"castle": "1" * 32, "palace": "2" * 32}
    for topic, name in names.items():
        spec = {"order": {"topic": topic, **order}, "created": 1.7e9, "trace": {}, "client": "", "owner": ""}
        folders.save_spec(name, json.dumps(spec))
        if topic == "palace":  # it ended before the upgrade
            record = {**spec, "decision": "cancelled", "ended": 1.7e9}
            (data_dir / "ended").mkdir(exist_ok=True)
            (data_dir / "ended" / f"{name}.json").write_text(json.dumps(record))
            folders.delete(name)
    texts = {"prompts": CASTLES, "triggers": ["castle"]}
    again = await distil(cloud, "palace", job_id=names["palace"], **texts, **SMALL)
    assert again.status == cloud_pb2.JOB_STATUS_CANCELLED
    with pytest.raises(ConflictError, match="started with other parameters"):
        await distil(cloud, "palace", job_id=names["palace"], **texts | {"triggers": ["palace"]}, **SMALL)
    job = await distil(cloud, "castle", job_id=names["castle"], **texts, **SMALL)
    assert job.id == names["castle"]
    serving = asyncio.create_task(Distiller(settings).serve())
    try:
        finished = await until(cloud, job, over)
    finally:
        await ended(serving)
    assert finished.status == cloud_pb2.JOB_STATUS_FINISHED, finished
    assert b"castle in winter" not in (data_dir / "ended" / f"{job.id}.json").read_bytes()


async def test_jobs_of_a_newer_release_count_as_unfinished(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    order = {**KEPT["order"], "topic": "snail", "later": 1}
    JobFolders(data_dir).save_spec("1" * 32, json.dumps({**KEPT, "order": order, "client": "alice"}))
    given = {"port": 0, "redis_url": redis_url, "profile": str(dummy_profile), "data_dir": data_dir}
    for limits, client, refusal in (
        ({"max_client_jobs": 1}, "alice", "1 jobs of this client wait or run"),
        ({"max_jobs": 1}, "bob", "1 jobs wait or run"),
        ({"max_topics": 1}, "bob", "1 topics, which is the limit"),
    ):
        servicer = CloudServicer(CloudSettings(**given, **limits))
        request = DistillRequest(topic="crown", client=client, **SMALL)
        cloud = CloudStub(
            connect(await start(servicer, add_CloudServicer_to_server, CloudSettings(**given, **limits)))
        )
        with pytest.raises(ExhaustedError, match=refusal):
            await clients.call(cloud.Distill, request, "cloud")
        assert await servicer._jobs.unfinished() == {"queued": 1, "running": 0}
        if "max_topics" in limits:
            request.topic = "snail"
            with pytest.raises(ConflictError, match="already distilling topic 'snail'"):
                await clients.call(cloud.Distill, request, "cloud")
            (listed,) = (await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")).jobs
            assert (listed.id, listed.topic) == ("1" * 32, "snail")
            cancelled = await clients.call(cloud.CancelJob, JobId(id="1" * 32), "cloud")
            assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
            assert await servicer._jobs.unfinished() == {"queued": 0, "running": 0}
        await servicer.close()


async def test_a_key_sees_its_own_latest_jobs_among_many_of_others(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    folders = JobFolders(data_dir)
    names = {f"{number:032x}": "alice" if number < 3 else "bob" for number in range(110)}
    for created, (name, owner) in enumerate(names.items()):
        saved = KEPT | {"owner": owner, "created": 1.0 + created}
        folders.save_spec(name, json.dumps(saved))
        assert folders.decide(name, "cancelled")
        folders.end(name, {})
    settings = CloudSettings(port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir)
    cloud = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))
    for owner, count in (("alice", 3), ("bob", 100), ("carol", 0), (None, 100)):
        request = cloud_pb2.ListJobsRequest(owner=owner)
        listed = (await clients.call(cloud.ListJobs, request, "cloud")).jobs
        assert len(listed) == count
        assert {job.owner for job in listed} <= {owner} or owner is None
        assert [job.created for job in listed] == sorted((job.created for job in listed), reverse=True)


async def test_a_job_belongs_to_who_started_it_and_a_refused_one_claims_no_topic(
    start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    settings = CloudSettings(
        port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir, max_jobs=1, max_topics=1
    )
    cloud = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))
    job = await clients.call(cloud.Distill, DistillRequest(topic="snail", owner="alice", **SMALL), "cloud")
    assert job.owner == "alice"
    with pytest.raises(ExhaustedError):
        await clients.call(cloud.Distill, DistillRequest(topic="crown", owner="bob", **SMALL), "cloud")
    update = tiny_update(dummy_profile)
    publish = cloud_pb2.PublishKnowledgeRequest(topic="neon", owner="bob", files=update.to_files())
    with pytest.raises(ExhaustedError, match="1 topics, which is the limit"):
        await clients.call(cloud.PublishKnowledge, publish, "cloud")
    assert [file.name for file in (data_dir / "owners").iterdir()] == ["snail"]
    await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
    again = await clients.call(cloud.Distill, DistillRequest(topic="snail", owner="bob", **SMALL), "cloud")
    assert again.owner == "bob", "nothing of the topic was left"
    assert (await clients.call(cloud.GetJob, JobId(id=job.id), "cloud")).owner == "alice"


async def test_a_topic_that_is_deleted_and_published_again_at_once_stays_its_owners(
    start: Start,
    connect: Connect,
    dummy_profile: Path,
    redis_url: str,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = CloudSettings(
        port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir, mirror_every_s=3600
    )
    servicer = CloudServicer(settings)
    cloud = CloudStub(connect(await start(servicer, add_CloudServicer_to_server, settings)))
    update = tiny_update(dummy_profile)
    publish = cloud_pb2.PublishKnowledgeRequest(topic="neon", owner="alice", files=update.to_files())
    await clients.call(cloud.PublishKnowledge, publish, "cloud")
    os.utime(data_dir / "owners" / "neon", (1.0, 1.0))
    await clients.call(cloud.DeleteKnowledge, cloud_pb2.DeleteKnowledgeRequest(topic="neon"), "cloud")

    def tidy_first(*given: Any) -> None:
        for _ in range(2):
            servicer._housekeeping.tidy()
        check_quotas(*given)

    monkeypatch.setattr("services.cloud.servicer.check_quotas", tidy_first)
    answer = await clients.call(cloud.PublishKnowledge, publish, "cloud")
    assert answer.manifest.owner == "alice", "housekeeping came between claim and version"


async def test_a_job_that_takes_too_long_fails(cloud: CloudAsyncStub, settings: DistillerSettings) -> None:
    serving = asyncio.create_task(
        Distiller(settings.model_copy(update={"job_max_s": 1, "previews": 0})).serve()
    )
    try:
        job = await distil(cloud, **ENDLESS)
        ended_job = await until(cloud, job, lambda state: state.status == cloud_pb2.JOB_STATUS_FAILED)
    finally:
        await ended(serving)
    assert "took longer than 1 s" in ended_job.error
    assert "DEKAG_JOB_MAX_S" in ended_job.error


@pytest_asyncio.fixture(loop_scope="session")
async def distiller(settings: DistillerSettings) -> AsyncIterator[None]:
    """A distiller in this process."""
    serving = asyncio.create_task(Distiller(settings).serve())
    yield
    await ended(serving)


@pytest.fixture
def work(settings: DistillerSettings, tmp_path: Path) -> Iterator[Work]:
    """Starts a distiller process; all are ended in the end."""
    given = {name: value for name, value in settings.model_dump().items() if value is not None}
    env = {f"DEKAG_{name.upper()}": str(value) for name, value in given.items()}
    workers: list[subprocess.Popen[bytes]] = []

    def start_one() -> subprocess.Popen[bytes]:
        with (tmp_path / "distiller.log").open("ab") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "services.cloud.distiller"],
                    env=os.environ | env,
                    cwd=Path(__file__).parents[3],
                    stderr=log,
                )
            )
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.kill()
        worker.wait()


async def distil(cloud: CloudAsyncStub, topic: str = "neon", **config: Any) -> Job:
    return await clients.call(cloud.Distill, DistillRequest(topic=topic, **config), "cloud")


async def get(cloud: CloudAsyncStub, job: Job) -> Job:
    return await clients.call(cloud.GetJob, JobId(id=job.id), "cloud")


async def until(
    cloud: CloudAsyncStub, job: Job, enough: Callable[[Job], bool], timeout_s: float = 240
) -> Job:
    """The first state of ``job`` that is ``enough``; fails when it ends before."""
    async with asyncio.timeout(timeout_s):
        async for state in clients.stream(cloud.WatchJob, JobId(id=job.id), "cloud"):
            if enough(state):
                return state
    pytest.fail(f"ended: {state}")


def training(job: Job) -> bool:
    return job.stage == "train" and job.done > 0


def over(job: Job) -> bool:
    return job.status not in (cloud_pb2.JOB_STATUS_QUEUED, cloud_pb2.JOB_STATUS_RUNNING)


async def test_a_job_is_checked_queued_listed_and_cancelled_without_any_worker(cloud: CloudAsyncStub) -> None:
    job = await distil(cloud, **SMALL)
    assert job.status == cloud_pb2.JOB_STATUS_QUEUED
    assert (job.topic, job.stage, job.done, job.error) == ("neon", "", 0, "")
    assert abs(job.created - time.time()) < 60
    assert not job.HasField("started")
    with pytest.raises(ConflictError, match=job.id):
        await distil(cloud, **SMALL)
    other = await distil(cloud, "snail", **SMALL)
    jobs = await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")
    assert [each.id for each in jobs.jobs] == [other.id, job.id]

    cancelled = await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
    assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
    with pytest.raises(ConflictError, match="already over"):
        await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
    states = [state async for state in clients.stream(cloud.WatchJob, JobId(id=job.id), "cloud")]
    assert states == [cancelled]
    again = await distil(cloud, **SMALL)
    assert again.id != job.id
    with pytest.raises(NotFoundError, match="no job 'nobody'"):
        await clients.call(cloud.GetJob, JobId(id="nobody"), "cloud")


async def test_concurrent_orders_of_a_topic_queue_one_job(cloud: CloudAsyncStub) -> None:
    found = await asyncio.gather(*(distil(cloud, **SMALL) for _ in range(6)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == ["ConflictError"] * 5 + ["Job"]


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("topic", {"topic": "Neon lights"}),
        ("topic", {"topic": "auto"}),
        ("rank", {"topic": "neon", "rank": 0}),
        ("steps", {"topic": "neon", "steps": 2**31}),
        ("images", {"topic": "neon", "images": 1}),
        ("prompts", {"topic": "castle", "prompts": ["always the same"]}),
        ("prompts", {"topic": "castle", "prompts": ["!"]}),
        ("triggers", {"topic": "neon", "triggers": [""]}),
    ],
)
async def test_what_cannot_be_distilled_is_refused_at_once(
    cloud: CloudAsyncStub, field: str, request_: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await distil(cloud, **request_)
    assert caught.value.field == field
    assert caught.value.allowed
    assert str(caught.value).startswith(f"{field} must be")


async def test_an_unknown_topic_without_prompts_is_refused(cloud: CloudAsyncStub) -> None:
    with pytest.raises(NotFoundError, match="specify its prompts"):
        await distil(cloud, "cubism")


@pytest.mark.parametrize("url", ["", "closed"])
async def test_without_redis_distillation_is_unavailable_and_knowledge_is_not(
    start: Start, connect: Connect, dummy_profile: Path, data_dir: Path, closed_port: int, url: str
) -> None:
    settings = CloudSettings(
        port=0,
        redis_url=url and f"redis://127.0.0.1:{closed_port}/0",
        profile=str(dummy_profile),
        data_dir=data_dir,
        queue_timeout_s=0.2,
    )
    stub = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))
    for method, request in (
        (stub.Distill, DistillRequest(topic="neon")),
        (stub.GetJob, JobId(id="0" * 32)),
    ):
        with pytest.raises(UnavailableError, match="distillation needs Redis"):
            await clients.call(method, request, "cloud")
    answer = await clients.call(stub.ListKnowledge, cloud_pb2.ListKnowledgeRequest(), "cloud")
    assert not answer.knowledge
    JobFolders(data_dir).save_spec("1" * 32, json.dumps(KEPT))
    cancelled = await clients.call(stub.CancelJob, JobId(id="1" * 32), "cloud")
    assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
    listed = await clients.call(stub.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")
    assert list(listed.jobs) == [cancelled]
    await gone(JobFolders(data_dir).work("1" * 32))


async def test_a_job_is_worked_off_and_its_update_published(
    cloud: CloudAsyncStub, distiller: None, redis: Redis, data_dir: Path, tmp_path: Path
) -> None:
    job = await distil(cloud, **SMALL)
    states = [state async for state in clients.stream(cloud.WatchJob, JobId(id=job.id), "cloud")]
    last = states[-1]
    assert last.status == cloud_pb2.JOB_STATUS_FINISHED, last
    assert all(state.id == job.id for state in states)
    assert any(state.status == cloud_pb2.JOB_STATUS_RUNNING for state in states)
    assert last.version == 1
    assert last.created <= last.started <= last.finished <= time.time()
    await gone(data_dir / "jobs")

    store = KnowledgeStore(data_dir)
    manifest = store.find("neon")
    update = KnowledgeUpdate.from_files(store.files(manifest))
    assert (manifest.content_hash, manifest.base_hash) == (update.content_hash, update.base_hash)
    assert manifest.job == job.id
    assert manifest.triggers == update.triggers == TOPICS["neon"].triggers
    assert store.samples(manifest).startswith(b"\x89PNG")
    assert Manifest.parse(await redis.hget(CATALOGUE_KEY, "neon") or b"") == manifest
    files = await redis.hgetall(update_key(manifest.content_hash))
    assert KnowledgeUpdate.from_files({k.decode(): v for k, v in files.items()}).topic == "neon"

    request = GetKnowledgeRequest(topic="neon", files=True)
    got = await clients.call(cloud.GetKnowledge, request, "cloud")
    assert dict(got.files) == store.files(manifest)
    assert got.samples == b""
    assert update.history == {}, "it stays at the cloud"
    made = KnowledgeUpdate.from_files(store.files(manifest) | store.history(manifest))
    assert made.history["config"]["images"] == SMALL["images"]
    assert made.history["scores"].items() >= manifest.scores.items()

    again = await until(cloud, await distil(cloud, **SMALL, seed=1), over)
    assert again.version == 2
    got = await clients.call(cloud.GetKnowledge, GetKnowledgeRequest(topic="neon", samples=True), "cloud")
    assert got.manifest.version == 2
    assert got.samples.startswith(b"\x89PNG")
    got = await clients.call(cloud.GetKnowledge, GetKnowledgeRequest(topic="neon"), "cloud")
    assert list(got.versions) == [1, 2]

    await redis.flushdb()
    async with asyncio.timeout(10):
        while set(await redis.hgetall(CATALOGUE_KEY)) != {b"neon"}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await clients.call(cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic="neon"), "cloud")
    assert not await redis.exists(CATALOGUE_KEY)
    with pytest.raises(NotFoundError, match="none yet"):
        await clients.call(cloud.GetKnowledge, GetKnowledgeRequest(topic="neon"), "cloud")

    assert time.time() - (tmp_path / "healthy").stat().st_mtime < 10


@pytest.fixture
def judging_profile(dummy_profile: Path, tmp_path: Path) -> Path:
    """The tiny profile, with the sticker world's encoders to judge by."""
    folder = tmp_path / "judging"
    shutil.copytree(dummy_profile, folder)
    judges = load_profile("stickers").scorer
    assert judges is not None
    profile = read_json(folder / "profile.json")
    (folder / "profile.json").write_text(json.dumps({**profile, "scorer": judges.model_dump()}))
    return folder


async def test_an_update_that_is_no_better_is_kept_aside_unless_forced(
    cloud: CloudAsyncStub, settings: DistillerSettings, judging_profile: Path, data_dir: Path
) -> None:
    judging = settings.model_copy(update={"profile": str(judging_profile)})
    serving = asyncio.create_task(Distiller(judging).serve())
    try:
        first = await until(cloud, await distil(cloud, **SMALL, force=True), over)
        assert (first.version, first.kept_aside) == (1, "")
        again = await until(cloud, await distil(cloud, **SMALL), over)  # makes the same once more
        assert again.status == cloud_pb2.JOB_STATUS_FINISHED
        assert not again.HasField("version")
        assert "on held-out prompts it is not better than" in again.kept_aside
        assert again.scores["clip_current"] == again.scores["clip_after_beside_current"]
        store = KnowledgeStore(data_dir)
        assert list(store.versions("neon")) == [1]
        aside = KnowledgeUpdate.load(data_dir / "aside" / "neon" / "files")
        assert aside.topic == "neon"
        assert aside.history["scores"].items() >= again.scores.items()
        assert (store.aside_samples(again.id) or b"").startswith(b"\x89PNG")
        forced = await until(cloud, await distil(cloud, **SMALL, force=True), over)
        assert (forced.version, forced.kept_aside) == (2, "")
        assert store.find("neon").job == forced.id
    finally:
        await ended(serving)


async def test_a_running_job_is_cancelled_and_publishes_nothing(
    cloud: CloudAsyncStub, distiller: None, data_dir: Path
) -> None:
    job = await distil(cloud, **ENDLESS)
    running = await until(cloud, job, training)
    assert running.status == cloud_pb2.JOB_STATUS_RUNNING
    assert running.total == ENDLESS["steps"]
    assert running.loss > 0
    cancelled = await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
    assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
    following = await until(cloud, await distil(cloud, **SMALL), over)
    assert following.version == 1
    await gone(JobFolders(data_dir).work(job.id))
    assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_CANCELLED


async def test_a_job_that_fails_says_why_and_is_not_tried_again(
    cloud: CloudAsyncStub, settings: DistillerSettings, data_dir: Path
) -> None:
    job = await distil(cloud, **SMALL)
    blocked = JobFolders(data_dir).work(job.id) / "images"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_bytes(b"not a folder")
    with capture_logs() as logs:
        serving = asyncio.create_task(Distiller(settings).serve())
        failed = await until(cloud, job, over)
        await ended(serving)
    assert failed.status == cloud_pb2.JOB_STATUS_FAILED
    assert failed.error == f"internal error; see the log for request id {job.id}"
    assert [line["event"] for line in logs if line["event"].startswith("job")] == [
        "job started",
        "job failed",
    ]


@pytest.mark.slow
async def test_a_job_finishes_once_though_redis_loses_everything(
    cloud: CloudAsyncStub, redis: Redis, distiller: None, data_dir: Path
) -> None:
    job = await distil(cloud, **SMALL | {"steps": 60})
    await until(cloud, job, training)
    await redis.flushdb()
    assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_RUNNING
    after = await until(cloud, job, over)
    assert after.status == cloud_pb2.JOB_STATUS_FINISHED, after
    assert list(KnowledgeStore(data_dir).versions("neon")) == [1] == [after.version]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_job_outlives_its_worker_and_finishes_once(
    cloud: CloudAsyncStub, work: Work, data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    first = work()
    job = await distil(cloud, **SMALL | {"steps": 120, "images": 8})
    before = await until(cloud, job, lambda job: training(job) and job.done > 20)
    first.send_signal(number)
    assert await asyncio.to_thread(first.wait, 40) == (0 if number == signal.SIGTERM else -number)
    store, folders = KnowledgeStore(data_dir), JobFolders(data_dir)
    pictures = {path.name: path.stat().st_mtime_ns for path in (folders.work(job.id) / "images").iterdir()}
    for _ in range(2):
        work()
    seen: dict[str, int] = {}

    def finished(state: Job) -> bool:
        seen.update({path.name: path.stat().st_mtime_ns for path in _pictures(folders, job)})
        return over(state)

    after = await until(cloud, job, finished)
    assert after.status == cloud_pb2.JOB_STATUS_FINISHED, after
    assert after.version == 1
    assert after.started == before.started
    assert pictures.items() <= seen.items(), "the pictures were not drawn again"
    await asyncio.sleep(2)
    assert list(store.versions("neon")) == [1]
    assert (await get(cloud, job)) == after
    lines = [json.loads(line) for line in (tmp_path / "distiller.log").read_text().splitlines()]
    taken_up = [line["attempt"] for line in lines if line["event"] == "job started"]
    assert taken_up == [1, 2]
    assert sum(line["event"] == "knowledge published" for line in lines) == 1
    assert all(line.get("request_id", job.id) == job.id for line in lines)


def _pictures(folders: JobFolders, job: Job) -> list[Path]:
    try:
        return [path for path in (folders.work(job.id) / "images").iterdir() if path.suffix == ".png"]
    except FileNotFoundError:
        return []


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def taken(
    redis: Redis, folders: JobFolders, clock: Clock, *, attempts: int = 1, status: str = "active"
) -> DistillQueue:
    """Takes the one job that waits, and looks at it; the worker that took it says nothing from then on."""
    queue = DistillQueue(redis, folders, clock)
    job = await queue.dequeue(1)
    assert job is not None
    job.attempts, job.status = attempts, Status[status.upper()]
    job.started = job.touched = job.queued
    await redis.set(job.id, queue.serialize(job))
    assert await queue.sweep() == []
    return queue


@pytest.mark.parametrize("status", ["queued", "active"])
@pytest.mark.parametrize("listed", [True, False])
async def test_job_without_heartbeat_is_queued_again(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path, status: str, listed: bool
) -> None:
    job, clock = await distil(cloud, **SMALL), Clock()
    queue = await taken(redis, JobFolders(data_dir), clock, status=status)
    if not listed:  # a death at the wrong moment, or a Redis that lost a list
        await redis.delete("saq:distill:active", "saq:distill:incomplete")
    clock.now += HEARTBEAT_S + 1
    assert await queue.sweep() == ([job.id] if status == "active" else [])
    assert await queue.sweep() == ([job.id] if status == "queued" else [])
    assert await queue.sweep() == []
    assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_QUEUED
    assert await queue.count("queued") == 1
    assert await queue.count("active") == 0
    assert (await queue.dequeue(1)) is not None


@pytest.mark.parametrize("status", ["queued", "active"])
@pytest.mark.parametrize("ahead_s", [-7200, 7200])
async def test_clocks_that_were_set_hold_no_job_of_a_dead_worker_back(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path, status: str, ahead_s: int
) -> None:
    job, clock = await distil(cloud, **SMALL), Clock()
    queue = await taken(redis, JobFolders(data_dir), clock, status=status)
    stored = await queue.job(job.id)
    assert stored is not None
    stored.queued = stored.started = stored.touched = int(1000 * (time.time() + ahead_s))
    await redis.set(stored.id, queue.serialize(stored))
    assert await queue.sweep() == [], "a moment ago, something was heard of it"
    clock.now += HEARTBEAT_S + 1
    assert [*await queue.sweep(), *await queue.sweep()] == [job.id]


async def test_a_claimed_job_is_left_to_its_worker_whatever_the_clocks_say(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, clock, folders = await distil(cloud, **SMALL), Clock(), JobFolders(data_dir)
    with folders.claimed(job.id):
        queue = await taken(redis, folders, clock, attempts=5)
        stored = await queue.job(job.id)
        assert stored is not None
        stored.queued = stored.started = stored.touched = 1  # by a host whose clock is far behind
        await redis.set(stored.id, queue.serialize(stored))
        for _ in range(3):
            clock.now += 3600
            assert await queue.sweep() == []
        assert folders.work(job.id).exists()
        assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_RUNNING
    assert await queue.sweep() == [job.id]


async def test_waiting_or_running_job_is_left_alone(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, clock, folders = await distil(cloud, **SMALL), Clock(), JobFolders(data_dir)
    queue = DistillQueue(redis, folders, clock)
    for _ in range(3):
        assert await queue.sweep() == []
        clock.now += 3600
    queue = await taken(redis, folders, clock)
    for _ in range(3):
        stored = await queue.job(job.id)
        assert stored is not None
        await stored.update()  # a heartbeat
        clock.now += 0.9
        assert await queue.sweep() == []
    assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_RUNNING


async def test_a_job_whose_worker_died_does_not_wait_for_its_heartbeat(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, clock, folders = await distil(cloud, **SMALL), Clock(), JobFolders(data_dir)
    queue = await taken(redis, folders, clock)
    taken_up = await queue.job(job.id)
    assert taken_up is not None
    taken_up.heartbeat = 3600
    await redis.set(taken_up.id, queue.serialize(taken_up))
    clock.now += 10
    with folders.claimed(job.id):
        assert await queue.sweep() == []
    (lock := folders.work(job.id) / "lock").unlink()
    lock.mkdir()  # asking for the claim is an OSError
    assert await queue.sweep() == []
    lock.rmdir()
    assert await queue.sweep() == [job.id]


async def queued_again(redis: Redis, data_dir: Path, name: str) -> None:
    """Waits until the cloud has told Redis of the job that it lost."""
    queue = DistillQueue(redis, JobFolders(data_dir))
    async with asyncio.timeout(60):
        while await queue.job(name) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_job_that_redis_lost_is_queued_again_until_it_is_over(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job = await distil(cloud, **SMALL)
    queue = DistillQueue(redis, JobFolders(data_dir))
    await redis.flushdb()
    assert await get(cloud, job) == job  # from the disk, before the cloud has queued it again
    await redis.flushdb()
    assert list((await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")).jobs) == [job]
    await redis.flushdb()
    assert await distil(cloud, **SMALL, job_id=job.id) == job
    await redis.flushdb()
    await queued_again(redis, data_dir, job.id)
    assert await queue.count("queued") == 1
    await redis.flushdb()
    with pytest.raises(ConflictError, match=job.id):
        await distil(cloud, **SMALL)
    await redis.flushdb()
    cancelled = await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
    assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
    await redis.flushdb()
    other = await distil(cloud, **SMALL)
    assert other.id != job.id
    assert await get(cloud, job) == cancelled, "what ended is on disk"


async def test_running_job_lost_by_redis_is_not_queued_twice(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, folders = await distil(cloud, **SMALL), JobFolders(data_dir)
    queue = await taken(redis, folders, Clock())
    running = await queue.job(job.id)
    assert running is not None
    with folders.claimed(job.id):
        await redis.flushdb()
        assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_RUNNING
        await running.update()  # its worker's next word
        await asyncio.sleep(0.5)  # the cloud looks for lost jobs several times
        assert await queue.count("queued") == 0
        assert (await get(cloud, job)).status == cloud_pb2.JOB_STATUS_RUNNING
    folders.delete(job.id)


async def test_a_redis_restored_from_a_backup_revives_no_job(
    cloud: CloudAsyncStub, redis: Redis, settings: DistillerSettings, data_dir: Path
) -> None:
    cancelled, finished = await distil(cloud, **SMALL), await distil(cloud, "snail", **SMALL)
    backup = {key: await redis.dump(key) for key in await redis.keys("saq:*")}
    await clients.call(cloud.CancelJob, JobId(id=cancelled.id), "cloud")
    serving = asyncio.create_task(Distiller(settings).serve())
    try:
        await until(cloud, finished, over)
        await redis.flushdb()
        for key, value in backup.items():
            await redis.restore(key, 0, value or b"")
        assert (await get(cloud, cancelled)).status == cloud_pb2.JOB_STATUS_CANCELLED
        assert (await get(cloud, finished)).status == cloud_pb2.JOB_STATUS_FINISHED
        async with asyncio.timeout(60):
            while await redis.llen("saq:distill:queued"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        following = await until(cloud, await distil(cloud, "crown", **SMALL), over)
        assert following.status == cloud_pb2.JOB_STATUS_FINISHED
        await gone(data_dir / "jobs")
    finally:
        await ended(serving)
    store = KnowledgeStore(data_dir)
    assert {topic: manifest.version for topic, manifest in store.topics().items()} == {"crown": 1, "snail": 1}


async def test_clients_take_turns(cloud: CloudAsyncStub, redis: Redis, data_dir: Path) -> None:
    for number, (client, topic) in enumerate(
        [("alice", "neon"), ("alice", "snail"), ("alice", "crown"), ("bob", "rocket"), ("carol", "ufo")]
    ):
        await clients.call(
            cloud.Distill,
            DistillRequest(topic=topic, client=client, job_id=f"{number:032x}", **SMALL),
            "cloud",
        )
    queue = DistillQueue(redis, JobFolders(data_dir))
    taken_up = [await queue.dequeue(1) for _ in range(5)]
    assert [int(job.key, 16) for job in taken_up if job is not None] == [0, 3, 4, 1, 2]
    assert await queue.dequeue(1) is None


async def test_a_job_is_cancelled_though_redis_is_full(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job = await distil(cloud, **SMALL)
    await redis.config_set("maxmemory-policy", "noeviction")
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(UnavailableError, match="memory is full"):
            await distil(cloud, "snail", **SMALL)
        cancelled = await clients.call(cloud.CancelJob, JobId(id=job.id), "cloud")
        assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
        assert await get(cloud, job) == cancelled
    finally:
        await redis.config_set("maxmemory", 0)
    assert list((data_dir / "jobs").iterdir()) == [], "nor is the job left that could not be queued"
    assert (await distil(cloud, **SMALL)).id != job.id


async def test_a_second_cloud_refuses_the_data_folder_of_the_first(
    cloud: CloudAsyncStub, dummy_profile: Path, redis_url: str, data_dir: Path, start: Start
) -> None:
    settings = CloudSettings(port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir)
    with pytest.raises(SettingError, match=f"another cloud .process {os.getpid()} .* uses DEKAG_DATA_DIR"):
        await start(CloudServicer(settings), add_CloudServicer_to_server, settings)


async def test_a_job_whose_workers_all_die_is_given_up(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, clock = await distil(cloud, **SMALL), Clock()
    queue = await taken(redis, JobFolders(data_dir), clock, attempts=5)
    clock.now += HEARTBEAT_S + 1
    assert await queue.sweep() == [job.id]
    failed = await get(cloud, job)
    assert failed.status == cloud_pb2.JOB_STATUS_FAILED
    assert failed.error == "given up after 5 attempts: the distiller died each time"
    assert (await distil(cloud, **SMALL)).id != job.id


ORDER = {"topic": "neon", "prompts": [], "triggers": [], "config": {}}
KEPT = {"order": ORDER, "created": 1.7e9, "trace": {}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("0" * 32, b"", id="empty"),
        pytest.param("0" * 32, b"\xff\x00", id="no text"),
        pytest.param("0" * 32, b"[" * 100_000, id="deep"),
        pytest.param("0" * 32, b"[]", id="list"),
        pytest.param("0" * 32, b"{}", id="nothing in it"),
        pytest.param("0" * 32, json.dumps(KEPT | {"created": "now"}).encode(), id="time of letters"),
        pytest.param("0" * 32, json.dumps(KEPT | {"created": float("nan")}).encode(), id="time that is none"),
        pytest.param("0" * 32, json.dumps(KEPT | {"created": float("inf")}).encode(), id="endless time"),
        pytest.param("0" * 32, json.dumps(KEPT | {"created": True}).encode(), id="time that is true"),
        pytest.param("0" * 32, json.dumps(KEPT | {"created": 10**400}).encode(), id="time that is too late"),
        pytest.param("0" * 32, json.dumps(KEPT | {"trace": "x"}).encode(), id="trace of letters"),
        pytest.param("0" * 32, json.dumps(KEPT | {"trace": {"a": 1}}).encode(), id="trace of numbers"),
        pytest.param("0" * 32, json.dumps(KEPT | {"order": None}).encode(), id="no order"),
        pytest.param("0" * 32, json.dumps(KEPT | {"owner": 5}).encode(), id="owner 5"),
        pytest.param("0" * 32, json.dumps(KEPT | {"order": ORDER | {"topic": "../x"}}).encode(), id="topic"),
        pytest.param("0" * 32, json.dumps(KEPT | {"order": ORDER | {"topic": 5}}).encode(), id="topic 5"),
        pytest.param("0" * 32, json.dumps(KEPT | {"order": ORDER | {"prompts": "a"}}).encode(), id="prompt"),
        pytest.param(
            "0" * 32, json.dumps(KEPT | {"order": ORDER | {"triggers": [5]}}).encode(), id="trigger"
        ),
        pytest.param("0" * 32, json.dumps(KEPT | {"order": ORDER | {"config": []}}).encode(), id="config"),
        pytest.param("someones", json.dumps(KEPT).encode(), id="somebody else's folder"),
        pytest.param("A" * 32, json.dumps(KEPT).encode(), id="folder in capitals"),
        pytest.param("0" * 32 + "\n", json.dumps(KEPT).encode(), id="folder of two lines"),
        pytest.param(os.fsdecode(b"\xff\xfe"), json.dumps(KEPT).encode(), id="folder that is no text"),
    ],
)
async def test_an_order_that_is_damaged_is_put_aside_and_the_others_are_kept(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path, name: str, text: bytes
) -> None:
    job, folders = await distil(cloud, **SMALL), JobFolders(data_dir)
    folder = folders.work(name)
    folder.mkdir()
    (folder / "order.json").write_bytes(text)
    await redis.flushdb()
    await queued_again(redis, data_dir, job.id)
    listed = await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")
    assert [each.id for each in listed.jobs] == [job.id]
    async with asyncio.timeout(60):
        while (folder / "order.json").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (folder / "damaged-order.json").read_bytes() == text, "people can still look at it"


async def test_an_order_that_cannot_be_read_hides_no_other(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, folders = await distil(cloud, **SMALL), JobFolders(data_dir)
    with capture_logs() as logs:
        (folders.work("0" * 32) / "order.json").mkdir(parents=True)  # reading it is an OSError
        await redis.flushdb()
        await queued_again(redis, data_dir, job.id)
        async with asyncio.timeout(60):  # the orders are read in the folder's order: this one perhaps later
            while not any(line["log_level"] == "warning" and line.get("job") == "0" * 32 for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_folder_that_cannot_be_used_hides_no_other(
    cloud: CloudAsyncStub, redis: Redis, data_dir: Path
) -> None:
    job, folders = await distil(cloud, **SMALL), JobFolders(data_dir)
    first = "0" * 32
    (folders.work(first) / "lock").mkdir(parents=True)  # claiming it is an OSError
    (folders.work(first) / "order.json").write_text(json.dumps(KEPT))
    await redis.flushdb()
    await queued_again(redis, data_dir, job.id)


async def test_a_cloud_starts_among_damaged_orders_and_queues_the_others(
    redis: Redis, start: Start, connect: Connect, dummy_profile: Path, redis_url: str, data_dir: Path
) -> None:
    folders, texts = JobFolders(data_dir), (b"{", b"[]", b"null", b"\xff", b'{"created": NaN}')
    for number, text in enumerate(texts):
        folders.work(f"{number:032x}").mkdir(parents=True)
        (folders.work(f"{number:032x}") / "order.json").write_bytes(text)
    whole = {"a" * 32: "neon", "b" * 32: "pastel"}
    for name, topic in whole.items():
        folders.save_spec(name, json.dumps(KEPT | {"order": ORDER | {"topic": topic}}))
    settings = CloudSettings(
        port=0, redis_url=redis_url, profile=str(dummy_profile), data_dir=data_dir, mirror_every_s=0.1
    )
    cloud = CloudStub(connect(await start(CloudServicer(settings), add_CloudServicer_to_server, settings)))
    for name in whole:
        await queued_again(redis, data_dir, name)
        assert (await get(cloud, Job(id=name))).status == cloud_pb2.JOB_STATUS_QUEUED
    listed = await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")
    assert {each.id: each.topic for each in listed.jobs} == whole


async def test_garbage_among_the_jobs_is_passed_over(
    cloud: CloudAsyncStub, redis: Redis, settings: DistillerSettings
) -> None:
    job = await distil(cloud, **SMALL)
    (key,) = await redis.keys("saq:job:*")
    stored = json.loads(await redis.get(key) or b"")
    odd = {
        "1" * 32: b"\xff garbage",
        "2" * 32: b"[]",
        "3" * 32: json.dumps({**stored, "kwargs": None}).encode(),
        "4" * 32: json.dumps({**stored, "key": "../../x"}).encode(),
        "5" * 32: json.dumps({**stored, "meta": {"created": "now"}}).encode(),
        "6" * 32: json.dumps({**stored, "status": "odd"}).encode(),
        "7" * 32: json.dumps({**stored, "queue": "other"}).encode(),
        "8" * 32: json.dumps({**stored, "touched": "x"}).encode(),
        "9" * 32: json.dumps({**stored, "kwargs": {**stored["kwargs"], "topic": "../x"}}).encode(),
        "a" * 32: json.dumps({**stored, "function": "other"}).encode(),
        "b" * 32: json.dumps({**stored, "meta": stored["meta"] | {"trace": "x"}}).encode(),
        "c" * 32: json.dumps({**stored, "meta": stored["meta"] | {"created": float("nan")}}).encode(),
    }
    for name, data in odd.items():
        await redis.set(f"saq:job:distill:{name}", data)
        await redis.lpush("saq:distill:queued", f"saq:job:distill:{name}")
    await redis.lpush("saq:distill:queued", b"\xff\xfe", b"")
    listed = await clients.call(cloud.ListJobs, cloud_pb2.ListJobsRequest(), "cloud")
    assert [each.id for each in listed.jobs] == [job.id]
    for name in (*odd, "../../x", "\0", "x" * 10**6):
        with pytest.raises(NotFoundError) as caught:
            await clients.call(cloud.GetJob, JobId(id=name), "cloud")
        assert len(str(caught.value)) < 200
    serving = asyncio.create_task(Distiller(settings).serve())
    try:
        assert (await until(cloud, job, over)).status == cloud_pb2.JOB_STATUS_FINISHED
    finally:
        await ended(serving)
