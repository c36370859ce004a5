"""The demand policy over a real chain: files until an update pays, then the update, within a budget."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.errors import ExhaustedError, UnavailableError
from services.cloud.demand import BUDGET_KEY, DEMAND_KEY, Period, TopicState
from services.cloud.distiller import Distiller
from services.cloud.servicer import CloudServicer
from services.cloud.settings import DistillerSettings
from services.common import clients
from services.common.settings import CommonSettings
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2 import ACTION_FILE, ACTION_UPDATE, ACTION_WAIT, DecideRequest, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import IMAGE_FORMAT_WEBP
from tests.chain import ended, serving, start_chain, starter
from tests.services.cloud.test_publish import make_update, uploaded

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT, PLAIN = "a red boat, neon style", "a red boat"
SOON_S = 600.0


@pytest.fixture
def redis(own_redis: Redis) -> Redis:
    return own_redis


@pytest.fixture
def quick_profile(dummy_profile: Path, tmp_path: Path) -> Path:
    """The tiny models, with distillations of a few steps."""
    shutil.copytree(dummy_profile, folder := tmp_path / "profile")
    described = json.loads((folder / "profile.json").read_text())
    small = {"images": 4, "held_out": 2, "steps": 4, "batch": 4, "rank": 1, "tokens": 1}
    (folder / "profile.json").write_text(json.dumps({**described, "distill": small}))
    return folder


class System:
    """A gateway in front of a chain with a demand policy, and the address of its cloud."""

    def __init__(self, client: httpx2.AsyncClient, cloud: str) -> None:
        self.client, self.cloud = client, cloud

    async def image(self, prompt: str = PROMPT, **changes: Any) -> dict[str, Any]:
        """The first image of the response, with its link report."""
        body = {"prompt": prompt, "seed": 1, "size": "64x64", "link": {"snr_db": 20}} | changes
        answer = await self.client.post("/v1/images/generations", json=body)
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["data"]
        found: dict[str, Any] = image
        return found

    async def demand(self) -> dict[str, Any]:
        """The answer of /v1/demand, with the topics by name."""
        answer = (await self.client.get("/v1/demand")).json()
        return answer | {"data": {each["topic"]: each for each in answer["data"]}}

    async def action(self) -> tuple[str, str]:
        """What the next request for neon gets, and why."""
        neon = (await self.demand())["data"]["neon"]
        return neon["action"], neon["reason"]

    async def eventually(self, action: str) -> dict[str, Any]:
        """The demand for neon as soon as its next request gets that."""
        async with asyncio.timeout(SOON_S):
            while (neon := (await self.demand())["data"]["neon"])["action"] != action:  # noqa: ASYNC110 - the cloud works
                await asyncio.sleep(0.5)
        found: dict[str, Any] = neon
        return found


Run = Callable[..., Awaitable[System]]


@pytest_asyncio.fixture(loop_scope="session")
async def run(quick_profile: Path, own_redis_url: str, tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a chain with the policy auto and changed settings of the cloud, over one and the same store.

    The one before it stops: a data folder has one cloud.
    """
    async with AsyncExitStack() as stack:

        async def begin(
            policy: str = "auto", keys: Path | None = None, edge: Mapping[str, Any] = {}, **changes: Any
        ) -> System:
            of_cloud = {"data_dir": tmp_path / "data", "mirror_every_s": 0.2} | changes

            def own(name: str) -> dict[str, Any]:
                policies = {"demand_policy": policy} if name in ("cloud", "edge") else {}
                return policies | {"cloud": of_cloud, "edge": dict(edge)}.get(name, {})

            await stack.aclose()
            start = await stack.enter_async_context(starter())
            addresses = await start_chain(start, quick_profile, own_redis_url, own)
            gateway = GatewaySettings(
                user_address=addresses["user"],
                cloud_address=addresses["cloud"],
                redis_url=own_redis_url,
                api_keys_file=keys,
            )
            client = await stack.enter_async_context(serving(create_app(gateway)))
            return System(client, addresses["cloud"])

        yield begin


