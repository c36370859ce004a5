"""The drift watch: images beside the cloud's own, topics that are flagged, answers that never wait."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.errors import ExhaustedError, InvalidInputError, NotFoundError
from dekag.generation.images import from_bytes, to_png
from dekag.generation.models import Generator
from dekag.makd.config import DistillConfig
from dekag.makd.topics import topic_prompts
from dekag.makd.update import KnowledgeUpdate
from dekag.metrics.features import ImageScorer
from dekag.profile import load_profile
from dekag.training.distill import distill
from services.cloud.drift import CONSISTENCY_KEY
from services.cloud.image_scoring import ScoringQueue
from services.cloud.publish import publish_update, update_of
from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import clients, metrics
from services.common.knowledge import Manifest
from services.gateway.app import create_app
from services.gateway.drift_sampler import AT_ONCE, compare, in_sample
from services.gateway.settings import GatewaySettings
from services.proto import cloud_pb2_grpc
from services.proto.cloud_pb2 import (
    CompareRequest,
    Consistency,
    DeleteKnowledgeRequest,
    GeneratedImage,
    GenerateRequest,
    GetKnowledgeRequest,
    ListKnowledgeRequest,
    RunningConsistency,
)
from services.proto.cloud_pb2_grpc import CloudStub, add_CloudServicer_to_server
from services.proto.downlink_pb2 import IMAGE_FORMAT_PNG, KnowledgeUse, ProvideRequest
from services.proto.user_pb2 import LinkReport, ReceivedImage
from tests.chain import Chain, Start, serving, start_chain, starter
from tests.services.counted import Counted

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/v1/images/generations"
PROMPT, SIZE = "a red boat", (64, 64)
WINDOW = 3
GREY = to_png(np.full((64, 64, 3), 128, np.uint8))
SOON_S = 60.0


@pytest.fixture
def redis(own_redis: Redis) -> Redis:
    return own_redis


class System:
    """A cloud and its store."""

    def __init__(self, cloud: CloudStub, store: KnowledgeStore) -> None:
        self.cloud, self.store = cloud, store

    def publish(self, topic: str = "neon", content: str = "neon") -> Manifest:
        """What a job does at its end, with what an update that ships holds."""
        update = KnowledgeUpdate.load(Path("models/stickers/knowledge") / content)
        info = update.info | {"topic": topic}
        return self.store.publish(uuid.uuid4().hex, info, update.content_hash, update.to_files(), b"")

    async def picture(self, seed: int = 7) -> bytes:
        """The cloud's own, as PNG."""
        request = GenerateRequest(
            prompt=PROMPT, seeds=[seed], width=64, height=64, formats=[IMAGE_FORMAT_PNG]
        )
        (image,) = [each async for each in clients.stream(self.cloud.Generate, request, "cloud")]
        assert isinstance(image, GeneratedImage)
        return image.image

    async def sample(self, image: bytes, *of: Manifest, times: int = 1) -> float:
        """The consistency of an image that those versions drew."""
        uses = [KnowledgeUse(topic=m.topic, version=m.version, content_hash=m.content_hash) for m in of]
        for _ in range(times):
            found = await compared(self.cloud, PROMPT, 7, SIZE, image, uses, sampled=True)
        return found.consistency

    async def running(self) -> dict[str, RunningConsistency]:
        """By topic."""
        asked = ListKnowledgeRequest(consistency=True)
        return dict((await clients.call(self.cloud.ListKnowledge, asked, "cloud")).consistency)

    async def of(self, topic: str) -> RunningConsistency | None:
        """Of one topic."""
        asked = GetKnowledgeRequest(topic=topic, consistency=True)
        answer = await clients.call(self.cloud.GetKnowledge, asked, "cloud")
        return answer.consistency if answer.HasField("consistency") else None


@pytest_asyncio.fixture(loop_scope="session")
async def start_cloud(
    connect: Callable[[str], Any],
    scored_profile: Path,
    own_redis_url: str,
    tmp_path: Path,
) -> AsyncIterator[Callable[..., Awaitable[System]]]:
    """Runs a cloud over one and the same store, with changed settings; the one before it stops."""
    stack = AsyncExitStack()

    async def run(**changes: Any) -> System:
        await stack.aclose()
        start = await stack.enter_async_context(starter())
        settings = CloudSettings(
            **{"port": 0, "redis_url": own_redis_url, "profile": str(scored_profile), "data_dir": tmp_path}
            | {"mirror_every_s": 3600, "drift_window": WINDOW, "drift_fall": 0.2}
            | changes
        )
        address = await start(CloudServicer(settings), add_CloudServicer_to_server, settings, "cloud")
        return System(CloudStub(connect(address)), KnowledgeStore(tmp_path))

    async with stack:
        yield run


