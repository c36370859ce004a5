"""The web page's files: complete, of this host alone, and in step with what the gateway takes."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest

from dekag.api.schemas import (
    ImagesRequest,
    LinkReport,
    Modulation,
    PictureReport,
    Restoration,
    SideInformation,
)
from dekag.link import LinkConditions
from dekag.link.conditions import Csi, EqualizerKind, Fading
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from dekag.stickers.captions import PLACE_WORDS, TIME_WORDS
from dekag.stickers.scene import COLOURS, STYLES, SUBJECTS
from dekag.stickers.styles import STYLE_BY_NAME
from services.gateway import web_ui
from services.gateway.app import create_app
from services.gateway.middleware import needs_key
from services.gateway.settings import GatewaySettings
from services.gateway.usage import UsageTotals
from services.launcher import up
from tests.chain import serving, with_topics

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOLDER = Path(web_ui.__file__).parent / "web"
PATH = "/v1/images/generations"


class Controls(HTMLParser):
    """Attributes of every element by its id or name, and the values of the options below it."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.options: dict[str, list[str]] = {}
        self.loaded: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag in ("link", "script", "img"):
            self.loaded += [found[name] for name in ("href", "src") if found.get(name)]
        if tag in ("input", "select", "textarea"):
            self.attributes[str(found.get("id", found.get("name")))] = found
        if tag == "select":
            self._within = str(found["id"])
        elif tag == "option" and "value" in found:
            self.options.setdefault(self._within, []).append(str(found["value"]))


@pytest.fixture(scope="module")
def controls() -> Controls:
    parser = Controls()
    parser.feed((FOLDER / "index.html").read_text())
    return parser


async def test_the_page_and_all_it_loads_are_served_strictly(
    alone: httpx2.AsyncClient, controls: Controls
) -> None:
    answer = await alone.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    scripts = {path.name: path.read_text() for path in FOLDER.glob("*.js")}
    modules = {f"web/{name}" for name in scripts}
    imported = {f"web/{name}" for text in scripts.values() for name in re.findall(r'"\./(\w+\.js)"', text)}
    assert modules == imported | {"web/main.js"}
    for path in {*controls.loaded, *modules}:
        assert (await alone.get(f"/{path}")).status_code == 200, path
    assert (await alone.get("/web/../app.py")).status_code == 404
    assert (await alone.get("/web/%2e%2e/app.py")).status_code == 404


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(path.read_text(), id=path.name)
        for path in sorted(FOLDER.iterdir())
        if path.suffix != ".webp"
    ],
)
async def test_page_loads_nothing_from_other_hosts(text: str) -> None:
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.|\bstyle=|\bon\w+=|innerHTML|eval\(", text)


async def test_controls_allow_what_the_gateway_takes(controls: Controls) -> None:
    limits: dict[str, Any] = {
        type(each).__name__: each for each in LinkConditions.model_fields["snr_db"].metadata
    }
    slider = controls.attributes["snr_db"]
    assert (float(str(slider["min"])), float(str(slider["max"]))) == (limits["Ge"].ge, limits["Le"].le)
    assert controls.options["fading"] == list(get_args(Fading))
    assert controls.options["csi"] == list(get_args(Csi))
    assert controls.options["equalizer"] == list(get_args(EqualizerKind))
    assert controls.options["modulation"] == ["auto", *get_args(Modulation)]
    assert controls.options["side_information"] == list(get_args(SideInformation))
    assert controls.options["restoration"] == list(get_args(Restoration))
    formats = get_args(ImagesRequest.model_fields["image_format"].annotation)
    assert controls.options["image_format"] == list(formats)
    text = (FOLDER / "index.html").read_text()
    offered = re.search(r'<datalist id="topics">(.*?)</datalist>', text, re.DOTALL)
    assert offered is not None
    assert re.findall(r"<option>([\w-]+)</option>", offered[1]) == list(TOPICS)
    named = {field for name in ("ImagesRequest", "PictureRequest", "LinkRequest") for field in _fields(name)}
    script = (FOLDER / "ask.js").read_text()
    used = set(re.findall(r"\b(?:link|body)\.(\w+) =", script))
    assert used
    assert used <= named


async def test_words_of_the_page_are_those_of_the_world() -> None:
    script = (FOLDER / "words.js").read_text()
    by_part = re.search(r"WORDS = \{(\s+colour.*?)\n\};", script, re.DOTALL)
    assert by_part is not None
    words = {
        part: re.findall(r'"([^"]+)"', listed)
        for part, listed in re.findall(r"(\w+): \[(.*?)\]", by_part[1], re.DOTALL)
    }
    assert set(words) == {"colour", "subject", "place", "time", "style"}
    assert sorted(words["subject"]) == sorted(SUBJECTS)
    assert set(words["colour"]) <= set(COLOURS)
    assert sorted(words["style"]) == sorted(STYLE_BY_NAME[name].words[0] for name in STYLES)
    for phrases, known in ((words["place"], PLACE_WORDS), (words["time"], TIME_WORDS)):
        assert len(phrases) == len(known)
        assert all(any(phrase in of for phrase in phrases) for of in known.values())
    listed = re.search(r"TOPIC_WORDS = \{(.*?)\n\};", script, re.DOTALL)
    assert listed is not None
    topics = re.findall(r'([\w-]+)"?: \[([^\]]*)\]', listed[1])
    assert len(topics) == 12
    for topic, triggers in topics:
        assert set(re.findall(r'"([^"]+)"', triggers)) <= set(TOPICS[topic].triggers), topic
    examples = re.search(r"EXAMPLES = \[(.*?)\];", script, re.DOTALL)
    assert examples is not None
    assert controls_prompt() in examples[1]


def controls_prompt() -> str:
    found = re.search(r'id="prompt"[^>]*value="([^"]+)"', (FOLDER / "index.html").read_text())
    assert found is not None
    return found[1]


async def test_the_page_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.suffix != ".webp"}
    assert sum(sizes.values()) < 300_000, sizes