@pytest_asyncio.fixture(loop_scope="session")
async def distiller(
    redis: Redis, quick_profile: Path, own_redis_url: str, tmp_path: Path
) -> AsyncIterator[None]:
    """A worker for that store."""
    settings = DistillerSettings(
        redis_url=own_redis_url,
        profile=str(quick_profile),
        data_dir=tmp_path / "data",
        distill_threads=1,
    )
    task = asyncio.create_task(Distiller(settings).serve())
    yield
    await ended(task)


def file_request(seed: int, **changes: Any) -> GenerateRequest:
    """For the file of an image that a topic makes one."""
    size = {"width": 64, "height": 64, "formats": [IMAGE_FORMAT_WEBP]}
    return GenerateRequest(prompt=PROMPT, seeds=[seed], topics=["neon"], **{**size, **changes})


async def file_bytes(cloud: CloudAsyncStub, request: GenerateRequest) -> int:
    """Bytes of what the cloud answers; 0 if its budget does not allow it."""
    try:
        return sum([image.ByteSize() async for image in clients.stream(cloud.Generate, request, "cloud")])
    except ExhaustedError:
        return 0


async def state_of(redis: Redis, topic: str) -> TopicState | None:
    """What the cloud has counted for a topic."""
    text = await redis.hget(DEMAND_KEY, topic)
    return None if text is None else TopicState.parse(text)


def backhaul(image: dict[str, Any]) -> int:
    (sent,) = [hop["sent_bytes"] for hop in image["link_report"]["hops"] if hop["hop"] == "cloud-edge"]
    return int(sent)


async def test_files_until_an_update_pays_then_the_update(run: Run, distiller: None) -> None:
    system = await run(demand_update_bytes=1)
    with capture_logs() as logs:
        first = await system.image()
    report = first["link_report"]
    methods = ("/dekag.v1.Cloud/Decide", "/dekag.v1.Cloud/Generate")
    calls = [each for each in logs if each["event"] == "request" and each["method"] in methods]
    counted = sum(each["received_bytes"] + each["sent_bytes"] for each in calls)
    assert backhaul(first) == counted, (
        "the report's bytes are those of the messages, as the cloud counts them"
    )
    assert (report["source"], report["knowledge"], report["cached"]) == ("cloud", [], False)
    assert {"cloud.generate", "edge.embed", "edge.encode"} <= {each["stage"] for each in report["stages"]}
    assert report["psnr_db"] is not None
    demand = await system.demand()
    neon = demand["data"]["neon"]
    assert (neon["requests"], neon["files"], neon["has_update"]) == (1, 1, False)
    assert neon["file_bytes"] == demand["spent_bytes"]
    assert 0 < backhaul(first) - neon["file_bytes"] < 120, "the questions beside the file"
    assert neon["action"] == "distil"

    plain = (await system.image(PLAIN))["link_report"]
    assert (plain["source"], backhaul({"link_report": plain})) == ("edge", 0)
    assert (await system.image(seed=2))["link_report"]["source"] == "cloud", "files go on meanwhile"

    neon = await system.eventually("update")
    job = (await system.client.get(f"/v1/jobs/{neon['job']}")).json()
    assert (job["topic"], job["version"]) == ("neon", 1)
    spent = (await system.demand())["spent_bytes"]
    taught = await system.image()
    assert [each["topic"] for each in taught["link_report"]["knowledge"]] == ["neon"]
    assert taught["link_report"]["source"] == "edge"
    assert (await system.demand())["spent_bytes"] == spent + neon["update_bytes"]
    assert await system.action() == ("update", "the edge has the update")
    assert backhaul(await system.image(seed=3)) < 40, "from now on, only the question"


async def test_an_image_that_was_sent_once_comes_from_the_edges_cache(run: Run) -> None:
    system = await run()
    first, second, other = [await system.image(image_format=name) for name in ("webp", "webp", "jpeg")]
    assert second["b64_json"] == first["b64_json"]
    assert (second["link_report"]["cached"], backhaul(second) < 80) == (True, True)
    assert second["link_report"]["model_hashes"]["cloud"] == first["link_report"]["model_hashes"]["cloud"]
    assert not other["link_report"]["cached"]
    neon = (await system.demand())["data"]["neon"]
    assert (neon["requests"], neon["files"]) == (3, 2)