@pytest_asyncio.fixture(loop_scope="session")
async def system(start_cloud: Callable[..., Awaitable[System]]) -> System:
    return await start_cloud()


def shown(metric: str, **labels: str) -> float | None:
    """What this process's metrics say now."""
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(metric, labels)


async def compared(
    cloud: CloudStub,
    prompt: str,
    seed: int,
    size: tuple[int, int],
    png: bytes,
    uses: Sequence[KnowledgeUse],
    *,
    sampled: bool = False,
) -> Consistency:
    """What the cloud says of an image that came for that prompt, seed and size, drawn with those updates."""
    asked = ProvideRequest(prompt=prompt, seed=seed, width=size[0], height=size[1])
    received = ReceivedImage(png=png, report=LinkReport(knowledge=uses))
    return await compare(cloud, asked, received, sampled=sampled)


async def eventually(reached: Callable[[], Awaitable[bool]]) -> None:
    """Returns as soon as that is so."""
    async with asyncio.timeout(SOON_S):
        while not await reached():  # noqa: ASYNC110 - what is awaited happens elsewhere
            await asyncio.sleep(0.05)


async def test_an_image_is_compared_with_the_clouds_own(system: System, scored_profile: Path) -> None:
    own, other = await system.picture(7), await system.picture(8)
    same = await compared(system.cloud, PROMPT, 7, SIZE, own, [])
    assert (same.clip, same.dino, same.consistency) == pytest.approx((1, 1, 1), abs=2e-3)
    assert max(same.clip, same.dino) <= 1
    found = await compared(system.cloud, PROMPT, 7, SIZE, other, [])
    judges = load_profile(scored_profile).scorer
    assert judges is not None
    scores = ImageScorer.load(judges.clip, judges.dino).scores(from_bytes(other)[None], from_bytes(own)[None])
    assert found.clip == pytest.approx(float(scores["clip"][0]), abs=2e-3)
    assert found.dino == pytest.approx(float(scores["dino"][0]), abs=2e-3)
    assert found.consistency == pytest.approx((found.clip + found.dino) / 2)
    assert await system.running() == {}, "none of them was a sample"


async def test_the_clouds_own_image_comes_from_the_cache_or_through_its_worker(system: System) -> None:
    counted = Counted()
    for _ in range(2):
        await compared(system.cloud, PROMPT, 12, SIZE, GREY, [])
    assert counted('dekag_batch_size_count{line="cloud"}') == 1
    assert counted('dekag_stage_seconds_count{stage="cloud.compare"}') == 2


@pytest.mark.parametrize(
    ("change", "field", "allowed"),
    [
        ({"prompt": "  "}, "prompt", "1 to 1000"),
        ({"prompt": "x" * 1001}, "prompt", "1 to 1000"),
        ({"seed": 2**63}, "seed", "between 0 and"),
        ({"width": 100}, "size", "multiples of 32 from 64 to 256"),
        ({"width": 96}, "image", "96x64 pixels"),
        ({"image": b""}, "image", "readable"),
        ({"image": b"\x89PNG\r\n\x1a\n" + b"x" * 100}, "image", "readable"),
        ({"image": to_png(np.zeros((64, 512, 3), np.uint8))}, "image", "64x64 pixels, as requested"),
        ({"image": to_png(np.zeros((64, 1056, 3), np.uint8))}, "image", "at most 1024 pixels"),
        ({"knowledge": [KnowledgeUse(topic="../../etc")]}, "knowledge", "topic names"),
        ({"knowledge": [KnowledgeUse(topic="neon")] * 2}, "knowledge", "different topic names"),
    ],
)
async def test_invalid_comparison_names_the_field(
    system: System, change: dict[str, Any], field: str, allowed: str
) -> None:
    fine = {"prompt": PROMPT, "seed": 7, "width": 64, "height": 64, "image": GREY}
    with pytest.raises(InvalidInputError) as caught:
        await clients.call(system.cloud.Compare, CompareRequest(**fine | change), "cloud")
    assert caught.value.field == field
    assert allowed in caught.value.allowed