async def test_the_opening_example_is_given_to_the_edge() -> None:
    (topic,) = up.start_topics().values()
    assert up.start_topics("stickers") == up.start_topics()
    assert not up.start_topics("mine"), "it has no such update"
    assert topic in controls_prompt()
    assert (Path(load_profile("stickers").knowledge or "") / topic).is_dir()
    compose = (Path(__file__).parents[3] / "docker-compose.yml").read_text()
    assert f"DEKAG_START_TOPICS: ${{DEKAG_START_TOPICS-{topic}}}" in compose


def _fields(name: str) -> list[str]:
    from dekag.api import schemas

    return list(getattr(schemas, name).model_fields)


async def test_the_page_gets_the_profiles_own_topics(
    dummy_profile: Path, tmp_path: Path, alone: httpx2.AsyncClient
) -> None:
    assert (await alone.get(web_ui.PROFILE_URL)).json() == {"size": 256, "topics": {}}
    mine = with_topics(dummy_profile, tmp_path / "mine")
    found = web_ui.example_prompts(str(mine))
    assert found["frost"] == ["a boat under frost"]
    assert re.fullmatch(r"a \w+ \w+ (in the snow|at sea|at night) that glows", *found["glow"])
    (mine / "topics" / "frost.yaml").write_text("prompts: 3")
    nobody = {"user_address": "127.0.0.1:1", "cloud_address": "127.0.0.1:1", "redis_url": ""}
    async with serving(create_app(GatewaySettings(profile=str(mine), **nobody))) as gateway:
        assert (await gateway.get(web_ui.PROFILE_URL)).json() == {"size": None, "topics": {}}
        (mine / "topics" / "frost.yaml").unlink()
        described = (await gateway.get(web_ui.PROFILE_URL)).json()
        assert list(described["topics"]) == ["glow"]
        assert described["size"] == load_profile(mine).size


async def test_a_profiles_prompts_are_for_those_with_a_key() -> None:
    assert needs_key(web_ui.PROFILE_URL)