async def test_files_follow_the_settings_of_the_denoiser(run: Run) -> None:
    system = await run()
    plain, few, again = [await system.image(**settings) for settings in ({}, {"steps": 1}, {"steps": 1})]
    assert {image["link_report"]["source"] for image in (plain, few, again)} == {"cloud"}
    assert [image["link_report"]["cached"] for image in (plain, few, again)] == [False, False, True]
    assert few["b64_json"] == again["b64_json"] != plain["b64_json"]
    scaled = await system.image(adapter_scale=0.5)
    assert scaled["link_report"]["source"] == "edge", "the cloud's image has no adapters to scale"
    assert (await system.demand())["data"]["neon"]["requests"] == 3


async def test_the_cloud_spends_no_more_than_its_budget(run: Run) -> None:
    system = await run(demand_budget_bytes=1, demand_file_bytes=1)
    assert (await system.image())["link_report"]["source"] == "cloud", "expected to fit"
    waiting = await system.image(seed=2)
    assert (waiting["link_report"]["source"], waiting["link_report"]["knowledge"]) == ("edge", [])
    action, reason = await system.action()
    assert action == "wait"
    assert reason.endswith("the budget does not allow a file either")
    demand = await system.demand()
    assert demand["budget_bytes"] == 1
    assert demand["period_ends"] is not None


async def test_requests_at_once_spend_no_more_than_the_budget(run: Run) -> None:
    system = await run(demand_budget_bytes=1, demand_file_bytes=1)
    async with clients.open_channel(system.cloud, CommonSettings()) as channel:
        cloud: CloudAsyncStub = CloudStub(channel)
        for _ in range(4):
            (action,) = (await cloud.Decide(DecideRequest(topics=["neon"]))).actions
            assert action == ACTION_FILE, "no file has been made yet"
        sent = await asyncio.gather(*(file_bytes(cloud, file_request(seed)) for seed in range(4)))
        (action,) = (await cloud.Decide(DecideRequest(topics=["neon"]))).actions
    assert sum(map(bool, sent)) == 1
    assert (await system.demand())["spent_bytes"] == sum(sent)
    assert action == ACTION_WAIT