async def test_a_profile_without_encoders_compares_nothing(chain: Chain) -> None:
    with pytest.raises(NotFoundError, match="no encoders"):
        await compared(chain.cloud, PROMPT, 7, SIZE, GREY, [])


async def test_one_is_compared_at_a_time_and_few_wait(scored_profile: Path) -> None:
    comparisons = ScoringQueue(CloudSettings(max_comparisons=2))
    comparisons.load(load_profile(scored_profile).scorer)
    counted = Counted()
    async with AsyncExitStack() as first:
        await first.enter_async_context(comparisons.slot())
        second = asyncio.create_task(first_of(comparisons))
        await asyncio.sleep(0)
        with pytest.raises(ExhaustedError, match="2 comparisons"):
            await first_of(comparisons)
        assert counted('dekag_refused_total{line="scorer"}') == 1
        assert not second.done()
    await second
    await first_of(comparisons)
    comparisons.close()


async def first_of(comparisons: ScoringQueue) -> None:
    async with comparisons.slot():
        pass


async def test_a_topic_that_gets_worse_is_flagged_until_it_recovers_or_is_replaced(system: System) -> None:
    counted, own = Counted(), await system.picture()
    first = system.publish("neon")
    assert await system.of("neon") is None
    with capture_logs() as logs:
        good = await system.sample(own, first, times=2 * WINDOW)
        found = await system.of("neon")
        assert found is not None
        assert (found.samples, found.drifting) == (2 * WINDOW, False)
        assert found.fresh == pytest.approx(good, abs=1e-6)
        bad = await system.sample(GREY, first, times=WINDOW)
        assert bad < good - 0.2
        await system.sample(GREY, first)
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    assert (warning["event"], warning["topic"], warning["version"]) == ("knowledge drifts", "neon", 1)
    assert warning["fresh"] == pytest.approx(good, abs=1e-4)
    assert warning["recent"] < warning["fresh"] - 0.2
    found = (await system.running())["neon"]
    assert (found.samples, found.drifting) == (3 * WINDOW + 1, True)
    assert found.recent == pytest.approx(bad, abs=1e-6)
    assert shown("dekag_drifting", topic="neon") == 1
    assert shown("dekag_consistency_mean", topic="neon", of="fresh") == pytest.approx(good, abs=1e-6)
    assert shown("dekag_consistency_mean", topic="neon", of="recent") == pytest.approx(bad, abs=1e-6)
    assert counted('dekag_consistency_count{topic="neon"}') == 3 * WINDOW + 1

    with capture_logs() as logs:
        await system.sample(own, first, times=WINDOW)
    assert [line["event"] for line in logs if line["event"].startswith("knowledge")] == [
        "knowledge no longer drifts"
    ]
    assert shown("dekag_drifting", topic="neon") == 0
    await system.sample(GREY, first, times=WINDOW)
    assert shown("dekag_drifting", topic="neon") == 1

    second = system.publish("neon")  # a job may make the very same update again
    assert await system.of("neon") is None
    assert await system.running() == {}
    await system.sample(GREY, first)  # drawn before the new version was there
    assert await system.of("neon") is None
    await system.sample(GREY, second, times=2 * WINDOW)
    found = await system.of("neon")
    assert found is not None
    assert (found.samples, found.drifting) == (2 * WINDOW, False)
    assert shown("dekag_drifting", topic="neon") == 0


async def test_samples_of_several_topics_are_ignored_and_of_none_kept_apart(
    system: System,
) -> None:
    neon, snail = system.publish("neon"), system.publish("snail")
    await system.sample(GREY, neon, snail)
    assert await system.running() == {}
    await system.sample(GREY)
    await system.sample(GREY, snail)
    assert {topic: each.samples for topic, each in (await system.running()).items()} == {
        "none": 1,
        "snail": 1,
    }


