"""Pictures of a user's own through the whole chain: the library's bits, the report, forms, refusals."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from dekag import LinkConditions, PixelLink, SemanticLink, plugins
from dekag.api.limits import MAX_PICTURE_BYTES
from dekag.errors import InvalidInputError
from dekag.generation.images import Pixels, from_bytes, to_png
from dekag.metrics.image import psnr_db
from dekag.pictures import Picture
from dekag.pipeline import send_file
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.frames import collect
from services.common.request_context import begin_request
from services.proto.downlink_pb2 import ProvideRequest, Sampling
from tests.chain import Chain
from tests.fetched import EXAMPLE, fetch
from tests.services.answers import is_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")
LINK = LinkConditions(snr_db=15)
URL = "/v1/pictures"


@pytest.fixture(autouse=True)
async def no_request() -> None:
    begin_request(None, None)


def drawn(width: int, height: int) -> Pixels:
    """A gradient with some noise."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(1).integers(0, 40, (height, width))
    return np.stack([x % 256, y % 256, (x + y + noise) % 256], axis=-1).astype(np.uint8)


def encoded(pixels: Pixels) -> str:
    return base64.b64encode(to_png(pixels)).decode()


def asked(pixels: Pixels, delivery: str = "semantic", **changes: Any) -> DeliveryRequest:
    values: dict[str, Any] = {
        "prompt": "", "seed": 7, "width": 0, "height": 0, "delivery": delivery, "link": LINK,
        "cbr": 0.0 if delivery == "conventional" else 1 / 96, "measure": True, "picture": to_png(pixels),
    }  # fmt: skip
    return DeliveryRequest(**{**values, **changes})


async def receive(chain: Any, request: DeliveryRequest) -> Any:
    return await clients.call(chain.user.Receive, converters.request_to_proto(request), "user")