async def test_a_file_that_is_being_made_takes_its_part_of_the_budget(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await run(demand_budget_bytes=1, demand_file_bytes=1)
    making, go_on, images = asyncio.Event(), asyncio.Event(), CloudServicer._images

    async def slow(self: CloudServicer, *args: Any) -> AsyncIterator[Any]:
        making.set()
        await go_on.wait()
        async for image in images(self, *args):
            yield image

    monkeypatch.setattr(CloudServicer, "_images", slow)
    first = asyncio.create_task(system.image())
    await making.wait()
    assert (await system.demand())["spent_bytes"] == 0
    assert (await system.image(seed=2))["link_report"]["source"] == "edge"
    assert (await system.action())[0] == "wait"
    go_on.set()
    assert (await first)["link_report"]["source"] == "cloud"


async def test_a_file_that_fails_gives_its_part_of_the_budget_back(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await run(demand_budget_bytes=1, demand_file_bytes=1)

    async def failing(self: CloudServicer, *args: Any) -> AsyncIterator[Any]:
        raise UnavailableError("no image")
        yield

    with monkeypatch.context() as patched:
        patched.setattr(CloudServicer, "_images", failing)
        assert (await system.image())["link_report"]["source"] == "edge"
    assert (await system.action())[0] == "file"
    assert (await system.image(seed=2))["link_report"]["source"] == "cloud"


async def test_an_update_is_sent_with_no_image_that_another_topic_makes_a_file(
    run: Run, quick_profile: Path, redis: Redis
) -> None:
    system = await run("always")
    update = uploaded(make_update(quick_profile, "saffron").to_files())
    assert (await system.client.put("/v1/knowledge/saffron", json=update)).status_code == 200
    both = await system.image("a saffron boat, neon style")
    assert both["link_report"]["source"] == "cloud", "neon has no update"
    state, demand = await state_of(redis, "saffron"), await system.demand()
    assert state is not None
    assert (state.requests, state.files, state.sent) == (1, 0, False)
    assert demand["spent_bytes"] == demand["data"]["neon"]["file_bytes"]
    alone = await system.image("a saffron boat")
    assert [each["topic"] for each in alone["link_report"]["knowledge"]] == ["saffron"]
    spent, own = (await system.demand())["spent_bytes"], demand["data"]["saffron"]
    assert spent == demand["spent_bytes"] + own["update_bytes"]


async def test_an_update_is_not_sent_instead_of_a_file_that_fails(
    run: Run, quick_profile: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await run("always")
    update = uploaded(make_update(quick_profile, "saffron").to_files())
    assert (await system.client.put("/v1/knowledge/saffron", json=update)).status_code == 200

    async def failing(self: CloudServicer, *args: Any) -> AsyncIterator[Any]:
        raise UnavailableError("no image")
        yield

    monkeypatch.setattr(CloudServicer, "_images", failing)
    report = (await system.image("a saffron boat, neon style"))["link_report"]
    assert (report["source"], report["knowledge"]) == ("edge", []), "nothing was charged"
    assert (await system.demand())["spent_bytes"] == 0
    state = await state_of(redis, "saffron")
    assert state is not None
    assert not state.sent


async def test_a_request_gets_a_file_for_what_only_another_key_may_use(
    run: Run, quick_profile: Path, redis: Redis, tmp_path: Path
) -> None:
    made = {name: new_key(name) for name in ("alice", "bob")}
    (tmp_path / "api-keys").write_text("".join(f"{line}\n" for _, line in made.values()))
    system = await run("always", keys=tmp_path / "api-keys")

    async def image(name: str, **changes: Any) -> dict[str, Any]:
        system.client.headers["Authorization"] = f"Bearer {made[name][0]}"
        found: dict[str, Any] = (await system.image(**changes))["link_report"]
        return found

    system.client.headers["Authorization"] = f"Bearer {made['alice'][0]}"
    update = uploaded(make_update(quick_profile, "neon").to_files())
    assert (await system.client.put("/v1/knowledge/neon", json=update)).status_code == 200
    of_bob = await image("bob")
    assert (of_bob["source"], of_bob["knowledge"]) == ("cloud", [])
    assert await state_of(redis, "neon") is None, "it is no demand for alice's topic"
    file = (await system.demand())["spent_bytes"]
    assert 0 < file < backhaul({"link_report": of_bob})
    of_alice = await image("alice")
    assert [each["topic"] for each in of_alice["knowledge"]] == ["neon"]
    demand = await system.demand()
    assert demand["spent_bytes"] == file + demand["data"]["neon"]["update_bytes"]
    assert (await image("bob", seed=2))["source"] == "cloud", "also after alice's edge has it"
    state = await state_of(redis, "neon")
    assert state is not None
    assert (state.requests, state.files, state.sent, state.wanted) == (1, 0, True, False)
    async with clients.open_channel(system.cloud, CommonSettings()) as channel:
        of_earlier_edge = await CloudStub(channel).Decide(DecideRequest(topics=["neon"]))
    assert of_earlier_edge.actions == [ACTION_UPDATE], "it does not say whose request it is"


async def test_an_edge_gets_a_file_for_an_update_that_its_catalogue_lacks(
    run: Run, quick_profile: Path
) -> None:
    system = await run("always", edge={"redis_url": "", "knowledge_keep_s": SOON_S})
    await system.image(PLAIN)  # the edge asks which knowledge exists
    update = uploaded(make_update(quick_profile, "neon").to_files())
    assert (await system.client.put("/v1/knowledge/neon", json=update)).status_code == 200
    report = (await system.image())["link_report"]
    assert (report["source"], report["knowledge"]) == ("cloud", [])
    assert await system.action() == ("update", "the edge has the update")


async def test_a_file_in_place_of_an_update_that_the_edge_lacks_comes_from_its_cache(
    run: Run, quick_profile: Path, new_database: Callable[[], str]
) -> None:
    edge = {"redis_url": new_database(), "knowledge_keep_s": SOON_S}  # where no cloud lists its knowledge
    system = await run("always", edge=edge)
    await system.image(PLAIN)  # the edge asks which knowledge exists
    update = uploaded(make_update(quick_profile, "neon").to_files())
    assert (await system.client.put("/v1/knowledge/neon", json=update)).status_code == 200
    first, second = await system.image(), await system.image()
    assert [each["link_report"]["source"] for each in (first, second)] == ["cloud", "cloud"]
    assert [each["link_report"]["cached"] for each in (first, second)] == [False, True]
    assert second["b64_json"] == first["b64_json"]
    assert backhaul(second) < 80, "the question, and the answer that names the cloud's model"
    assert (await system.demand())["data"]["neon"]["files"] == 1


async def test_a_new_period_has_a_new_budget(run: Run) -> None:
    system = await run(demand_budget_bytes=3000, demand_period_s=1)
    await system.image()
    await asyncio.sleep(1.1)
    demand = await system.demand()
    assert (demand["spent_bytes"], demand["period_ends"]) == (0, None)


async def test_a_clock_that_is_set_back_renews_the_budget(run: Run, redis: Redis) -> None:
    began = time.time() + 3600
    await redis.set(BUDGET_KEY, Period(began=began, spent_bytes=3000).model_dump_json())
    demand = await (await run(demand_budget_bytes=3000)).demand()
    assert (demand["spent_bytes"], demand["period_ends"]) == (0, None)


async def test_a_distillation_that_publishes_nothing_is_not_repeated(run: Run) -> None:
    system = await run(demand_update_bytes=1)
    await system.image()
    await system.image(seed=2)
    async with asyncio.timeout(SOON_S):
        while (job := (await system.demand())["data"]["neon"]["job"]) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    assert (await system.client.delete(f"/v1/jobs/{job}")).status_code == 200
    neon = await system.eventually("file")
    assert neon["reason"] == "an update would pay, but its distillation was cancelled"
    await system.image(seed=3)
    assert [each["id"] for each in (await system.client.get("/v1/jobs")).json()["data"]] == [job]


async def test_an_update_that_was_deleted_before_it_was_sent_is_distilled_again(
    run: Run, redis: Redis, distiller: None
) -> None:
    system = await run("always")
    await system.image()
    first = (await system.eventually("update"))["job"]
    async with asyncio.timeout(SOON_S):
        while (state := await state_of(redis, "neon")) is None or state.wanted:  # noqa: ASYNC110 - the cloud works
            await asyncio.sleep(0.1)
    assert (await system.client.delete("/v1/knowledge/neon")).status_code == 204
    assert (await system.image(seed=2))["link_report"]["source"] == "cloud"
    async with asyncio.timeout(SOON_S):
        while (await system.demand())["data"]["neon"]["job"] in (first, None):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_the_counts_outlive_the_cloud_and_damage_is_ignored(run: Run, redis: Redis) -> None:
    await (await run()).image()
    await redis.hset(DEMAND_KEY, mapping={"snail": "damaged", "rocket": '{"files": -1}', b"\xff": "{}"})
    before = TopicState.parse(await redis.hget(DEMAND_KEY, "neon"))
    assert before is not None
    assert (before.requests, before.files) == (1, 1)
    demand = await (await run()).demand()
    assert demand["data"]["neon"]["file_bytes"] == round(before.file_bytes)
    assert not {"snail", "rocket"} & demand["data"].keys()
    await redis.set(BUDGET_KEY, "damaged")
    assert (await (await run()).demand())["spent_bytes"] == 0


async def test_the_demand_for_a_deleted_topic_is_dropped(
    run: Run, quick_profile: Path, redis: Redis, tmp_path: Path
) -> None:
    key, line = new_key("root", scopes=["admin"])
    (tmp_path / "api-keys").write_text(f"{line}\n")
    system = await run("always", keys=tmp_path / "api-keys")
    system.client.headers["Authorization"] = f"Bearer {key}"
    update = uploaded(make_update(quick_profile, "saffron").to_files())
    assert (await system.client.put("/v1/knowledge/saffron", json=update)).status_code == 200
    await system.image("a saffron boat, neon style")
    assert set(await redis.hkeys(DEMAND_KEY)) == {b"neon", b"saffron"}
    assert (await system.client.delete("/v1/knowledge/saffron")).status_code == 204
    async with asyncio.timeout(SOON_S):
        while await redis.hexists(DEMAND_KEY, "saffron"):  # noqa: ASYNC110 - the cloud works
            await asyncio.sleep(0.1)
    assert await redis.hkeys(DEMAND_KEY) == [b"neon"]
    assert (await system.client.put("/v1/knowledge/saffron", json=update)).status_code == 200
    assert set((await system.demand())["data"]) == {"neon"}, "nor does the cloud remember it"


async def test_policies_to_compare_with(run: Run) -> None:
    never = await run("never", demand_update_bytes=1)
    for seed in (1, 2):
        assert (await never.image(seed=seed))["link_report"]["source"] == "cloud"
    assert await never.action() == ("file", "the policy never sends updates")
    always = await run("always")
    assert await always.action() == ("distil", "the policy sends updates at once")


async def test_without_a_policy_nothing_is_counted(run: Run) -> None:
    system = await run("off")
    report = (await system.image())["link_report"]
    assert (report["source"], backhaul({"link_report": report})) == ("edge", 0)
    demand = await system.demand()
    assert (demand["policy"], demand["data"]) == ("off", {})


async def test_a_request_that_names_its_knowledge_is_not_decided(run: Run) -> None:
    system = await run()
    assert (await system.image(knowledge="none"))["link_report"]["source"] == "edge"
    assert (await system.demand())["data"] == {}


async def test_a_key_sees_neither_demand_nor_models_of_topics_of_others(
    run: Run, quick_profile: Path, tmp_path: Path
) -> None:
    scopes = {"alice": [], "bob": [], "root": ["admin"]}
    made = {name: new_key(name, scopes=its) for name, its in scopes.items()}
    (tmp_path / "api-keys").write_text("".join(f"{line}\n" for _, line in made.values()))
    system = await run("always", keys=tmp_path / "api-keys")

    async def topics(name: str) -> set[str]:
        system.client.headers["Authorization"] = f"Bearer {made[name][0]}"
        return set((await system.demand())["data"])

    assert await topics("alice") == set()
    update = uploaded(make_update(quick_profile, "saffron").to_files())
    assert (await system.client.put("/v1/knowledge/saffron", json=update)).status_code == 200
    await system.image("a saffron boat, neon style")
    seen = {name: await topics(name) for name in made}
    assert seen == {"alice": {"neon", "saffron"}, "bob": {"neon"}, "root": {"neon", "saffron"}}
    for name in ("saffron", "none-such"):
        system.client.headers["Authorization"] = f"Bearer {made['bob'][0]}"
        models = await system.client.get("/v1/models")
        assert [each["id"] for each in models.json()["data"]] == ["stickers"]
        assert (await system.client.get(f"/v1/models/stickers/{name}")).status_code == 404
    for name in ("alice", "root"):
        system.client.headers["Authorization"] = f"Bearer {made[name][0]}"
        models = await system.client.get("/v1/models")
        assert [each["id"] for each in models.json()["data"]] == ["stickers", "stickers/saffron"]
        assert (await system.client.get("/v1/models/stickers/saffron")).status_code == 200
    await topics("alice")
    assert (await system.client.delete("/v1/knowledge/saffron")).status_code == 204
    (tmp_path / "data" / "owners" / "saffron").unlink()  # as housekeeping does in the end
    assert {name: await topics(name) for name in made} == {name: {"neon"} for name in made}