async def test_what_is_known_outlasts_the_cloud_and_ends_with_the_topic(
    start_cloud: Callable[..., Awaitable[System]], redis: Redis
) -> None:
    before = await start_cloud()
    neon, snail = before.publish("neon"), before.publish("snail")
    await before.sample(await before.picture(), neon, times=2 * WINDOW)
    await before.sample(GREY, neon, snail, times=1)
    await before.sample(GREY, neon, times=WINDOW)
    metrics.DRIFTING.clear()  # which both have in common in this process
    after = await start_cloud(mirror_every_s=0.05)
    found = await after.of("neon")
    assert found is not None
    assert (found.samples, found.drifting) == (3 * WINDOW, True)

    async def is_shown() -> bool:
        return shown("dekag_drifting", topic="neon") == 1

    await eventually(is_shown)
    await clients.call(after.cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic="neon"), "cloud")

    async def is_forgotten() -> bool:  # by a look that began after the topic went
        names = ("dekag_drifting", "dekag_consistency_count")
        return [shown(name, topic="neon") for name in names] == [None, None]

    await eventually(is_forgotten)
    assert not await redis.hexists(CONSISTENCY_KEY, "neon")


async def test_the_metrics_forget_a_deleted_topic_without_redis_too(
    start_cloud: Callable[..., Awaitable[System]],
) -> None:
    system = await start_cloud(redis_url="")
    await system.sample(GREY, system.publish("pastel", "snail"))
    assert shown("dekag_consistency_count", topic="pastel") == 1
    await clients.call(system.cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic="pastel"), "cloud")
    assert shown("dekag_consistency_count", topic="pastel") is None


@pytest.mark.parametrize(
    "text", [b"\xff", b"[]", b"{}", b'{"samples": 3, "version": 1, "content_hash": "x"}']
)
async def test_nonsense_in_redis_is_taken_for_nothing(system: System, redis: Redis, text: bytes) -> None:
    neon = system.publish("neon")
    await redis.hset(CONSISTENCY_KEY, mapping={b"neon": text, b"\xff": text, b"none": text})
    assert await system.running() == {}
    await system.sample(GREY, neon)
    assert {topic: each.samples for topic, each in (await system.running()).items()} == {"neon": 1}


@pytest.mark.parametrize("url", ["", "redis://127.0.0.1:{port}/0"])
async def test_without_redis_images_are_compared_and_nothing_is_kept(
    start_cloud: Callable[..., Awaitable[System]], closed_port: int, url: str
) -> None:
    system = await start_cloud(redis_url=url.format(port=closed_port))
    counted, neon = Counted(), system.publish("neon")
    assert await system.sample(await system.picture(), neon) == pytest.approx(1, abs=2e-3)
    assert counted('dekag_consistency_count{topic="neon"}') == 1
    assert await system.running() == {}
    assert await system.of("neon") is None


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
async def test_sampled_share_is_as_configured(share: float) -> None:
    ids = [f"request-{number}" for number in range(10_000)]
    chosen = [of for of in ids if in_sample(of, 3, share)]
    assert len(chosen) == pytest.approx(share * len(ids), abs=4 * (share * (1 - share) * len(ids)) ** 0.5)
    assert chosen == [of for of in ids if in_sample(of, 3, share)]
    assert all(in_sample(of, 3, min(1.0, 2 * share)) for of in chosen), "a larger share holds a smaller one"
    if 0 < share < 1:
        assert chosen != [of for of in ids if in_sample(of, 4, share)], "each image has a chance of its own"


async def test_a_gateway_watches_unless_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GatewaySettings().watch_share == 0  # as these tests tell it
    monkeypatch.delenv("DEKAG_WATCH_SHARE")
    assert 0 < GatewaySettings().watch_share < 0.1


@pytest_asyncio.fixture(loop_scope="session")
async def watched(
    start: Start,
    scored_profile: Path,
    own_redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> GatewaySettings:
    """Settings of a gateway in front of a chain of its own, that has every image compared."""
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path))
    addresses = await start_chain(start, scored_profile, own_redis_url)
    return GatewaySettings(
        user_address=addresses["user"],
        cloud_address=addresses["cloud"],
        redis_url=own_redis_url,
        watch_share=1.0,
        watch_min_psnr_db=0.0,
    )