@pytest.mark.parametrize("fading", ["rayleigh", "awgn", "tdl-c"])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (300, 70), (1, 1), (20, 290)])
async def test_services_and_library_give_the_same_bits(
    chain: Any, dummy_profile: Path, width: int, height: int, fading: str
) -> None:
    pixels = drawn(width, height)
    link = LinkConditions(snr_db=15, fading=fading, csi="pilots")  # type: ignore[arg-type]
    image = await receive(chain, asked(pixels, link=link))
    alone = SemanticLink.load(dummy_profile).picture(Picture(pixels, "PNG"), link, seed=7)
    assert alone.tiling is not None
    assert np.array_equal(from_bytes(image.png), alone.pixels)
    report, picture = image.report, image.report.picture
    assert (report.channel_uses, report.pilot_uses) == (alone.channel_uses, alone.pilot_uses)
    assert report.cbr == alone.cbr
    assert report.psnr_db == alone.psnr_db == psnr_db(from_bytes(image.png), pixels)
    assert picture.autoencoder_psnr_db == alone.autoencoder_psnr_db
    assert (picture.width, picture.height, picture.format) == (width, height, "PNG")
    assert (picture.columns * picture.rows) == alone.tiling.count == -(-width // 128) * -(-height // 128)
    assert picture.HasField("ssim") == (min(width, height) >= 11)


async def test_a_file_is_the_library_s_too(chain: Any) -> None:
    pixels = drawn(100, 40)
    image = await receive(chain, asked(pixels, "conventional", image_format="jpeg"))
    alone = send_file(Picture(pixels, "PNG"), LINK, image_format="jpeg", seed=7)
    assert np.array_equal(from_bytes(image.png), alone.pixels)
    assert image.report.coding.payload_bytes == alone.file_bytes
    assert image.report.channel_uses == alone.channel_uses
    assert not image.report.picture.HasField("columns")
    assert not image.report.picture.HasField("autoencoder_psnr_db")


async def test_a_file_that_does_not_decode_is_a_result(chain: Any) -> None:
    lost = LinkConditions(snr_db=-20, fading="awgn")
    image = await receive(chain, asked(drawn(64, 64), "conventional", link=lost))
    assert (image.png, image.report.decoded) == (b"", False)
    assert image.report.picture.width == 64


async def test_adapters_prompt_and_restoration_act_as_in_the_library(
    start: Any, connect: Any, adapted_profile: Path
) -> None:
    from services.proto.user_pb2_grpc import UserStub
    from tests.chain import start_chain

    addresses = await start_chain(start, adapted_profile, "")
    user = UserStub(connect(addresses["user"]))
    pixels = drawn(200, 140)
    request = asked(pixels, prompt="a cat", restoration="denoiser", cbr=0.0, target_psnr_db=30.0)
    image = await clients.call(user.Receive, converters.request_to_proto(request), "user")
    alone = SemanticLink.load(adapted_profile).picture(
        Picture(pixels, "PNG"), LINK, prompt="a cat", seed=7, target_psnr_db=30, restoration="denoiser"
    )
    assert np.array_equal(from_bytes(image.png), alone.pixels)
    assert image.report.expected_psnr_db == alone.expected_psnr_db
    assert image.report.model_hashes["adapters"]


async def test_the_picture_itself_is_no_traffic(chain: Any) -> None:
    # the first fetches what it lacks
    _, small, large = [
        (await receive(chain, asked(pixels, cbr=1 / 768))).report.hops
        for pixels in (drawn(128, 128), np.zeros((128, 128, 3), np.uint8), drawn(128, 128))
    ]
    before = {hop.hop: hop.sent_bytes for hop in small}
    for hop in large:
        if hop.hop != "user-gateway":  # the received picture is
            assert abs(hop.sent_bytes - before[hop.hop]) < 100


async def test_json_and_form_say_the_same(client: httpx2.AsyncClient) -> None:
    pixels = drawn(150, 40)
    link = {"snr_db": 12, "fading": "awgn", "cbr": 1 / 192}
    body = {"picture": encoded(pixels), "seed": 3, "link": link, "details": True, "prompt": "12"}
    answers = [
        await client.post(URL, json=body),
        await client.post(
            URL,
            files={"picture": ("x.gif", to_png(pixels), "image/gif")},  # neither name nor type counts
            data={"seed": "3", "link": json.dumps(link), "details": "true", "prompt": "12"},
        ),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    first, second = (answer.json()["data"][0] for answer in answers)
    assert first["b64_json"] == second["b64_json"]
    shown = from_bytes(base64.b64decode(first["details"]["reference_b64_json"]))
    assert np.array_equal(shown, pixels)
    report = first["link_report"]
    assert report["cbr"] == pytest.approx(1 / 192, rel=0.01)
    assert report["knowledge"] == []
    assert report["picture"] == {
        "width": 150, "height": 40, "format": "PNG", "notes": [], "columns": 2, "rows": 1, "tile_width": 96,
        "tile_height": 64, "autoencoder_psnr_db": report["picture"]["autoencoder_psnr_db"],
        "ssim": report["picture"]["ssim"],
    }  # fmt: skip
    kept = await client.get(f"/v1/reports/{report['request_id']}")
    assert kept.json()["link_reports"] == [report]


async def test_omitted_seed_comes_back_and_repeats(client: httpx2.AsyncClient) -> None:
    body = {"picture": encoded(drawn(32, 32))}
    first = (await client.post(URL, json=body)).json()["data"][0]
    again = (await client.post(URL, json={**body, "seed": first["seed"]})).json()["data"][0]
    assert first["b64_json"] == again["b64_json"]
    key = {"Idempotency-Key": "once"}
    seeds = {(await client.post(URL, json=body, headers=key)).json()["data"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 1


@pytest.mark.parametrize(
    ("delivery", "cbr"), [("pixels", 1 / 200), ("pixels", 1 / 96), ("semantic", 1 / 200)]
)
async def test_a_rate_below_those_of_the_training_is_told(
    client: httpx2.AsyncClient, dummy_profile: Path, delivery: str, cbr: float
) -> None:
    note = PixelLink.load(dummy_profile).rate_note(cbr) if delivery == "pixels" else None
    assert (note is not None) == (delivery == "pixels" and cbr < 1 / 96)
    body = {"picture": encoded(drawn(64, 64)), "delivery": delivery, "link": {"cbr": cbr}}
    answer = await client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["link_report"]["picture"]["notes"] == ([note] if note else [])


@pytest.mark.parametrize("size", [(128, 128), (200, 60), (7, 3)])
async def test_pixels_have_the_librarys_bits(
    chain: Chain, dummy_profile: Path, size: tuple[int, int]
) -> None:
    pixels = drawn(*size)
    received = await receive(chain, asked(pixels, "pixels", cbr=1 / 12))
    alone = PixelLink.load(dummy_profile).picture(Picture(pixels, "PNG"), LINK, seed=7, cbr=1 / 12)
    assert np.array_equal(from_bytes(received.png), alone.pixels)
    report = received.report
    assert (report.channel_uses, report.psnr_db) == (alone.channel_uses, alone.psnr_db)
    assert set(report.model_hashes) == {"codec"}
    assert not report.picture.HasField("autoencoder_psnr_db")
    assert report.side_information == converters.SIDE_INFORMATION["none"]


async def test_a_codec_of_pixels_of_ones_own_has_the_librarys_bits(
    start: Any,
    connect: Any,
    dummy_profile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plugging: None,
) -> None:
    from services.proto.user_pb2_grpc import UserStub
    from tests.chain import start_chain

    plugins.load(f"{EXAMPLE}:AdJscc")
    profile = fetch("AdJscc", dummy_profile, tmp_path, monkeypatch)
    addresses = await start_chain(start, profile, "")
    user = UserStub(connect(addresses["user"]))
    pixels = drawn(600, 43)
    request = asked(pixels, "pixels", cbr=1 / 11)
    own, threads = plugins.get("pixel_codec", "adjscc"), []
    counts = own.symbol_counts
    monkeypatch.setattr(
        own, "symbol_counts", lambda *asked: threads.append(threading.get_ident()) or counts(*asked)
    )
    image = await clients.call(user.Receive, converters.request_to_proto(request), "user")
    assert len(threads) >= 2, "both ends ask"
    assert threading.get_ident() not in threads, "it may compute, which would hold up all other requests"
    alone = PixelLink.load(profile).picture(Picture(pixels, "PNG"), LINK, seed=7, cbr=1 / 11)
    assert alone.tiling is not None
    assert np.array_equal(from_bytes(image.png), alone.pixels)
    assert image.report.channel_uses == alone.channel_uses
    assert image.report.picture.tile_height == alone.tiling.tile_height == 44, "a multiple of its step"
    low = converters.request_to_proto(asked(pixels, "pixels"))
    with pytest.raises(InvalidInputError, match=r"link\.cbr must be at least 0\.0852713"):
        await clients.call(user.Receive, low, "user")


async def test_images_cannot_be_sent_as_pixels(client: httpx2.AsyncClient, chain: Chain) -> None:
    answer = await client.post("/v1/images/generations", json={"prompt": "a fox", "delivery": "pixels"})
    assert [each["field"] for each in is_problem(answer, 422)["errors"]] == ["delivery"]
    message = converters.request_to_proto(asked(drawn(8, 8), "pixels", cbr=1 / 12))
    message.ClearField("picture")
    message.prompt = "a fox"
    with pytest.raises(InvalidInputError, match="delivery must be one of semantic"):
        await clients.call(chain.user.Receive, message, "user")


async def test_a_picture_as_pixels_over_rest(client: httpx2.AsyncClient) -> None:
    body = {"picture": encoded(drawn(100, 60)), "delivery": "pixels", "seed": 7, "link": {"cbr": 1 / 24}}
    (image,) = (await client.post(URL, json=body)).json()["data"]
    report = image["link_report"]
    assert (report["delivery"], report["modulation"]) == ("pixels", "unquantised")
    assert report["channel_uses"] == round(3 * 100 * 60 / 24)
    assert report["picture"]["autoencoder_psnr_db"] is None
    assert from_bytes(base64.b64decode(image["b64_json"])).shape == (60, 100, 3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"picture": "no base64!"}, "picture"),
        ({"picture": ""}, "picture"),
        ({"picture": base64.b64encode(b"GIF89a").decode()}, "picture"),
        ({"picture": None}, "picture"),
        ({"prompt": "  "}, "prompt"),
        ({"size": "128x128"}, "size"),
        ({"knowledge": "none"}, "knowledge"),
        ({"link": {"cbr": 1 / 48}}, "link.cbr"),  # twice what the codec can send
        ({"delivery": "pixels", "link": {"cbr": 0.17}}, "link.cbr"),
        ({"delivery": "pixels", "link": {"cbr": "auto", "target_psnr_db": 20}}, "link.target_psnr_db"),
        ({"delivery": "pixels", "link": {"restoration": "denoiser"}}, "link.restoration"),
        ({"delivery": "radio"}, "delivery"),
        ({"seed": -1}, "seed"),
    ],
)
async def test_what_is_wrong_is_named(
    client: httpx2.AsyncClient, changes: dict[str, Any], field: str
) -> None:
    answer = await client.post(URL, json={"picture": encoded(drawn(128, 128)), **changes})
    assert field in [each["field"] for each in is_problem(answer, 422)["errors"]]


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({"link": "{"}, 1, "link is JSON"),
        ({"seed": "seven"}, 1, "seed is JSON"),
        ({"picture": "x"}, 1, "'picture' twice"),
        ({}, 2, "Too many files"),
    ],
)
async def test_a_form_that_is_wrong_is_refused(
    client: httpx2.AsyncClient, data: dict[str, str], files: int, said: str
) -> None:
    parts = [("picture", ("a.png", to_png(drawn(32, 32)), "image/png"))] * files
    answer = await client.post(URL, data=data, files=parts)
    assert said in is_problem(answer, 400)["detail"]


