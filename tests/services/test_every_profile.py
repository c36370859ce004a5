"""The chain with the embedded models, and with dummy models that are like them or unlike them in every way.

Where the library can do the same, the services must have its bits.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
import pytest_asyncio

from dekag import LinkConditions, PixelLink, SemanticLink
from dekag.generation.images import from_bytes, to_png
from dekag.generation.loading import pipeline_hash
from dekag.generation.models import Generator
from dekag.generation.side_information import SideInformation
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.update import KnowledgeUpdate
from dekag.pictures import Picture
from dekag.pipeline import send_file
from dekag.profile import Profile, load_profile
from dekag.training.tiny_models import OTHER_WAY_ROUND, save_dummy_models
from services.cloud.publish import publish_update
from services.cloud.version_store import KnowledgeStore
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.request_context import begin_request
from services.proto.cloud_pb2 import GenerateRequest
from services.proto.downlink_pb2 import IMAGE_FORMAT_WEBP
from tests.chain import (
    Chain,
    data_in,
    running_chain,
    serving_chain,
    with_reading_codec,
    with_unaligned_codec,
)
from tests.services.answers import PATH, is_problem
from tests.services.cloud.test_publish import make_update

if TYPE_CHECKING:
    from services.proto.user_pb2 import ReceivedImage

pytestmark = pytest.mark.asyncio(loop_scope="session")
SIDE = 64  # the least, so that the embedded models are quick
TOPIC = "neon"
GOOD, BAD = (LinkConditions(snr_db=snr_db, fading="awgn") for snr_db in (30, -20))


@dataclass(frozen=True)
class System:
    """A running chain with a gateway, its models, and an update that its cloud has published."""

    chain: Chain
    client: httpx2.AsyncClient
    folder: Path
    models: Profile
    update: KnowledgeUpdate

    async def receive(self, asked: DeliveryRequest, **changes: Any) -> ReceivedImage:
        """What the user service answers."""
        request = converters.request_to_proto(replace(asked, **changes))
        return await clients.call(self.chain.user.Receive, request, "user")


def with_everything(models: Path, folder: Path) -> Path:
    """A copy of dummy models with all that the embedded profile has: adapters that read, two codecs."""
    width = SideInformation.load(load_profile(models).edge).width
    reading = with_reading_codec(models, folder / "reading", text_width=width)
    return with_unaligned_codec(reading, folder / "both")


@pytest.fixture(scope="module", params=["embedded", "dummy", "foreign", "exchanged"])
def profile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        return Path("models/stickers")
    if request.param == "exchanged":
        return with_everything(save_dummy_models(folder / "models", like=OTHER_WAY_ROUND), folder)
    return with_everything(request.getfixturevalue(f"{request.param}_profile"), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(
    profile: Path, new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    models, url, data = load_profile(profile), new_database(), tmp_path_factory.mktemp("data")
    shipped = None if models.knowledge is None else Path(models.knowledge) / TOPIC
    update = make_update(profile, TOPIC) if shipped is None else KnowledgeUpdate.load(shipped)
    with data_in(data):
        publish_update(update, KnowledgeStore(data), pipeline_hash(models.edge))
        async with running_chain(profile, url) as chain, serving_chain(chain, url) as client:
            yield System(chain, client, profile, models, update)


@pytest.fixture
def asked(asked: DeliveryRequest) -> DeliveryRequest:
    begin_request(None, None)
    return replace(asked, width=SIDE, height=SIDE, knowledge=(), prompt="a red boat on the beach")


@pytest.mark.parametrize("delivery", ["semantic", "semantic-unaligned"])
async def test_semantic_deliveries_have_the_librarys_bits(
    system: System, asked: DeliveryRequest, delivery: str
) -> None:
    link = SemanticLink.load(system.folder, aligned=delivery == "semantic")
    theirs = await system.receive(asked, delivery=delivery)
    ours = link.image(asked.prompt, asked.link, seed=asked.seed, cbr=asked.cbr, width=SIDE, height=SIDE)
    assert theirs.png == to_png(ours.pixels)
    assert theirs.report.channel_uses == ours.channel_uses == 3 * SIDE**2 // 96
    assert theirs.report.psnr_db == pytest.approx(ours.psnr_db)


async def test_the_rate_for_a_target_is_the_librarys(system: System, asked: DeliveryRequest) -> None:
    theirs = await system.receive(asked, cbr=0.0, target_psnr_db=16.0)
    ours = SemanticLink.load(system.folder).image(
        asked.prompt, asked.link, seed=asked.seed, target_psnr_db=16.0, width=SIDE, height=SIDE
    )
    assert theirs.png == to_png(ours.pixels)
    assert theirs.report.expected_psnr_db == ours.expected_psnr_db


async def test_a_conventional_delivery_is_the_clouds_file(system: System, asked: DeliveryRequest) -> None:
    image = await system.receive(asked, delivery="conventional", cbr=0.0, link=GOOD)
    request = GenerateRequest(
        prompt=asked.prompt, seeds=[asked.seed], width=SIDE, height=SIDE, formats=[IMAGE_FORMAT_WEBP]
    )
    (file,) = [answer async for answer in system.chain.cloud.Generate(request)]
    assert np.array_equal(from_bytes(image.png), from_bytes(file.image))
    assert image.report.coding.payload_bytes == len(file.image)
    lost = await system.receive(asked, delivery="conventional", cbr=0.0, link=BAD)
    assert (lost.png, lost.report.decoded) == (b"", False)


async def test_a_withheld_prompt_and_restoration_are_the_librarys(
    system: System, asked: DeliveryRequest
) -> None:
    told, untold, restored = [
        await system.receive(asked, **changes)
        for changes in ({}, {"side_information": "none"}, {"restoration": "denoiser"})
    ]
    assert len({told.png, untold.png, restored.png}) == 3
    names = {number: name for name, number in converters.SIDE_INFORMATION.items()}
    assert [names[each.report.side_information] for each in (told, untold)] == ["prompt", "none"]
    ours = SemanticLink.load(system.folder).image(
        asked.prompt, asked.link, seed=asked.seed, cbr=asked.cbr, width=SIDE, height=SIDE,
        restoration="denoiser",
    )  # fmt: skip
    assert restored.png == to_png(ours.pixels)


@pytest.mark.parametrize("delivery", ["semantic", "pixels", "conventional"])
async def test_a_picture_of_ones_own_has_the_librarys_bits(
    system: System, asked: DeliveryRequest, delivery: str
) -> None:
    size, link = system.models.size, LinkConditions(snr_db=15)
    x, y = np.meshgrid(np.arange(size + 20), np.arange(50))
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    picture = Picture(pixels, "PNG")
    cbr = 0.0 if delivery == "conventional" else 1 / 96
    theirs = await system.receive(
        asked, prompt="", width=0, height=0, delivery=delivery, cbr=cbr, link=link, picture=to_png(pixels)
    )
    if delivery == "conventional":
        ours = send_file(picture, link, seed=asked.seed)
    else:
        kind = SemanticLink if delivery == "semantic" else PixelLink
        ours = kind.load(system.folder).picture(picture, link, seed=asked.seed, cbr=1 / 96)
    assert np.array_equal(from_bytes(theirs.png), ours.pixels)
    assert theirs.report.channel_uses == ours.channel_uses
    if delivery == "semantic":
        assert theirs.report.picture.columns == 2


async def test_a_taught_topic_changes_its_images_alone(system: System, asked: DeliveryRequest) -> None:
    prompt = f"a red boat, {system.update.triggers[0]}"
    taught = await system.receive(asked, prompt=prompt, knowledge=None)
    untaught = await system.receive(asked, prompt=prompt)
    assert [use.topic for use in taught.report.knowledge] == [TOPIC]
    assert taught.png != untaught.png
    others = [await system.receive(asked, knowledge=names) for names in (None, ())]
    assert others[0].png == others[1].png
    aligned = AlignedGenerator(Generator.from_profile(system.models, "edge"))
    aligned.add(system.update)
    latents = aligned.latents(
        prompt, asked.seed, width=SIDE, height=SIDE, updates=[system.update.content_hash]
    )
    link = SemanticLink.load(system.folder)
    text = [link.side_information(prompt)]
    sent = link.send(latents, [asked.link], [asked.seed], cbr=asked.cbr, text=text)
    ours = link.generator.decoder.decode(sent.latents, [asked.seed])[0]
    assert taught.png == to_png(ours)


async def test_previews_are_streamed_before_the_image(system: System) -> None:
    body = {"prompt": "a streamed fox", "seed": 9, "size": f"{SIDE}x{SIDE}", "steps": 4}
    async with system.client.stream(
        "POST", PATH, json=body | {"stream": True, "partial_images": 3}
    ) as answer:
        lines = [line async for line in answer.aiter_lines()]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    kinds = [*3 * ["image_generation.partial_image"], "image_generation.completed"]
    assert [event["type"] for event in events] == kinds
    shown = [from_bytes(base64.b64decode(event["b64_json"])) for event in events]
    assert {each.shape for each in shown} == {(SIDE, SIDE, 3)}
    plain = (await system.client.post(PATH, json=body)).json()["data"][0]
    assert plain["b64_json"] == events[-1]["b64_json"]


async def test_the_profiles_size_is_the_default_and_half_of_the_largest(system: System) -> None:
    size = system.models.size
    for delivery in ("semantic", "conventional"):
        body = {"prompt": "a fox", "seed": 1, "delivery": delivery, "link": {"snr_db": 30, "fading": "awgn"}}
        answer = await system.client.post(PATH, json=body)
        assert answer.status_code == 200, answer.text
        image = answer.json()["data"][0]
        assert from_bytes(base64.b64decode(image["b64_json"])).shape == (size, size, 3)
    refused = await system.client.post(PATH, json={"prompt": "a fox", "size": f"{2 * size + 32}x64"})
    is_problem(refused, 422)
    assert f"to {2 * size} pixels" in refused.text


async def test_a_prompt_that_is_too_long_for_one_window_is_read_whole(system: System) -> None:
    long = "a red boat on the beach, " * 14
    answers = []
    for prompt in (long, long + "pastel style"):
        body = {"prompt": prompt, "seed": 1, "size": f"{SIDE}x{SIDE}"}
        answer = await system.client.post(PATH, json=body)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json()["data"][0])
    assert answers[0]["b64_json"] != answers[1]["b64_json"]
    read = answers[0]["link_report"]["prompt_read"]["edge"]
    assert read["tokens"] > read["tokens_at_once"]
