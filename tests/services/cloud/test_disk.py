"""A data folder on a disk that is full or read-only: work waits and goes on, and every answer says why."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from dekag.errors import UnavailableError
from services.cloud.distiller import Distiller
from services.cloud.leases import FolderLease
from services.cloud.publish import publish_update
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings, DistillerSettings
from services.cloud.version_store import KnowledgeStore, TransmissionStore
from services.common import clients
from services.common.health import Health, check_health
from services.common.settings import CommonSettings
from services.proto import cloud_pb2
from services.proto.cloud_pb2 import (
    DeleteKnowledgeRequest,
    DistillRequest,
    GenerateRequest,
    Job,
    JobId,
    PublishKnowledgeRequest,
)
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest
from tests.chain import ended, gone
from tests.hostile.artifacts import tiny_update

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("redis")]
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]
SMALL = {"images": 8, "steps": 40, "rank": 1, "tokens": 1}
_MIB = 2**20


class Disk:
    """A small disk of its own in memory, which can be filled and made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leaves no byte free."""
        with self._filler.open("wb") as file:
            size, step = 0, 64 * _MIB
            while step:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2

    def empty(self) -> None:
        """Frees the space again."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        """From here on, nothing in the data folder can be written or deleted."""
        subprocess.run(["mount", "--bind", self.data, self.data], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.data], check=True)

    def make_writable(self) -> None:
        """As before."""
        subprocess.run(["umount", "--lazy", self.data], check=True)


@pytest.fixture(scope="module")
def redis_url(new_database: Callable[[], str]) -> str:
    """Of a database for these tests alone."""
    return new_database()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (folder := tmp_path / "disk").mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.decode().strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def settings(dummy_profile: Path, redis_url: str, disk: Disk, tmp_path: Path) -> CloudSettings:
    return CloudSettings(
        port=0,
        redis_url=redis_url,
        profile=str(dummy_profile),
        data_dir=disk.data,
        job_poll_s=0.02,
        mirror_every_s=0.1,
        verify_every_s=0.2,
    )


@pytest_asyncio.fixture(loop_scope="session")
async def address(start: Start, settings: CloudSettings) -> str:
    return await start(CloudServicer(settings), add_CloudServicer_to_server, settings)


@pytest_asyncio.fixture(loop_scope="session")
async def cloud(address: str, connect: Connect) -> CloudAsyncStub:
    return CloudStub(connect(address))


@pytest_asyncio.fixture(loop_scope="session")
async def distiller(settings: CloudSettings, cloud: CloudAsyncStub, tmp_path: Path) -> AsyncIterator[Path]:
    """A distiller in this process; its health file."""
    file = tmp_path / "healthy"
    known = {name: getattr(settings, name) for name in ("redis_url", "profile", "data_dir")}
    own = DistillerSettings(**known, sweep_every_s=1, distill_threads=1, previews=2, health_file=file)
    serving = asyncio.create_task(Distiller(own).serve())
    yield file
    await ended(serving)


async def call(method: Any, request: Any) -> Any:
    return await clients.call(method, request, "cloud")


async def until(cloud: CloudAsyncStub, job: Job, enough: Callable[[Job], bool]) -> Job:
    async with asyncio.timeout(240):
        async for state in clients.stream(cloud.WatchJob, JobId(id=job.id), "cloud"):
            if enough(state):
                return state
    pytest.fail(f"ended: {state}")


@pytest.mark.parametrize(
    "stage",
    ["", *(pytest.param(name, marks=pytest.mark.slow) for name in ("generate", "train")), "score"],
)
async def test_a_job_waits_for_space_and_goes_on(
    cloud: CloudAsyncStub, distiller: Path, disk: Disk, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dekag.training.distill.DRAWN_AT_ONCE", 1)  # else scoring is over before it is seen
    with capture_logs() as logs:
        job = await call(cloud.Distill, DistillRequest(topic="neon", **SMALL))
        if stage:
            await until(cloud, job, lambda state: state.stage == stage and state.done > 0)
        disk.fill()
        async with asyncio.timeout(120):
            while not any(line["event"].startswith("the job waits") for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await call(cloud.GetJob, JobId(id=job.id))).status == cloud_pb2.JOB_STATUS_RUNNING
        work = disk.data / "jobs" / job.id
        drawn = {path.name: path.stat().st_mtime_ns for path in work.glob("images/*.png")}
        assert drawn or not stage
        assert not (await call(cloud.ListKnowledge, cloud_pb2.ListKnowledgeRequest())).knowledge
        disk.empty()
        seen: dict[str, int] = {}

        def over(state: Job) -> bool:
            seen.update({path.name: path.stat().st_mtime_ns for path in work.glob("images/*.png")})
            return state.status not in (cloud_pb2.JOB_STATUS_QUEUED, cloud_pb2.JOB_STATUS_RUNNING)

        after = await until(cloud, job, over)
        await gone(disk.data / "jobs")
    assert after.status == cloud_pb2.JOB_STATUS_FINISHED, after
    assert after.version == 1
    assert drawn.items() <= seen.items(), "what was drawn is not drawn again"
    assert any(f"DEKAG_DATA_DIR {disk.data}" in line["event"] for line in logs)
    assert not [line for line in logs if line["event"] == "job failed"]


async def distillation_health(address: str) -> Health:
    peer = clients.Peer(address, CommonSettings())
    try:
        return await check_health(peer, "the cloud", 5, "distillation")
    finally:
        await peer.close()


@pytest.mark.parametrize("fault", ["full", "read-only"])
async def test_what_cannot_be_stored_is_refused_by_name(
    address: str, cloud: CloudAsyncStub, disk: Disk, dummy_profile: Path, fault: str
) -> None:
    update = tiny_update(dummy_profile)
    publish = PublishKnowledgeRequest(topic=update.topic, files=update.to_files())
    await call(cloud.PublishKnowledge, publish)
    waiting = await call(cloud.Distill, DistillRequest(topic="crown", **SMALL))
    store = KnowledgeStore(disk.data)
    before = store.versions(update.topic)
    disk.fill() if fault == "full" else disk.make_read_only()
    named = f"DEKAG_DATA_DIR {disk.data}"
    try:
        other = type(update).new(
            {**update.info, "guidance_scale": 2.5}, update.metaword, update.lora, bits=16
        )
        refused: list[tuple[Any, Any]] = [
            (cloud.Distill, DistillRequest(topic="snail", **SMALL)),
            (cloud.PublishKnowledge, PublishKnowledgeRequest(topic=other.topic, files=other.to_files())),
            (cloud.CancelJob, JobId(id=waiting.id)),
        ]
        if fault == "read-only":
            refused.append((cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic=update.topic)))
        for method, request in refused:
            with pytest.raises(UnavailableError) as caught:
                await call(method, request)
            assert named in str(caught.value), (method, str(caught.value))
        health = await distillation_health(address)
        assert health.state != "serving"
        assert named in health.reason
        assert store.versions(update.topic) == before
        assert list((disk.data / "jobs").iterdir()) == [disk.data / "jobs" / waiting.id]
        assert (await call(cloud.GetJob, JobId(id=waiting.id))).status == cloud_pb2.JOB_STATUS_QUEUED
        await asyncio.sleep(0.5)  # the cloud looks after its folders meanwhile
    finally:
        disk.empty() if fault == "full" else disk.make_writable()
    assert not list((disk.data / "knowledge").glob(".new-*")), "half-written files are removed"
    assert (await distillation_health(address)).state == "serving"
    cancelled = await call(cloud.CancelJob, JobId(id=waiting.id))
    assert cancelled.status == cloud_pb2.JOB_STATUS_CANCELLED
    await call(cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic=update.topic))
    assert store.topics() == {}


async def test_knowledge_is_deleted_from_a_full_disk(
    cloud: CloudAsyncStub, disk: Disk, dummy_profile: Path
) -> None:
    update = tiny_update(dummy_profile)
    await call(cloud.PublishKnowledge, PublishKnowledgeRequest(topic=update.topic, files=update.to_files()))
    disk.fill()
    await call(cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic=update.topic))
    assert KnowledgeStore(disk.data).topics() == {}
    disk.empty()


@pytest.mark.parametrize("fault", ["full", "read-only"])
async def test_a_cloud_starts_with_a_disk_that_cannot_be_written(
    start: Start, connect: Connect, settings: CloudSettings, adapted_profile: Path, disk: Disk, fault: str
) -> None:
    update, store = tiny_update(adapted_profile), KnowledgeStore(disk.data)
    publish_update(update, store, update.base_hash)
    settings = settings.model_copy(update={"profile": str(adapted_profile)})
    if fault == "full":
        disk.fill()
    else:
        FolderLease(disk.data).close()  # of an earlier cloud
        disk.make_read_only()
    try:
        address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
        cloud, named = CloudStub(connect(address)), f"DEKAG_DATA_DIR {disk.data}"
        health = await distillation_health(address)
        assert health.state != "serving"
        assert named in health.reason
        request = GenerateRequest(prompt="two owls", seeds=[1], width=64, height=64, formats=[2])
        (image,) = [each async for each in clients.stream(cloud.Generate, request, "cloud")]
        assert image.image
        (listed,) = (await call(cloud.ListKnowledge, cloud_pb2.ListKnowledgeRequest())).knowledge
        assert listed.topic == update.topic
        with pytest.raises(UnavailableError, match=named):
            await call(cloud.Distill, DistillRequest(topic="crown", **SMALL))
        if fault == "full":
            await call(cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic=update.topic))
            assert store.topics() == {}
    finally:
        disk.empty() if fault == "full" else disk.make_writable()
    assert (await distillation_health(address)).state == "serving"
    async with asyncio.timeout(60):  # what comes with the profile could not be published at the start
        while not TransmissionStore(disk.data).current():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await call(cloud.GetTransmissionKnowledge, GetTransmissionKnowledgeRequest())


async def test_a_cloud_makes_room_at_its_start(start: Start, settings: CloudSettings, disk: Disk) -> None:
    left = disk.data / "knowledge" / ".gone-1"  # by a process that was killed
    left.mkdir(parents=True)
    with (left / "file").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 120 * _MIB)
    address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings)
    assert (await distillation_health(address)).state == "serving"
