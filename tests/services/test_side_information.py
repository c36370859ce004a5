"""A codec that reads prompts, through all services: what it knows, what it is not told, what it reports."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import pytest_asyncio

from dekag import SemanticLink
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.images import to_png
from dekag.generation.loading import pipeline_hash
from dekag.generation.side_information import SideInformation
from dekag.link import LinkConditions
from dekag.profile import load_profile
from services.cloud.publish import publish_update
from services.cloud.version_store import KnowledgeStore
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from tests.chain import Chain, data_in, running_chain, with_reading_codec, with_unaligned_codec
from tests.services.cloud.test_publish import make_update

if TYPE_CHECKING:
    from services.proto.user_pb2 import ReceivedImage

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module", params=["dummy_profile", "foreign_profile"])
def bare(request: pytest.FixtureRequest) -> Path:
    """Every test runs with models like the embedded ones, and with models unlike them."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def profile(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    width = SideInformation.load(load_profile(bare).edge).width
    made = tmp_path_factory.mktemp("reading")
    reading = with_reading_codec(bare, made / "it", text_width=width)
    return with_unaligned_codec(reading, made / "both")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reading(own_data: None, profile: Path, new_database: Callable[[], str]) -> AsyncIterator[Chain]:
    async with running_chain(profile, new_database()) as chain:
        yield chain


@pytest.fixture
def asked(asked: DeliveryRequest) -> DeliveryRequest:
    return replace(asked, width=64, height=64, cbr=1 / 96, knowledge=(), prompt="a red boat")


async def receive(chain: Chain, asked: DeliveryRequest, **changes: Any) -> ReceivedImage:
    request = converters.request_to_proto(replace(asked, **changes))
    return await clients.call(chain.user.Receive, request, "user")


@pytest.mark.parametrize("delivery", ["semantic", "semantic-unaligned"])
async def test_the_link_as_a_library_gives_the_bits_of_the_services(
    reading: Chain, asked: DeliveryRequest, profile: Path, delivery: str
) -> None:
    link = SemanticLink.load(profile, aligned=delivery == "semantic")
    for snr_db, cbr in ((3, 1 / 96), (12, 1 / 768)):
        conditions = LinkConditions(snr_db=snr_db, fading="rayleigh")
        theirs = await receive(reading, asked, delivery=delivery, link=conditions, cbr=cbr)
        ours = link.image(asked.prompt, conditions, seed=asked.seed, cbr=cbr, width=64, height=64)
        assert to_png(ours.pixels) == theirs.png


async def test_a_prompt_is_read_unless_it_is_withheld(reading: Chain, asked: DeliveryRequest) -> None:
    told, untold = await receive(reading, asked), await receive(reading, asked, side_information="none")
    assert told.png != untold.png
    names = {number: name for name, number in converters.SIDE_INFORMATION.items()}
    assert [names[each.report.side_information] for each in (told, untold)] == ["prompt", "none"]
    alone = await receive(reading, asked, delivery="semantic-unaligned")
    assert names[alone.report.side_information] == "none", "the codec alone reads no prompts"


async def test_a_latent_is_restored_as_in_the_library(
    reading: Chain, asked: DeliveryRequest, profile: Path
) -> None:
    plain = await receive(reading, asked)
    restored = await receive(reading, asked, restoration="denoiser")
    untold = await receive(reading, asked, restoration="denoiser", side_information="none")
    assert len({plain.png, restored.png, untold.png}) == 3
    names = {number: name for name, number in converters.RESTORATIONS.items()}
    assert [names[each.report.restoration] for each in (plain, restored)] == ["none", "denoiser"]
    assert "user.restore" in {stage.stage for stage in restored.report.stages}
    assert restored.report.model_hashes["restorer"]
    assert "user.restore" not in {stage.stage for stage in plain.report.stages}
    ours = SemanticLink.load(profile).image(
        asked.prompt, asked.link, seed=asked.seed, cbr=asked.cbr, width=64, height=64, restoration="denoiser"
    )
    assert to_png(ours.pixels) == restored.png
    with pytest.raises(InvalidInputError, match="restoration must be none or denoiser"):
        SemanticLink.load(profile).image(asked.prompt, restoration="denoise")  # type: ignore[arg-type]