async def test_a_form_that_is_cut_off_is_refused(client: httpx2.AsyncClient) -> None:
    fields = {"picture": to_png(drawn(8, 8)), "seed": b"7", "delivery": b"conventional"}
    file = {"picture": '; filename="a.png"'}
    parts = [
        b'--end\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), file.get(name, "").encode(), value)
        for name, value in fields.items()
    ]
    whole = b"".join(parts) + b"--end--"
    headers = {"Content-Type": "multipart/form-data; boundary=end"}
    for rest in (b"", b"\r\n", b"\r\nnothing"):
        answer = await client.post(URL, content=whole + rest, headers=headers)
        assert answer.json()["data"][0]["link_report"]["delivery"] == "conventional", answer.text
    cuts = [1, 2, 3, 6, 8, 12, 20, 40, len(parts[2]) + 6, len(parts[2]) + 8, len(whole) - 60, len(whole) - 5]
    for cut in cuts:
        problem = is_problem(await client.post(URL, content=whole[:-cut], headers=headers), 400)
        assert "ends before its closing boundary" in problem["detail"], cut


async def test_a_form_whose_text_is_in_another_encoding_is_refused(client: httpx2.AsyncClient) -> None:
    parts = [
        ("picture", ("a.png", to_png(drawn(8, 8)), "image/png")),
        ("prompt", (None, "caf\xe9".encode("latin-1"))),
    ]
    assert "'prompt' is not text in utf-8" in is_problem(await client.post(URL, files=parts), 400)["detail"]


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_pages_of_other_hosts_cannot_send_forms(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    files = {"picture": ("a.png", to_png(drawn(32, 32)), "image/png")}
    assert "JSON" in is_problem(await client.post(URL, files=files, headers=headers), 415)["detail"]
    path = "/v1/images/generations"  # takes no forms at all
    is_problem(await client.post(path, files=files), 415)


async def test_a_file_that_is_too_large_is_refused(client: httpx2.AsyncClient) -> None:
    answer = await client.post(URL, json={"picture": base64.b64encode(bytes(MAX_PICTURE_BYTES + 1)).decode()})
    is_problem(answer, 422)
    is_problem(await client.post(URL, files={"picture": bytes(2 * MAX_PICTURE_BYTES)}), 413)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"picture": b""}, "picture"),
        ({"picture": bytes(MAX_PICTURE_BYTES + 1)}, "picture"),
        ({"width": 64, "height": 64}, "size"),
        ({"knowledge": ["neon"]}, "knowledge"),
        ({"sampling": Sampling(steps=3)}, "steps"),
        ({"sampling": Sampling(adapter_scale=0)}, "adapter_scale"),
        ({"sampling": Sampling(negative_prompt="a dog")}, "negative_prompt"),
        ({"previews": 1}, "partial_images"),
    ],
)
async def test_each_service_checks_the_request(chain: Any, changes: dict[str, Any], field: str) -> None:
    good = converters.request_to_proto(asked(drawn(32, 32)))
    message = ProvideRequest()
    message.CopyFrom(good)
    for name, value in changes.items():
        if name == "knowledge":
            message.knowledge[:] = value
        elif name == "sampling":
            message.sampling.CopyFrom(value)
        else:
            setattr(message, name, value)
    with pytest.raises(InvalidInputError) as error:
        await clients.call(chain.user.Receive, message, "user")
    assert error.value.field == field
    with pytest.raises(InvalidInputError) as error:
        await collect(clients.stream(chain.edge.Provide, message, "edge"))
    assert error.value.field == field


async def test_an_upright_picture_arrives(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn(60, 40)).save(tmp_path / "x.jpg", exif=exif)
    body = {"picture": base64.b64encode((tmp_path / "x.jpg").read_bytes()).decode()}
    found = (await client.post(URL, json=body)).json()["data"][0]
    assert found["link_report"]["picture"]["notes"] == ["turned as its EXIF orientation says"]
    assert from_bytes(base64.b64decode(found["b64_json"])).shape == (60, 40, 3)
