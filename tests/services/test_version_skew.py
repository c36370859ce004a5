"""Services, values and artifacts of a neighbouring release: what it added is ignored or named."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from pydantic import create_model
from structlog.testing import capture_logs

from dekag.api.schemas import Job
from dekag.errors import MismatchError
from dekag.makd.update import KnowledgeUpdate
from services.cloud.job_folder import JobFolders
from services.cloud.jobs import DistillSpec, read_specs
from services.common import clients, server
from services.common.cache import Cache
from services.common.converters import request_from_proto
from services.common.knowledge import Manifest
from services.common.signing import SIGNED, Signer, TrustedKeys
from services.common.transmission import TransmissionManifest
from services.edge.knowledge import Knowledge
from services.edge.settings import EdgeSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.launcher.credentials import make_credentials
from services.proto import cloud_pb2
from services.proto.cloud_pb2_grpc import CloudServicer, CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2 import ProvideRequest
from tests.chain import adapters, serving, starter
from tests.hostile.artifacts import tiny_update

NAME = "0" * 32
_NEW_FIELD = b"\xca\x3e\x03abc"  # number 1001, "abc"
PAUSED: Any = 17
"""A status, and an action, that only a newer release has."""


_M = TypeVar("_M", bound=Message)


def newer(message: _M) -> _M:
    """The message with a field that this release does not know."""
    message.MergeFromString(_NEW_FIELD)
    return message


class NewerCloud(CloudServicer):
    """A cloud of a later release."""

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def GetJob(self, request: object, context: object) -> cloud_pb2.Job:  # noqa: N802
        return newer(cloud_pb2.Job(id=NAME, topic="neon", status=PAUSED, created=1.0))

    async def ListJobs(self, request: object, context: object) -> cloud_pb2.Jobs:  # noqa: N802
        return newer(cloud_pb2.Jobs(jobs=[await self.GetJob(request, context)]))

    async def WatchJob(self, request: object, context: object) -> AsyncIterator[cloud_pb2.Job]:  # noqa: N802
        yield await self.GetJob(request, context)

    async def ListKnowledge(self, request: object, context: object) -> cloud_pb2.KnowledgeList:  # noqa: N802
        return newer(cloud_pb2.KnowledgeList(knowledge=[newer(MANIFEST.to_proto())]))

    async def Decide(self, request: object, context: object) -> cloud_pb2.Decisions:  # noqa: N802
        return newer(cloud_pb2.Decisions(actions=[PAUSED]))


MANIFEST = Manifest(
    topic="neon",
    triggers=("neon",),
    job="1" * 32,
    version=1,
    content_hash="2" * 64,
    base_hash="3" * 64,
    size_bytes=10,
    scores={"clip": 0.5},
    created=1.0,
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cloud() -> AsyncIterator[str]:
    """Address of a newer cloud."""
    async with starter() as start:
        yield await start(NewerCloud(), add_CloudServicer_to_server)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(cloud: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of this release's gateway, whose cloud is newer."""
    settings = GatewaySettings(redis_url="", user_address="127.0.0.1:1", cloud_address=cloud)
    async with serving(create_app(settings)) as client:
        yield client


async def test_a_job_with_a_status_of_a_newer_cloud_is_shown(gateway: httpx2.AsyncClient) -> None:
    one = await gateway.get(f"/v1/jobs/{NAME}")
    assert (one.status_code, one.json()["status"]) == (200, "unknown")
    (listed,) = (await gateway.get("/v1/jobs")).json()["data"]
    assert listed == one.json()
    events = await gateway.get(f"/v1/jobs/{NAME}/events")
    assert (events.status_code, '"status":"unknown"' in events.text) == (200, True)


async def test_fields_that_a_newer_cloud_adds_are_left_out(gateway: httpx2.AsyncClient) -> None:
    answer = await gateway.get("/v1/knowledge")
    assert [each["topic"] for each in answer.json()["data"]] == ["neon"]