async def test_what_an_update_taught_is_not_restored_away(
    profile: Path, new_database: Callable[[], str], asked: DeliveryRequest, tmp_path: Path
) -> None:
    with data_in(tmp_path):
        publish_update(
            make_update(profile), KnowledgeStore(tmp_path), pipeline_hash(load_profile(profile).edge)
        )
        async with running_chain(profile, new_database()) as chain:
            of_topic = replace(asked, prompt="a neon boat", knowledge=None)
            plain = await receive(chain, of_topic)
            restored = await receive(chain, of_topic, restoration="denoiser")
    assert [use.topic for use in plain.report.knowledge] == ["neon"]
    assert restored.png == plain.png
    assert restored.report.restoration == converters.RESTORATIONS["none"]


async def test_restoration_is_refused_where_nobody_knows_how(
    reading: Chain,
    bare: Path,
    new_database: Callable[[], str],
    asked: DeliveryRequest,
    tmp_path: Path,
) -> None:
    for delivery in ("semantic-unaligned", "conventional"):
        with pytest.raises(InvalidInputError, match=r"link\.restoration must be none unless"):
            await receive(reading, asked, restoration="denoiser", delivery=delivery)
    blind = LinkConditions(csi="none")
    with pytest.raises(InvalidInputError, match=r"link\.restoration must be none with csi none"):
        await receive(reading, asked, restoration="denoiser", link=blind)
    with data_in(tmp_path):  # adapters that another test published are in the shared folder
        async with running_chain(bare, new_database()) as chain:
            with pytest.raises(InvalidInputError, match=r"link\.restoration must be none: there is no"):
                await receive(chain, asked, restoration="denoiser")


@pytest.mark.parametrize(
    ("snr_db", "reported", "expected"),
    [(-5.0, None, "qam16"), (5.0, None, "qam64"), (15.0, None, "qam256"), (15.0, -3.0, "qam16")],
)
async def test_the_constellation_follows_the_reported_snr(
    reading: Chain, asked: DeliveryRequest, snr_db: float, reported: float | None, expected: str
) -> None:
    link = LinkConditions(snr_db=snr_db, reported_snr_db=reported)
    image = await receive(reading, asked, link=link)
    assert image.report.modulation == converters.MODULATIONS[expected]
    alone = await receive(reading, asked, link=link, delivery="semantic-unaligned")
    assert alone.report.modulation == converters.MODULATIONS["qam64"], "as it was trained"
    chosen = await receive(reading, asked, link=link, modulation="qam4")
    assert chosen.report.modulation == converters.MODULATIONS["qam4"]


@pytest.mark.parametrize(("fading", "antennas"), [("mimo-2x2", 2), ("mimo-4x4", 4)])
async def test_with_several_antennas_the_constellation_follows_the_snr_of_a_stream(
    reading: Chain, asked: DeliveryRequest, fading: Literal["mimo-2x2", "mimo-4x4"], antennas: int
) -> None:
    snr_db = 10.0 * math.log10(antennas) + 8.0  # 8 dB for each stream
    image = await receive(reading, asked, link=LinkConditions(snr_db=snr_db, fading=fading))
    alone = await receive(reading, asked, link=LinkConditions(snr_db=8.0))
    assert image.report.modulation == alone.report.modulation == converters.MODULATIONS["qam64"]
    told = await receive(reading, asked, link=LinkConditions(snr_db=snr_db))
    assert told.report.modulation != image.report.modulation


async def test_what_an_update_puts_into_the_edges_encoder_does_not_reach_the_codec(
    profile: Path,
) -> None:
    known = SideInformation.load(load_profile(profile).edge)
    link = SemanticLink.load(profile)
    assert known.states("a red boat").equal(link.generator.reader.side_information("a red boat"))
    assert len(known.states("")) == 0


async def test_a_codec_for_another_text_encoder_is_refused(
    own_data: None,
    bare: Path,
    new_database: Callable[[], str],
    tmp_path: Path,
    asked: DeliveryRequest,
) -> None:
    other = with_reading_codec(bare, tmp_path / "other", text_width=5)
    async with running_chain(other, new_database()) as chain:
        with pytest.raises(MismatchError, match="reads prompts in 5 numbers a token"):
            await receive(chain, asked)
        image = await receive(chain, asked, side_information="none")
        assert image.png