def report(delivery: str, channel_uses: int, backhaul: int, pilot_uses: int = 0) -> LinkReport:
    known = {name: field.examples[0] for name, field in LinkReport.model_fields.items() if field.examples}
    hops = [{"hop": "cloud-edge", "sent_bytes": backhaul}, {"hop": "edge-channel", "sent_bytes": 10}]
    changed = {"delivery": delivery, "channel_uses": channel_uses, "pilot_uses": pilot_uses, "hops": hops}
    return LinkReport.model_validate(known | {"image_format": None} | changed)


async def test_traffic_is_summed_and_compared_with_conventional_delivery() -> None:
    totals = UsageTotals()
    assert (totals.traffic().deliveries, totals.traffic().saved) == ({}, None)
    totals.add(report("semantic", 512, 1000, pilot_uses=8))
    totals.add(report("semantic", 256, 0))
    totals.add(report("semantic-unaligned", 512, 0))
    assert totals.traffic().saved is None
    totals.add(report("conventional", 4000, 800))
    found = totals.traffic()
    assert (found.deliveries["semantic"].images, found.deliveries["semantic"].channel_uses) == (2, 776)
    assert {hop.hop: hop.sent_bytes for hop in found.deliveries["semantic"].hops} == {
        "cloud-edge": 1000,
        "edge-channel": 20,
    }
    assert found.saved is not None
    costs = {name for name in found.saved.model_dump() if name.startswith(("channel", "backhaul"))}
    assert found.saved.model_dump(include=costs) == {
        "channel_uses_spent": 776,
        "channel_uses_instead": 8000,
        "backhaul_bytes_spent": 1000,
        "backhaul_bytes_instead": 1600,
    }


async def test_a_saving_comes_with_the_quality_of_both_sides() -> None:
    totals = UsageTotals()
    for psnr_db, consistency in ((20.0, 0.8), (24.0, None), (None, 0.6)):
        totals.add(report("semantic", 512, 0).model_copy(update={"psnr_db": psnr_db}), consistency)
    totals.add(report("conventional", 4000, 800).model_copy(update={"psnr_db": 38.0}), 0.99)
    lost = report("conventional", 4000, 800).model_copy(update={"psnr_db": None, "decoded": False})
    totals.add(lost)
    picture = PictureReport(width=16, height=16, format="PNG")
    totals.add(report("semantic", 100, 0).model_copy(update={"picture": picture, "psnr_db": 50.0}))
    saved = totals.traffic().saved
    assert saved is not None
    assert (saved.psnr_db_spent, saved.psnr_db_instead) == (22.0, 38.0)
    assert (saved.consistency_spent, saved.consistency_instead) == (pytest.approx(0.7), 0.99)


async def test_pictures_of_any_size_do_not_count_as_images_saved() -> None:
    totals = UsageTotals()
    totals.add(report("semantic", 512, 0))
    totals.add(report("conventional", 4000, 800))
    before = totals.traffic()
    picture = PictureReport(width=16, height=16, format="PNG")
    for delivery in ("semantic", "conventional"):
        totals.add(report(delivery, 100, 0).model_copy(update={"picture": picture}))
    after = totals.traffic()
    assert (after.saved, after.backhaul) == (before.saved, before.backhaul)
    assert after.deliveries["conventional"].images == 2
    assert after.deliveries["semantic"].channel_uses == 612


async def test_the_curve_of_bytes_is_thinned_evenly_and_ends_with_the_last_image() -> None:
    totals = UsageTotals()
    for _ in range(1001):
        totals.add(report("semantic", 512, 10))
    curve = totals.traffic().backhaul
    assert len(curve) <= 257
    steps = {after.images - before.images for before, after in itertools.pairwise(curve[:-1])}
    assert steps == {4}
    assert (curve[-1].images, curve[-1].sent_bytes) == (1001, 10_010)
    assert all(point.sent_bytes == 10 * point.images for point in curve)


async def test_the_gateway_counts_what_it_answers(client: httpx2.AsyncClient) -> None:
    before = (await client.get("/v1/traffic")).json()["deliveries"].get("semantic", {"images": 0})
    asked = {"prompt": "a red boat", "seed": 5, "size": "64x64", "n": 2}
    assert (await client.post(PATH, json=asked)).status_code == 200
    after = (await client.get("/v1/traffic")).json()
    assert after["deliveries"]["semantic"]["images"] == before["images"] + 2