async def test_a_delivered_image_shows_as_a_metric_of_the_topic_that_drew_it(
    watched: GatewaySettings, scored_profile: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    profile = load_profile(scored_profile)
    cloud, edge = Generator.from_profile(profile, "cloud"), Generator.from_profile(profile, "edge")
    config = DistillConfig(images=4, held_out=2, steps=2, batch=4, rank=2, tokens=1)
    prompts = topic_prompts("neon", count=config.images, held_out=config.held_out, seed=0)
    folder = tmp_path_factory.mktemp("update")
    distill(cloud, edge, prompts, config, folder / "work").save(folder / "neon")
    publish_update(update_of(folder / "neon"), KnowledgeStore(tmp_path), edge.model_hash)

    counted = Counted()
    async with serving(create_app(watched)) as client:

        async def ask(prompt: str) -> list[str]:
            answer = await client.post(PATH, json={"prompt": prompt, "seed": 1, "size": "64x64"})
            assert answer.status_code == 200, answer.text
            return [each["topic"] for each in answer.json()["data"][0]["link_report"]["knowledge"]]

        async def neon_is_known() -> bool:
            return await ask("a boat, neon style") == ["neon"]

        async def both_are_counted() -> bool:
            listed = (await client.get("/v1/knowledge")).json()
            return listed["consistency"] is not None and listed["data"][0]["consistency"] is not None

        async def consistency(snr_db: float) -> dict[str, float] | None:
            asked = {"prompt": "a red boat", "seed": 9, "size": "64x64", "delivery": "conventional"}
            answer = await client.post(PATH, json=asked | {"link": {"snr_db": snr_db}, "consistency": True})
            found: dict[str, float] | None = answer.json()["data"][0]["consistency"]
            return found

        whole = await consistency(40)
        assert whole is not None
        assert whole["mean"] > 0.8, "it is the cloud's own, but for the file's loss"
        assert whole["mean"] == pytest.approx((whole["clip"] + whole["dino"]) / 2, abs=1e-6)
        assert await consistency(-20) is None, "it did not decode"
        await eventually(neon_is_known)
        assert await ask("a boat") == []
        await eventually(both_are_counted)
        listed = (await client.get("/v1/knowledge")).json()
        found = listed["data"][0]["consistency"]
        assert found == (await client.get("/v1/knowledge/neon")).json()["consistency"]
        for each, topic in ((found, "neon"), (listed["consistency"], "none")):
            assert each.keys() == {"samples", "fresh", "recent", "drifting"}
            assert each["samples"] == counted(f'dekag_consistency_count{{topic="{topic}"}}') >= 1
            assert -1 <= each["fresh"] <= 1
            assert each["drifting"] is False
    assert counted('dekag_watch_dropped_total{reason="failed"}') == 0


class Blocked(cloud_pb2_grpc.CloudServicer):
    """A cloud whose comparisons come to no end before the gateway gives them up."""

    def __init__(self) -> None:
        self.asked: list[CompareRequest] = []
        self.given_up = 0
        self.address = ""

    def load(self) -> None: ...

    async def close(self) -> None: ...

    async def Compare(self, request: CompareRequest, context: Any) -> Consistency:  # noqa: N802 - gRPC's name
        self.asked.append(request)
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up += 1
        return Consistency()

    async def is_asked(self) -> bool:
        return bool(self.asked)

    def watching(self, chain: Chain) -> GatewaySettings:
        """Of a gateway that has every image compared here."""
        return GatewaySettings(
            user_address=chain.addresses["user"],
            cloud_address=self.address,
            redis_url="",
            watch_share=1.0,
            watch_min_psnr_db=0.0,
        )


@pytest_asyncio.fixture(loop_scope="session")
async def blocked(start: Start) -> Blocked:
    cloud = Blocked()
    cloud.address = await start(cloud, add_CloudServicer_to_server)
    return cloud


async def test_comparisons_delay_no_answer_and_are_dropped_when_too_many(
    blocked: Blocked, chain: Chain
) -> None:
    counted, images = Counted(), AT_ONCE + 3
    pngs: list[bytes] = []

    async def all_have_arrived() -> bool:
        return len(blocked.asked) == AT_ONCE

    async def all_are_given_up() -> bool:
        return blocked.given_up == AT_ONCE

    async with serving(create_app(blocked.watching(chain))) as client:
        for seed in range(images):
            body = {"prompt": PROMPT, "seed": seed, "size": "64x64", "knowledge": "auto"}
            answer = await client.post(PATH, json=body)
            assert answer.status_code == 200, answer.text
            pngs.append(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        await eventually(all_have_arrived)
        for each in blocked.asked:
            assert (each.prompt, each.width, each.height, each.sampled) == (PROMPT, 64, 64, True)
            sent, shown = (from_bytes(png, max_side=64) for png in (each.image, pngs[each.seed]))
            assert np.array_equal(sent, shown)
            assert PROMPT.encode() not in each.image, "the file to show says where it is from, this one not"
        assert blocked.given_up == 0
        assert counted('dekag_watch_dropped_total{reason="busy"}') == images - AT_ONCE
    await eventually(all_are_given_up)
    assert counted('dekag_watch_dropped_total{reason="failed"}') == 0


async def test_a_cloud_that_cannot_be_reached_fails_no_answer(chain: Chain, closed_port: int) -> None:
    counted = Counted()
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=f"127.0.0.1:{closed_port}",
        redis_url="",
        watch_share=1.0,
        watch_min_psnr_db=0.0,
    )

    async def is_counted() -> bool:
        return counted('dekag_watch_dropped_total{reason="failed"}') == 1

    async with serving(create_app(settings)) as client:
        answer = await client.post(PATH, json={"prompt": PROMPT, "seed": 1, "size": "64x64"})
        assert answer.status_code == 200, answer.text
        await eventually(is_counted)


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({}, {"delivery": "conventional"}),
        ({}, {"delivery": "semantic-unaligned"}),
        ({}, {"knowledge": "none"}),
        ({"watch_min_psnr_db": 99.0}, {}),
        ({"watch_share": 0.0}, {}),
    ],
)
async def test_images_that_say_little_of_the_knowledge_are_passed_over(
    blocked: Blocked, chain: Chain, change: dict[str, float], body: dict[str, str]
) -> None:
    settings = blocked.watching(chain).model_copy(update=change)
    async with serving(create_app(settings)) as client:
        asked = {"prompt": PROMPT, "seed": 7, "size": "64x64", "link": {"snr_db": 30, "fading": "awgn"}}
        answer = await client.post(PATH, json=asked | body)
        assert answer.json()["data"][0]["b64_json"], answer.text
        async with serving(create_app(blocked.watching(chain))) as other:  # what came later has arrived
            await other.post(PATH, json=asked | {"prompt": "a later one"})
            await eventually(blocked.is_asked)
    assert [each.prompt for each in blocked.asked] == ["a later one"]