def test_a_client_reads_a_status_of_a_newer_gateway() -> None:
    fields = {"id": NAME, "topic": "neon", "done": 0, "total": 0, "created": 1.0, "later": True}
    empty = dict.fromkeys(("stage", "loss", "error", "started", "finished", "version"))
    job = Job.model_validate({**fields, **empty, "status": "paused"})
    assert (job.status, job.over) == ("paused", False)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a boat", "later": 1}),
        ("/v1/images/generations", {"prompt": "a boat", "link": {"later": 1}}),
        ("/v1/pictures", {"picture": "AAAA", "later": 1}),
        ("/v1/knowledge", {"topic": "neon", "later": 1}),
        ("/v1/images/generations?later=1", {"prompt": "a boat"}),
    ],
)
async def test_a_field_of_a_newer_client_is_refused_by_name(
    gateway: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await gateway.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert "later" in answer.json()["detail"]


async def test_a_field_that_a_newer_client_publishes_with_is_refused_by_name(
    gateway: httpx2.AsyncClient,
) -> None:
    answer = await gateway.put("/v1/knowledge/neon", json={"files": {"knowledge.json": "e30="}, "later": 1})
    assert (answer.status_code, "later" in answer.json()["detail"]) == (422, True)


async def test_the_edge_uses_updates_as_without_an_action_of_a_newer_cloud(cloud: str) -> None:
    settings = EdgeSettings(redis_url="", cloud_address=cloud, demand_policy="auto")
    async with clients.open_channel(cloud, settings, only_serving=False) as channel:
        knowledge = Knowledge(settings, Cache(settings), CloudStub(channel))
        request = request_from_proto(ProvideRequest(prompt="neon", delivery=1, cbr=0.01), None)
        choice = await knowledge.choose(request, MANIFEST.base_hash)
    assert ([each.topic for each in choice.updates], choice.file_topics) == (["neon"], [])


async def test_a_service_says_which_fields_of_a_newer_caller_it_ignores(cloud: str) -> None:
    settings = EdgeSettings(redis_url="", cloud_address=cloud)
    with capture_logs() as logs:
        async with clients.open_channel(cloud, settings, only_serving=False) as channel:
            job = await CloudStub(channel).GetJob(newer(cloud_pb2.JobId(id=NAME)))
    assert job.id == NAME
    (warning,) = [each for each in logs if each["event"] == "fields of a newer caller are ignored"]
    assert (warning["method"], warning["fields"]) == ("/dekag.v1.Cloud/GetJob", ["1001"])


def test_unknown_fields_are_found_in_the_messages_of_a_message() -> None:
    message = newer(ProvideRequest(prompt="neon", knowledge=["neon"]))
    newer(message.link).snr_db = 3
    assert sorted(server.unknown_fields(message)) == ["1001", "link.1001"]
    listed = cloud_pb2.Jobs(jobs=[cloud_pb2.Job(), newer(cloud_pb2.Job())])
    assert list(server.unknown_fields(listed)) == ["jobs.1001"]
    assert not list(server.unknown_fields(ProvideRequest(prompt="neon")))


@pytest.mark.parametrize("kind", [Manifest, TransmissionManifest])
def test_a_manifest_with_a_field_of_a_newer_cloud_is_read_and_its_signature_holds(
    kind: type[Manifest], tmp_path: Path
) -> None:
    make_credentials(tmp_path)
    signer = Signer(tmp_path / "cloud" / "signing.key")
    trusted = TrustedKeys(tmp_path / "edge" / "trusted-keys")

    later: type[Manifest] = create_model(kind.__name__, __base__=kind, later=(str, "something"))
    signed = signer.signed(later(**MANIFEST.model_dump(include=set(kind.model_fields))))
    text = signed.model_dump_json()
    assert "something" in text
    read = kind.parse(text)
    assert read is not None
    assert trusted.accepts(read)
    swapped = kind.parse(text.replace("2" * 64, "4" * 64))
    assert swapped is not None
    assert not trusted.accepts(swapped)


@pytest.mark.parametrize("kind", [Manifest, TransmissionManifest])
def test_every_field_of_a_manifest_is_signed(kind: type[Manifest]) -> None:
    assert kind.model_fields.keys() - {"signature"} <= SIGNED


def test_a_job_that_a_newer_release_has_saved_is_left_to_it(tmp_path: Path) -> None:
    folders = JobFolders(tmp_path)
    order = {**vars(DistillSpec("neon", [], [], {})), "later": 1}
    spec = json.dumps({"order": order, "created": 1.0, "trace": {}, "client": ""})
    folders.save_spec(NAME, spec)
    with capture_logs() as logs:
        assert read_specs(folders) == {}
    assert [each["unknown"] for each in logs if each["event"].startswith("a job of a newer")] == [["later"]]
    assert folders.spec(NAME) == spec.encode()
    folders.save_spec("1" * 32, json.dumps({"order": {"topic": "neon"}, "created": 1.0}))
    assert read_specs(folders) == {}
    assert folders.spec("1" * 32) is None, "a damaged one is set aside"


def test_a_saved_job_with_more_around_its_order_is_read(tmp_path: Path) -> None:
    folders = JobFolders(tmp_path)
    order = vars(DistillSpec("neon", [], [], {}))
    saved = {"order": order, "created": 1.0, "trace": {}, "client": ""}
    folders.save_spec(NAME, json.dumps({**saved, "later": 1}))
    assert list(read_specs(folders)) == [NAME]
    earlier = {name: value for name, value in order.items() if name != "force"}
    folders.save_spec("1" * 32, json.dumps({**saved, "order": earlier}))
    assert list(read_specs(folders)) == [NAME, "1" * 32], "and one of an earlier release, which has no force"


def test_artifacts_of_a_newer_release_are_refused_with_what_to_do(dummy_profile: Path) -> None:
    for artifact in (tiny_update(dummy_profile), adapters(dummy_profile / "codec", 1)):
        kind = type(artifact)
        info = {**artifact.info, "format": artifact.info["format"] + 1}
        with pytest.raises(MismatchError, match=r"newer than .*: update this software"):
            kind.from_files(kind(info, artifact._files).to_files())
    update = tiny_update(dummy_profile)
    with pytest.raises(MismatchError, match="entries that are not known here: later"):
        KnowledgeUpdate.from_files(KnowledgeUpdate({**update.info, "later": 1}, update._files).to_files())
