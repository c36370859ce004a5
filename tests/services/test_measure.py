"""Images whose quality is not measured: the same bits, no reference on any hop, no PSNR in any report."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from redis.asyncio import Redis
from rich.console import Console

from dekag import plugins
from dekag.api import image_file
from dekag.client import Client, Image
from dekag.errors import InvalidInputError
from dekag.generation.images import Pixels, to_png
from dekag.metrics.image import Metric
from services.bench.loadtest.measure import measured_quality
from services.bench.loadtest.report import Answer, write_report
from services.cli.report import report_table, write_images
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.request_context import begin_request
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.proto.downlink_pb2 import SymbolFrame
from services.proto.user_pb2 import ReceivedImage
from tests.chain import Chain, serving
from tests.processes import LOCUST
from tests.services.answers import PATH, is_problem
from tests.services.command_line import dekag, environment
from tests.services.counted import Counted

pytestmark = pytest.mark.asyncio(loop_scope="session")
ROOT = Path(__file__).resolve().parents[2]
PICTURES = "/v1/pictures"
SMALL = {"prompt": "a red boat", "seed": 5, "size": "64x64"}
DELIVERIES = ("semantic", "semantic-unaligned", "conventional")


@pytest.fixture(autouse=True)
async def no_request() -> None:
    begin_request(None, None)


def drawn(width: int, height: int) -> bytes:
    """A PNG of noise."""
    return to_png(np.random.default_rng(2).integers(0, 255, (height, width, 3)).astype(np.uint8))


async def receive(chain: Chain, asked: DeliveryRequest) -> ReceivedImage:
    return await clients.call(chain.user.Receive, converters.request_to_proto(asked), "user")


async def frames(stub: Any, asked: DeliveryRequest) -> list[SymbolFrame]:
    return [frame async for frame in stub.Provide(converters.request_to_proto(asked))]


def without_times(image: dict[str, Any]) -> dict[str, Any]:
    """What an answer says that two requests for one image have in common."""
    report = {
        name: value
        for name, value in image["link_report"].items()
        if name not in ("request_id", "stages", "latency", "hops", "cached", "psnr_db")
    }
    return {**image, "link_report": report}


def picture_request(asked: DeliveryRequest, delivery: str) -> DeliveryRequest:
    cbr = 0.0 if delivery == "conventional" else asked.cbr
    return replace(asked, delivery=delivery, cbr=cbr, prompt="", width=0, height=0, picture=drawn(150, 90))


@pytest.mark.parametrize("delivery", [*DELIVERIES, "pixels", "a picture", "a picture as a file"])
async def test_the_image_is_the_same_and_nothing_to_measure_it_with_is_sent(
    chain: Chain, asked: DeliveryRequest, redis: Redis, delivery: str
) -> None:
    if delivery in DELIVERIES:
        cbr = 0.0 if delivery == "conventional" else asked.cbr
        asked = replace(asked, delivery=delivery, cbr=cbr)
    else:
        kinds = {"pixels": "pixels", "a picture": "semantic", "a picture as a file": "conventional"}
        asked = picture_request(asked, kinds[delivery])
    counted = Counted()
    plain = await receive(chain, replace(asked, measure=False))  # first, so that nothing is cached
    assert counted("dekag_deliveries_total" + f'{{decoded="true",delivery="{asked.delivery}"}}') == 1
    assert counted(f'dekag_psnr_db_count{{delivery="{asked.delivery}"}}') == 0
    assert counted('dekag_stage_seconds_count{stage="user.measure"}') == 0
    image = await receive(chain, asked)
    again = await receive(chain, replace(asked, measure=False))  # from the cache
    assert counted(f'dekag_psnr_db_count{{delivery="{asked.delivery}"}}') == 1
    assert plain.png == image.png == again.png != b""
    assert image.report.HasField("psnr_db")
    for each in (plain, again):
        assert not each.report.HasField("psnr_db")
        assert not each.report.scores
        assert not each.HasField("details")
        assert not each.report.picture.HasField("ssim")
        assert not each.report.picture.HasField("autoencoder_psnr_db")
        assert "user.measure" not in [stage.stage for stage in each.report.stages]
    for stub in (chain.edge, chain.channel):
        whole, less = await frames(stub, asked), await frames(stub, replace(asked, measure=False))
        (reference,) = [frame for frame in whole if frame.HasField("reference")]
        assert [each.WhichOneof("part") for each in less] == [
            each.WhichOneof("part") for each in whole if each != reference
        ]
        sent, spared = (sum(frame.ByteSize() for frame in each) for each in (whole, less))
        assert spared <= sent - reference.ByteSize() < sent


async def test_plugged_in_metrics_are_left_out_too(
    chain: Chain, asked: DeliveryRequest, plugging: None
) -> None:
    calls: list[int] = []

    class Ones(Metric):
        name = "ones"

        def score(self, images: Pixels, references: Pixels) -> Any:
            calls.append(len(images))
            return np.ones(len(images))

    plugins.register(Ones)
    plain = await receive(chain, replace(asked, measure=False))
    assert (dict(plain.report.scores), calls) == ({}, [])
    measured = await receive(chain, asked)
    assert (dict(measured.report.scores), calls) == ({"ones": 1.0}, [1])


async def test_details_without_the_measurement_are_refused_over_grpc(
    chain: Chain, asked: DeliveryRequest
) -> None:
    message = converters.request_to_proto(replace(asked, measure=False, details=True))
    with pytest.raises(InvalidInputError, match="details must be false when measure is false"):
        await clients.call(chain.user.Receive, message, "user")


@pytest.mark.parametrize("path", [PATH, PICTURES])
async def test_details_need_the_measurement(client: httpx2.AsyncClient, path: str) -> None:
    what = {"prompt": "x"} if path == PATH else {"picture": base64.b64encode(drawn(8, 8)).decode()}
    answer = await client.post(path, json=what | {"measure": False, "details": True})
    (error,) = is_problem(answer, 422)["errors"]
    assert error["field"] == "details"
    assert error["allowed"].startswith("false when measure is false")
    answer = await client.post(path, json=what | {"measure": "no", "details": True})
    (error,) = is_problem(answer, 422)["errors"]
    assert (error["field"], error["allowed"]) == ("measure", "true or false")


@pytest.mark.parametrize("delivery", DELIVERIES)
async def test_several_images_come_without_psnr(client: httpx2.AsyncClient, delivery: str) -> None:
    body = SMALL | {"n": 2, "delivery": delivery, "link": {"snr_db": 25, "fading": "awgn"}}
    with_psnr, null, less = [
        await client.post(PATH, json=body | more) for more in ({}, {"measure": None}, {"measure": False})
    ]
    whole, same, spared = (answer.json()["data"] for answer in (with_psnr, null, less))
    assert [each["link_report"]["psnr_db"] for each in spared] == [None, None]
    assert all(each["link_report"]["psnr_db"] > 0 for each in [*whole, *same])
    assert all(each["link_report"]["decoded"] for each in spared)
    # the files, too: what is written into them says how the image is made, which measuring does not change
    assert list(map(without_times, spared)) == list(map(without_times, whole))
    kept = await client.get(f"/v1/reports/{less.headers['x-request-id']}")
    assert kept.json()["link_reports"] == [each["link_report"] for each in spared]


async def test_a_stream_with_previews_ends_without_psnr(client: httpx2.AsyncClient) -> None:
    body = SMALL | {"prompt": "an unmeasured fox", "steps": 4, "stream": True, "partial_images": 2}
    spared = await client.post(PATH, json=body | {"measure": False})
    whole = await client.post(PATH, json=body | {"stream": False})
    events = [
        json.loads(line.removeprefix("data: "))
        for line in spared.text.splitlines()
        if line.startswith("data: ")
    ]
    previews, last = events[:-1], events[-1]
    assert [event["type"] for event in previews] == 2 * ["image_generation.partial_image"]
    assert last["type"] == "image_generation.completed"
    assert last["link_report"]["psnr_db"] is None
    assert last["b64_json"] == whole.json()["data"][0]["b64_json"]


async def test_a_key_of_idempotency_gives_the_same_image_both_ways(client: httpx2.AsyncClient) -> None:
    body, headers = {"prompt": "a tree", "size": "64x64"}, {"Idempotency-Key": "measured-or-not"}
    found = []
    for measure in (False, True, False):
        answer = await client.post(PATH, json=body | {"measure": measure}, headers=headers)
        (image,) = answer.json()["data"]
        assert (image["link_report"]["psnr_db"] is not None) == measure
        found.append(image["b64_json"])
    assert found[0] == found[1] == found[2]


async def test_consistency_needs_no_measurement(start: Any, scored_profile: Path, own_data: None) -> None:
    from tests.chain import start_chain

    addresses = await start_chain(start, scored_profile, "")
    settings = GatewaySettings(user_address=addresses["user"], cloud_address=addresses["cloud"], redis_url="")
    async with serving(create_app(settings)) as client:
        body = SMALL | {"consistency": True}
        spared, whole = [
            (await client.post(PATH, json=body | {"measure": measure})).json()["data"][0]
            for measure in (False, True)
        ]
    assert spared["consistency"] == whole["consistency"] is not None
    assert (spared["link_report"]["psnr_db"], spared["details"]) == (None, None)


async def test_a_picture_as_json_and_as_a_form_comes_without_quality(client: httpx2.AsyncClient) -> None:
    file = drawn(100, 60)
    body = {"picture": base64.b64encode(file).decode(), "seed": 3}
    whole = await client.post(PICTURES, json=body)
    spared = await client.post(PICTURES, json=body | {"measure": False})
    form = await client.post(PICTURES, files={"picture": file}, data={"seed": "3", "measure": "false"})
    for answer in (spared, form):
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["data"]
        report = image["link_report"]
        assert (report["psnr_db"], report["scores"]) == (None, {})
        assert (report["picture"]["ssim"], report["picture"]["autoencoder_psnr_db"]) == (None, None)
        assert report["picture"]["width"] == 100
        assert image["b64_json"] == whole.json()["data"][0]["b64_json"]
    assert whole.json()["data"][0]["link_report"]["picture"]["autoencoder_psnr_db"] > 0


async def eventually(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await reached():  # noqa: ASYNC110 - what is awaited happens elsewhere
            await asyncio.sleep(0.05)


async def test_the_drift_watch_measures_its_sample_for_itself(
    start: Any, scored_profile: Path, own_redis_url: str
) -> None:
    from tests.chain import start_chain

    addresses = await start_chain(start, scored_profile, own_redis_url)
    counted = Counted()

    def watching(**changes: Any) -> GatewaySettings:
        return GatewaySettings(
            user_address=addresses["user"], cloud_address=addresses["cloud"], redis_url=own_redis_url,
            watch_share=1.0, **changes,
        )  # fmt: skip

    async def is_counted() -> bool:
        return counted('dekag_consistency_count{topic="none"}') == 1

    async with serving(create_app(watching(watch_min_psnr_db=100.0))) as client:
        answer = await client.post(PATH, json=SMALL | {"measure": False})
        assert answer.json()["data"][0]["link_report"]["psnr_db"] is None
        assert not await is_counted(), "no image is that good"
    async with serving(create_app(watching(watch_min_psnr_db=1.0))) as client:
        for body in ({"knowledge": "none"}, {"delivery": "conventional"}, {}):
            answer = await client.post(PATH, json=SMALL | {"seed": 6, "measure": False} | body)
            (image,) = answer.json()["data"]
            assert (image["link_report"]["psnr_db"], image["link_report"]["scores"]) == (None, {})
            stages = [stage["stage"] for stage in image["link_report"]["stages"]]
            assert "user.measure" not in stages
        await eventually(is_counted)
        kept = await client.get(f"/v1/reports/{answer.headers['x-request-id']}")
        assert kept.json()["link_reports"][0]["psnr_db"] is None


async def asked_of(url: str, **arguments: Any) -> Image:
    def run() -> Image:
        with Client(url) as client:
            if "picture" in arguments:
                return client.picture(arguments.pop("picture"), **arguments)
            return client.image(**arguments)

    return await asyncio.to_thread(run)


async def test_the_client_requests_images_and_pictures_without_measuring(
    gateway_url: str, tmp_path: Path
) -> None:
    for what in (dict(SMALL), {"picture": drawn(40, 40), "seed": 1}):
        spared, whole = [await asked_of(gateway_url, **what, measure=measure) for measure in (False, None)]
        assert spared.report.psnr_db is None
        assert whole.report.psnr_db is not None
        assert spared.png == whole.png
        with pytest.raises(InvalidInputError) as caught:
            await asked_of(gateway_url, **what, measure=False, details=True)
        assert caught.value.field == "details"
    write_images({"semantic": spared}, tmp_path)
    console = Console(width=100, record=True, quiet=False)
    console.print(report_table({"semantic": spared}))
    assert "not measured" in console.export_text()


async def test_the_command_line_requests_and_repeats_without_measuring(
    gateway_url: str, tmp_path: Path
) -> None:
    options = ["--url", gateway_url, "--no-measure"]
    done = await dekag("image", "a boat", "--seed", "4", "--size", "64x64", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "PSNR" in line]
    assert "not measured" in line
    file = tmp_path / "a-boat-4.png"
    assert "measure" not in image_file.read_provenance(file).request
    again = await dekag("image", "--from", "a-boat-4.png", *options, "--json", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["psnr_db"] is None
    whole = await dekag(
        "image", "--from", "a-boat-4.png", "--url", gateway_url, "--json", "--force", folder=tmp_path
    )
    assert json.loads(whole.stdout)["psnr_db"] is not None
    assert (tmp_path / "a-boat-4-again.png").read_bytes() == file.read_bytes()


async def test_the_quality_of_a_load_test_is_measured_after_it(
    client: httpx2.AsyncClient, gateway_url: str, dummy_profile: Path, tmp_path: Path
) -> None:
    answers, bodies = [], {}
    for seed in (1, 2):
        body = {"prompt": "a boat", "seed": seed, "delivery": "semantic", "measure": False}
        answer = await client.post(PATH, json=body)
        name = answer.headers["x-request-id"]
        bodies[name] = body
        answers.append(
            Answer(name, str(seed), "a boat", "semantic", 0.0, 0.0, 1.0, None, 10, 10,
                   answer.json()["data"][0]["link_report"])
        )  # fmt: skip
    quality = await asyncio.to_thread(
        measured_quality,
        answers,
        bodies,
        gateway_url,
        str(dummy_profile),
        most=2,
        console=Console(quiet=True),
    )
    assert quality.missing == ""
    assert quality.psnr_db.keys() == quality.equal_psnr_uses.keys() == bodies.keys()
    assert all(uses == 512 for uses, _ in quality.equal_psnr_uses.values())
    verdict, *_ = write_report(tmp_path, answers, {"measure": "no"}, load_s=2.0, updates={}, quality=quality)
    assert f"than WebP of equal PSNR ({np.mean(list(quality.psnr_db.values())):.1f} dB)" in verdict
    page = (tmp_path / "report.md").read_text()
    assert "The PSNR of the deliveries was not measured: the load test ran with `--measure no`." in page
    assert "| PSNR of those that decoded, dB | - | - |  |" in page
    assert all(asdict(each)["link_report"]["psnr_db"] is None for each in answers)


@pytest.mark.slow
async def test_a_load_test_of_serving_alone(gateway_url: str, dummy_profile: Path, tmp_path: Path) -> None:
    import subprocess

    options = ["--users", "2", "--run-time", "3", "--rate", "1", "--seed", "1", "--conventional-share", "0.5"]
    options += ["--measure", "no", "--quality-images", "2", "--topics-of", str(dummy_profile)]
    done = await asyncio.to_thread(
        subprocess.run,
        [*LOCUST, "--only-summary", "--host", gateway_url, *options, "--report", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["settings"]["measure"] == "no"
    assert found["answered"] == found["requests"] > 1
    assert {each["psnr_db"] for each in found["deliveries"].values()} == {None}
    assert all("user.measure" not in each["stages_s"] for each in found["deliveries"].values())
    assert found["backhaul"]["radio_compared"] >= 2, "one of each topic, at least"
    assert found["backhaul"]["radio_psnr_db"] > 0