async def test_a_client_that_repeats_an_image_counts_once(chain: Chain, start: Start) -> None:
    class Counting(Blocked):
        async def Compare(self, request: CompareRequest, context: Any) -> Consistency:  # noqa: N802
            self.asked.append(request)
            return Consistency()

    cloud = Counting()
    cloud.address = await start(cloud, add_CloudServicer_to_server)
    async with serving(create_app(cloud.watching(chain))) as client:

        async def ask(prompt: str, snr_db: float, request_id: str) -> None:
            body = {"prompt": prompt, "seed": 7, "size": "64x64", "link": {"snr_db": snr_db}}
            answer = await client.post(PATH, json=body, headers={"X-Request-ID": request_id})
            assert answer.status_code == 200, answer.text

        for number in range(4):
            await ask(PROMPT, 20 + number, f"mine-{number}")
            await eventually(cloud.is_asked)
        await ask("another one", 20, "mine-0")

        async def the_last_is_there() -> bool:
            return cloud.asked[-1].prompt == "another one"

        await eventually(the_last_is_there)
    assert [each.prompt for each in cloud.asked] == [PROMPT, "another one"]


async def test_no_client_chooses_what_is_sampled(blocked: Blocked, chain: Chain) -> None:
    settings = blocked.watching(chain).model_copy(update={"watch_share": 1e-4})
    chosen = next(name for name in map(str, range(10**6)) if in_sample(name, 7, 1e-4))
    async with serving(create_app(settings)) as client:
        body = {"prompt": PROMPT, "seed": 7, "size": "64x64"}
        answer = await client.post(PATH, json=body, headers={"X-Request-ID": chosen})
        assert answer.status_code == 200, answer.text
        async with serving(create_app(blocked.watching(chain))) as other:  # what came later has arrived
            await other.post(PATH, json=body | {"prompt": "a later one"})
            await eventually(blocked.is_asked)
    assert [each.prompt for each in blocked.asked] == ["a later one"]
