"""The gateway over real HTTP, in front of the real chain with tiny models."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.api import limits
from dekag.training.distill import PREVIEW
from services.cloud.job_folder import JobFolders
from services.cloud.settings import CloudSettings
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.services.answers import PATH, is_problem, pixels

pytestmark = pytest.mark.asyncio(loop_scope="session")

Client = httpx2.AsyncClient


async def test_returns_a_picture_and_its_link_report(client: Client) -> None:
    answer = await client.post(PATH, json={"prompt": "a red boat", "seed": 7, "link": {"snr_db": 12}})
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    assert pixels(image).shape == (128, 128, 3)
    report = image["link_report"]
    assert report["request_id"] == answer.headers["x-request-id"]
    assert (report["seed"], report["delivery"], report["decoded"]) == (7, "semantic", True)
    assert (report["channel_uses"], report["cbr"]) == (512, pytest.approx(1 / 96))
    assert (report["snr_db"], report["fading"]) == (12, "rayleigh")
    assert report["no"] == pytest.approx(10**-1.2)
    gains = np.asarray(report["gains"])
    assert gains.shape == (8, 2)
    instantaneous = 10 * np.log10((gains**2).sum(1).mean() / report["no"])
    assert report["instantaneous_snr_db"] == pytest.approx(instantaneous, abs=1e-3)
    assert np.isfinite(report["psnr_db"])
    sent = {each["hop"]: each["sent_bytes"] for each in report["hops"]}
    assert list(sent) == ["cloud-edge", "edge-channel", "channel-user", "user-gateway"]
    assert sent.pop("cloud-edge") == 0  # the edge draws by itself
    assert min(sent.values()) > 0
    assert all(each["seconds"] >= 0 for each in report["stages"])
    assert report["stages"]
    assert report["model_hashes"]
    assert report["coding"] is None


async def test_same_seed_makes_the_same_bits_and_image_i_uses_seed_plus_i(client: Client) -> None:
    ask = {"prompt": "a blue house", "seed": 40, "size": "64x64"}
    first, again, two = [(await client.post(PATH, json=ask | more)).json() for more in ({}, {}, {"n": 2})]
    assert first["data"][0]["b64_json"] == again["data"][0]["b64_json"]
    assert [image["seed"] for image in two["data"]] == [40, 41]
    assert two["data"][0]["b64_json"] == first["data"][0]["b64_json"] != two["data"][1]["b64_json"]


async def test_a_drawn_seed_is_returned_and_makes_the_image_again(client: Client) -> None:
    ask = {"prompt": "a tree", "size": "64x64"}
    drawn = (await client.post(PATH, json=ask)).json()["data"][0]
    again = (await client.post(PATH, json=ask | {"seed": drawn["seed"]})).json()["data"][0]
    assert drawn["b64_json"] == again["b64_json"]


@pytest.mark.parametrize("snr_db", [25, -20])
async def test_conventional_delivery_decodes_or_says_that_it_did_not(client: Client, snr_db: float) -> None:
    link = {"snr_db": snr_db, "fading": "awgn"}
    answer = await client.post(
        PATH, json={"prompt": "a cat", "seed": 3, "delivery": "conventional", "link": link}
    )
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    report = image["link_report"]
    assert report["decoded"] == (snr_db > 0) == (image["b64_json"] is not None)
    assert (report["psnr_db"] is not None) == report["decoded"]
    assert report["coding"]["payload_bytes"] > 0
    assert report["image_format"] == "webp"
    assert report["channel_uses"] > 0


@pytest.mark.parametrize("delivery", ["semantic", "semantic-unaligned", "conventional"])
async def test_details_show_what_was_sent_and_the_constellation(client: Client, delivery: str) -> None:
    link = {"snr_db": 30, "fading": "rayleigh", "equalizer": "zf"}
    asked = {"prompt": "a red boat", "seed": 3, "delivery": delivery, "link": link}
    answers = [await client.post(PATH, json=asked | {"details": details}) for details in (True, False)]
    (image,), (plain,) = (answer.json()["data"] for answer in answers)
    assert plain["details"] is None
    assert plain["b64_json"] == image["b64_json"]
    details, report = image["details"], image["link_report"]
    off = pixels(image) / 255 - pixels({"b64_json": details["reference_b64_json"]}) / 255
    assert -10 * np.log10((off**2).mean()) == pytest.approx(report["psnr_db"], abs=0.3)
    sent, faded, equalized = (
        np.array(details["constellation"][at]) @ [1, 1j] for at in ("sent", "received", "equalized")
    )
    assert 256 < len(sent) == len(faded) == len(equalized) <= 512
    gains = np.array(report["gains"]) @ [1, 1j]
    gain = gains[np.arange(len(sent)) * len(gains) // len(sent)]
    assert np.mean(np.abs(sent) ** 2) == pytest.approx(1, rel=0.2)
    if delivery != "conventional":  # all symbols are shown, so each one's block is known
        assert np.mean(np.abs(faded - gain * sent) ** 2) == pytest.approx(1e-3, rel=0.3)
        np.testing.assert_allclose(equalized, faded / gain, rtol=1e-3, atol=1e-4)


async def test_a_profile_without_encoders_compares_nothing_and_delivers(client: Client) -> None:
    answer = await client.post(PATH, json={"prompt": "a red boat", "size": "64x64", "consistency": True})
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    assert image["b64_json"] is not None
    assert image["consistency"] is None


async def test_the_openai_client_can_ask(client: Client) -> None:
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0) as sdk:
        answer = await sdk.images.generate(
            prompt="a fox",
            model="any",
            n=1,
            size="64x64",  # type: ignore[call-overload]
            quality="low",
            user="someone",
            response_format="b64_json",
            extra_body={"seed": 5, "link": {"snr_db": 20, "fading": "awgn"}},
        )
        assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")
        with pytest.raises(openai.UnprocessableEntityError):
            await sdk.images.generate(prompt="")


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({}, "prompt", "1 to 1000"),
        ({"prompt": ""}, "prompt", "1 to 1000"),
        ({"prompt": "   "}, "prompt", "not blank"),
        ({"prompt": "x" * 1001}, "prompt", "1 to 1000"),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": "x", "n": 0}, "n", "of at least 1 and at most 10"),
        ({"prompt": "x", "n": 11}, "n", "of at least 1 and at most 10"),
        ({"prompt": "x", "n": "2"}, "n", "an integer"),
        ({"prompt": "x", "size": "100x100"}, "size", "from 64 to 1024"),
        ({"prompt": "x", "size": "1056x1024"}, "size", "from 64 to 1024"),
        ({"prompt": "x", "response_format": "file"}, "response_format", "b64_json, url"),
        ({"prompt": "x", "output_format": "avif"}, "output_format", "png, jpeg, webp"),
        ({"prompt": "x", "output_compression": 101}, "output_compression", "of at least 0 and at most 100"),
        ({"prompt": "x", "background": "transparent"}, "background", "auto, opaque"),
        ({"prompt": "x", "stream": "yes"}, "stream", "true or false"),
        ({"prompt": "x", "measure": 1}, "measure", "true or false"),
        ({"prompt": "x", "details": True, "measure": False}, "details", "false when measure is false"),
        ({"prompt": "x", "partial_images": 4}, "partial_images", "of at least 0 and at most 3"),
        ({"prompt": "x", "steps": 0}, "steps", "of at least 1 and at most 100"),
        ({"prompt": "x", "guidance_scale": 21}, "guidance_scale", "of at least 0.0 and at most 20.0"),
        ({"prompt": "x", "adapter_scale": -1}, "adapter_scale", "of at least 0.0 and at most 2.0"),
        ({"prompt": "x", "negative_prompt": "x" * 1001}, "negative_prompt", "0 to 1000 characters"),
        ({"prompt": "x", "model": "stickers/A"}, "model", "stickers/ and 1 to 32"),
        ({"prompt": "x", "model": "stickers/neon", "knowledge": "none"}, "knowledge", "left out when model"),
        ({"prompt": "x", "seed": -1}, "seed", "of at least 0"),
        ({"prompt": "x", "seed": 2**63}, "seed", "at most 9223372036854775807"),
        ({"prompt": "x", "seed": 2**63 - 1, "n": 2}, "seed", "at most 9223372036854775806 when n is 2"),
        ({"prompt": "x", "seed": 1.5}, "seed", "an integer"),
        ({"prompt": "x", "delivery": "pigeon"}, "delivery", "semantic, semantic-unaligned, conventional"),
        ({"prompt": "x", "image_format": "png"}, "image_format", "webp, avif"),
        ({"prompt": "x", "link": {"snr_db": 41}}, "link.snr_db", "of at least -20.0 and at most 40.0"),
        ({"prompt": "x", "link": {"cbr": 0}}, "link.cbr", "above 0.0 and at most 0.1666"),
        ({"prompt": "x", "link": {"fading": "fog"}}, "link.fading", "awgn, rayleigh, rician, tdl-a"),
        ({"prompt": "x", "link": {"fading": "trace"}}, "link.trace", "a name when fading is trace"),
        ({"prompt": "x", "link": {"trace": "walk"}}, "link.trace", "left out unless fading is trace"),
        ({"prompt": "x", "link": {"fading": "trace", "trace": "/etc/passwd"}}, "link.trace", "[a-z0-9-]"),
        ({"prompt": "x", "link": {"csi": "some"}}, "link.csi", "perfect, pilots, none"),
        ({"prompt": "x", "link": {"equalizer": "mf"}}, "link.equalizer", "mmse, zf"),
        ({"prompt": "x", "link": {"reported_snr_db": 41}}, "link.reported_snr_db", "at most 40.0"),
        ({"prompt": "x", "link": {"cbr": "most"}}, "link.cbr", '"auto" or a number above 0.0'),
        ({"prompt": "x", "link": {"snr_db": True}}, "link.snr_db", "of at least -20.0 and at most 40.0"),
        ({"prompt": "x", "link": {"rician_k_db": False}}, "link.rician_k_db", "a number of at least -20.0"),
        ({"prompt": "x", "link": {"reported_snr_db": False}}, "link.reported_snr_db", "at most 40.0"),
        ({"prompt": "x", "link": {"cbr": True}}, "link.cbr", '"auto" or a number above 0.0'),
        ({"prompt": "x", "link": {"cbr": "auto"}}, "link.target_psnr_db", "a PSNR in dB when cbr is auto"),
        (
            {"prompt": "x", "link": {"target_psnr_db": 20}},
            "link.target_psnr_db",
            "left out unless cbr is auto",
        ),
        (
            {"prompt": "x", "link": {"cbr": "auto", "target_psnr_db": 61}},
            "link.target_psnr_db",
            "of at least 5.0 and at most 60.0",
        ),
        ({"prompt": "x", "link": {"modulation": "qam32"}}, "link.modulation", "auto, qam4, qam16, qam64"),
        ({"prompt": "x", "link": {"side_information": "all"}}, "link.side_information", "prompt, none"),
        ({"prompt": "x", "link": {"tau_rms_s": 1}}, "link.tau_rms_s", "at most 0.0001"),
        ({"prompt": "x", "link": {"rician_k": 1}}, "link.rician_k", "snr_db, fading, tau_rms_s, rician_k_db"),
        (
            {"prompt": "x", "link": {"fading": "rayleigh-magnitude", "tau_rms_s": 1e-7}},
            "link.tau_rms_s",
            "left out unless fading is rayleigh, rician, tdl-a",
        ),
        ({"prompt": "x", "link": {"speed_m_s": 3}}, "link.speed_m_s", "left out unless fading is tdl-a"),
        ({"prompt": "x", "link": {"rician_k_db": 3}}, "link.rician_k_db", "left out unless fading is rician"),
        ({"prompt": "x", "link": {"trace_start_s": 3}}, "link.trace_start_s", "unless fading is trace"),
        ({"prompt": "x", "link": 3}, "link", "an object"),
        ({"prompt": "x", "positive_prompt": "y"}, "positive_prompt", "prompt, n, size"),
        ({"prompt": "x", "knowledge": []}, "knowledge", "1 to 4 different topic names"),
        ({"prompt": "x", "knowledge": 3}, "knowledge", "1 to 4 different topic names"),
        ({"prompt": "x", "knowledge": "A B"}, "knowledge", "1 to 4 different topic names"),
        (
            {"prompt": "x", "knowledge": ["neon", "auto"]},
            "knowledge",
            "1 to 4 different topic names",
        ),
        (
            {"prompt": "x", "knowledge": ["a", "b", "c", "d", "e"]},
            "knowledge",
            "1 to 4 different topic names",
        ),
    ],
)
async def test_invalid_field_is_named_with_its_allowed_values(
    alone: Client, body: dict[str, Any], field: str, allowed: str
) -> None:
    answer = await alone.post(PATH, content=json.dumps(body), headers={"Content-Type": "application/json"})
    (error,) = is_problem(answer, 422)["errors"]
    assert error["field"] == field
    assert allowed in error["allowed"]
    assert error["allowed"] in error["detail"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b"\xff\xfe", 422),
        (b"[" * 5000, 422),
        (b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", 422),
        (b'{"prompt": "\\ud800"}', 422),
    ],
)
async def test_malformed_body_is_refused(alone: Client, content: bytes, status: int) -> None:
    answer = await alone.post(PATH, content=content, headers={"Content-Type": "application/json"})
    is_problem(answer, status)


async def test_a_large_body_is_refused_with_and_without_a_length(alone: Client) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    for content in (b" " * 70_000, parts()):
        assert "65536" in is_problem(await alone.post(PATH, content=content), 413)["detail"]


async def test_a_rate_cannot_be_chosen_without_adapters_or_for_another_delivery(client: Client) -> None:
    ask = {"prompt": "a boat", "seed": 1, "size": "64x64", "link": {"cbr": "auto", "target_psnr_db": 20}}
    (error,) = is_problem(await client.post(PATH, json=ask), 422)["errors"]
    assert error["field"] == "link.cbr"
    assert "transmission knowledge" in error["allowed"]
    for delivery in ("semantic-unaligned", "conventional"):
        (error,) = is_problem(await client.post(PATH, json=ask | {"delivery": delivery}), 422)["errors"]
        assert error["field"] == "link.target_psnr_db"
        assert "delivery is semantic" in error["allowed"]


async def test_unaligned_delivery_and_modulation_are_reported(client: Client, alone: Client) -> None:
    ask = {"prompt": "a neon boat", "seed": 1, "size": "64x64", "link": {"modulation": "qam16"}}
    (image,) = (await client.post(PATH, json=ask | {"delivery": "semantic-unaligned"})).json()["data"]
    report = image["link_report"]
    assert (report["delivery"], report["modulation"]) == ("semantic-unaligned", "qam16")
    assert report["knowledge"] == []
    assert "adapters" not in report["model_hashes"]
    (conventional,) = (await client.post(PATH, json=ask | {"delivery": "conventional"})).json()["data"]
    assert conventional["link_report"]["modulation"] is None
    assert "no transmission knowledge" in is_problem(await client.get("/v1/transmission"), 404)["detail"]
    is_problem(await alone.get("/v1/transmission"), 503)


async def test_report_can_be_fetched_again(client: Client) -> None:
    ask = {"prompt": "a boat", "seed": 1, "size": "64x64", "n": 2}
    made = await client.post(PATH, json=ask)
    kept = await client.get(f"/v1/reports/{made.headers['x-request-id']}")
    assert kept.status_code == 200
    assert kept.json()["link_reports"] == [image["link_report"] for image in made.json()["data"]]
    assert kept.json()["created"] == made.json()["created"]


async def test_unknown_or_invalid_report_id_is_refused(client: Client, alone: Client) -> None:
    assert "nobody" in is_problem(await client.get("/v1/reports/nobody"), 404)["detail"]
    is_problem(await client.get("/v1/reports/no%20body"), 422)
    is_problem(await alone.get("/v1/reports/nobody"), 503)


async def test_foreign_value_in_redis_is_no_report(client: Client, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        for index, garbage in enumerate([b"", b"\xff", b"{}", b"[" * 5000, b'{"request_id": "x"}']):
            await redis.set(f"dekag:report:odd-{index}", garbage)
            is_problem(await client.get(f"/v1/reports/odd-{index}"), 404)


async def test_a_clients_id_is_returned_and_logged_beside_the_gateways_own(alone: Client) -> None:
    for header in ("X-Request-ID", "X-Client-Request-ID"):
        with capture_logs() as logs:
            answer = await alone.get("/v1/traffic", headers={header: "abc.DEF-1_2"})
        assert answer.headers["x-client-request-id"] == "abc.DEF-1_2"
        assert len(answer.headers["x-request-id"]) == 32
        assert [line["client_request_id"] for line in logs if line["event"] == "request"] == ["abc.DEF-1_2"]
    for bad in ("x" * 65, "a b", "{}", ""):
        answer = await alone.get("/healthz", headers={"X-Request-ID": bad})
        assert "x-client-request-id" not in answer.headers


async def test_no_client_overwrites_the_report_of_another(client: Client) -> None:
    mine = await client.post(PATH, json={"prompt": "a boat", "seed": 1, "size": "64x64"})
    name = mine.headers["x-request-id"]
    for header in ("X-Request-ID", "X-Client-Request-ID"):
        other = await client.post(
            PATH, json={"prompt": "a red car", "seed": 2, "size": "64x64"}, headers={header: name}
        )
        assert other.headers["x-request-id"] != name
    kept = (await client.get(f"/v1/reports/{name}")).json()
    assert kept["link_reports"] == [mine.json()["data"][0]["link_report"]]


async def test_unknown_paths_and_methods_are_problems(alone: Client) -> None:
    is_problem(await alone.get("/nothing"), 404)
    assert is_problem(await alone.get(PATH), 405)["title"] == "Method Not Allowed"


async def test_headers_keep_browsers_strict(alone: Client) -> None:
    answer = await alone.get("/healthz", headers={"Origin": "https://example.org"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_the_description_is_made_once(own_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(GatewaySettings(user_address="127.0.0.1:1", cloud_address="127.0.0.1:1", redis_url=""))
    made = app.openapi
    calls: list[None] = []
    monkeypatch.setattr(app, "openapi", lambda: calls.append(None) or made())
    async with serving(app) as client:
        first, second = [await client.get("/openapi.json") for _ in range(2)]
    assert first.json()["openapi"].startswith("3.")
    assert (first.content, len(calls)) == (second.content, 1)
    assert first.headers["content-type"] == "application/json"


async def test_docs_need_no_other_host(alone: Client) -> None:
    page = await alone.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text
    assert (await alone.get("/docs-assets/swagger-ui-bundle.js")).status_code == 200
    described = (await alone.get("/openapi.json")).json()["paths"][PATH]["post"]["responses"]
    for status in ("400", "422"):
        assert list(described[status]["content"]) == ["application/problem+json"]


async def test_an_unreachable_user_is_503_and_not_ready(alone: Client) -> None:
    answer = await alone.post(PATH, json={"prompt": "x"})
    assert "user" in is_problem(answer, 503)["detail"]
    assert int(answer.headers["retry-after"]) > 0
    answer = await alone.get("/readyz")
    assert answer.status_code == 503
    checks = {"user": "unreachable", "cloud": "unreachable", "distillation": "unreachable", "redis": "down"}
    found = answer.json()
    assert (found["ready"], found["checks"]) == (False, checks)
    assert found["reasons"].keys() == checks.keys()
    assert found["reasons"]["user"] == "the user service cannot be reached"
    assert "DEKAG_REDIS_URL is none" in found["reasons"]["redis"]


async def test_ready_gateway_reports_every_check(client: Client) -> None:
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    checks = {"user": "serving", "cloud": "serving", "distillation": "serving", "redis": "up"}
    assert answer.json() == {"ready": True, "checks": checks, "reasons": {}}


async def test_a_deadline_that_passes_is_504(chain: Any) -> None:
    settings = GatewaySettings(user_address=chain.addresses["user"], redis_url="", deadline_s=0.001)
    async with serving(create_app(settings)) as client:
        is_problem(await client.post(PATH, json={"prompt": "x", "seed": 90}), 504)


async def test_internal_error_is_500_without_details() -> None:
    app = create_app(GatewaySettings(redis_url=""))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret")

    async with serving(app) as client:
        with capture_logs() as logs:
            answer = await client.get("/broken")
        assert "secret" not in str(is_problem(answer, 500))
        assert any(line["event"] == "request failed" for line in logs)


async def test_requests_beyond_the_queue_get_429_with_retry_after(chain: Any) -> None:
    settings = GatewaySettings(user_address=chain.addresses["user"], max_in_flight=1, max_waiting=1)
    async with serving(create_app(settings)) as client:
        body = {"prompt": "a boat", "size": "64x64"}
        answers = await asyncio.gather(*(client.post(PATH, json=body) for _ in range(12)))
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(served) >= 2, "one at work, one in wait"
    assert refused
    for answer in refused:
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "waiting already" in answer.json()["detail"]


async def test_hanging_up_cancels_the_work(client: Client) -> None:
    asked = {"prompt": "a crowd", "n": 4, "size": "256x256"}
    with capture_logs() as logs:
        async with asyncio.timeout(20):
            for seed in itertools.count(600):  # a fast machine may answer one before it is hung up on
                task = asyncio.create_task(client.post(PATH, json=asked | {"seed": seed}))
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.sleep(0.1)
                if any(line.get("status") == "CANCELLED" for line in logs):
                    break


SMALL = {"images": 4, "steps": 4, "rank": 1, "tokens": 1}


async def follow(client: Client, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The job after each change, until its stream ends."""
    states = []
    async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        async for line in answer.aiter_lines():
            assert not line or line.startswith(("data: ", ":"))
            if line.startswith("data: "):
                states.append(json.loads(line.removeprefix("data: ")))
    return states


async def test_repeated_idempotency_key_returns_the_first_result(client: Client, empty: None) -> None:
    def headers(key: str) -> dict[str, str]:
        return {"Idempotency-Key": key}

    ask = {"prompt": "a red boat", "size": "64x64"}
    images = [
        (await client.post(PATH, json=ask, headers=headers(key))).json()["data"][0] for key in ("a", "a", "b")
    ]
    assert images[0]["b64_json"] == images[1]["b64_json"]
    assert images[0]["seed"] == images[1]["seed"] != images[2]["seed"]

    order = {"topic": "neon", **SMALL}
    jobs = [(await client.post("/v1/knowledge", json=order, headers=headers("a"))).json() for _ in range(2)]
    assert jobs[0] == jobs[1]
    await client.delete(f"/v1/jobs/{jobs[0]['id']}")
    again = (await client.post("/v1/knowledge", json=order, headers=headers("a"))).json()
    assert (again["id"], again["status"]) == (jobs[0]["id"], "cancelled")
    other = await client.post("/v1/knowledge", json=order | {"topic": "vaporwave"}, headers=headers("a"))
    assert "other parameters" in is_problem(other, 409)["detail"]
    new = (await client.post("/v1/knowledge", json=order, headers=headers("b"))).json()
    assert (new["id"] != jobs[0]["id"], new["status"]) == (True, "queued")
    await client.delete(f"/v1/jobs/{new['id']}")
    for bad in ("", "two words", "x" * 201):
        refused = await client.post(PATH, json=ask, headers=headers(bad))
        assert is_problem(refused, 422)["errors"][0]["field"] == "Idempotency-Key"


async def test_a_topic_from_start_to_end(client: Client, distiller: None) -> None:
    started = await client.post("/v1/knowledge", json={"topic": "vaporwave", **SMALL})
    assert started.status_code == 202, started.text
    job = started.json()
    assert started.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["topic"], job["status"], job["stage"], job["error"]) == ("vaporwave", "queued", None, None)

    states = await follow(client, job)
    last = states[-1]
    assert (last["status"], last["version"], last["error"]) == ("finished", 1, None), last
    assert [state["status"] for state in states][:-1] == sorted(
        (state["status"] for state in states[:-1]), key=["queued", "running"].index
    )
    assert all(a != b for a, b in itertools.pairwise(states))
    assert (await follow(client, job)) == [last]
    assert (await client.get(started.headers["location"])).json() == last
    assert (await client.get("/v1/jobs")).json()["data"][0] == last

    (manifest,) = (await client.get("/v1/knowledge")).json()["data"]
    topic = (await client.get("/v1/knowledge/vaporwave")).json()
    assert topic == manifest | {"versions": [1]}
    assert (manifest["topic"], manifest["version"], manifest["job"]) == ("vaporwave", 1, job["id"])
    assert manifest["triggers"] == ["vaporwave", "synthwave"]
    assert manifest["size_bytes"] > 0
    assert manifest["scores"]
    samples = await client.get("/v1/knowledge/vaporwave/samples")
    assert samples.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(samples.content)).size[0] > 0

    ask = {"prompt": "a boat, vaporwave style", "seed": 3, "size": "64x64", "link": {"snr_db": 30}}
    images = {
        str(knowledge): (await client.post(PATH, json=ask | {"knowledge": knowledge})).json()["data"][0]
        for knowledge in ("auto", "none", "vaporwave", ["vaporwave"])
    }
    use = [{name: manifest[name] for name in ("topic", "version", "content_hash")}]
    assert [images[name]["link_report"]["knowledge"] for name in images] == [use, [], use, use]
    assert images["auto"]["b64_json"] == images["vaporwave"]["b64_json"] != images["none"]["b64_json"]
    unknown = await client.post(PATH, json=ask | {"knowledge": "cubism"})
    assert "there is vaporwave" in is_problem(unknown, 404)["detail"]

    assert (await client.delete("/v1/knowledge/vaporwave")).status_code == 204
    assert (await client.get("/v1/knowledge")).json() == {"data": [], "consistency": None}
    is_problem(await client.get("/v1/knowledge/vaporwave"), 404)
    is_problem(await client.get("/v1/knowledge/vaporwave/samples"), 404)
    is_problem(await client.delete("/v1/knowledge/vaporwave"), 404)
    assert is_problem(await client.delete(f"/v1/jobs/{job['id']}"), 409)["title"] == "Conflict"


async def test_previews_of_a_job_are_there_once_it_trains(client: Client, empty: None) -> None:
    job = (await client.post("/v1/knowledge", json={"topic": "thermal", **SMALL})).json()
    path = f"/v1/jobs/{job['id']}/preview"
    assert "has no preview images" in is_problem(await client.get(path), 404)["detail"]
    folder = JobFolders(CloudSettings().data_dir).work(job["id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREVIEW).write_bytes(b"a picture")
    answer = await client.get(path)
    assert (answer.content, answer.headers["content-type"]) == (b"a picture", "image/png")
    for name in ("unknown", "..", "%2e%2e"):
        is_problem(await client.get(f"/v1/jobs/{name}/preview"), 404)
    assert (await client.delete(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"


async def test_a_job_that_waits_may_be_cancelled_and_asked_for_again(client: Client, empty: None) -> None:
    job = (await client.post("/v1/knowledge", json={"topic": "neon", **SMALL})).json()
    again = await client.post("/v1/knowledge", json={"topic": "neon", **SMALL})
    assert job["id"] in is_problem(again, 409)["detail"]
    following = asyncio.create_task(follow(client, job))
    await asyncio.sleep(0.2)
    cancelled = await client.delete(f"/v1/jobs/{job['id']}")
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "cancelled"
    assert [state["status"] for state in await following] == ["queued", "cancelled"]
    is_problem(await client.delete(f"/v1/jobs/{job['id']}"), 409)
    assert (await client.post("/v1/knowledge", json={"topic": "neon", **SMALL})).status_code == 202


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ({}, "topic", "a string of 1 to 32 characters"),
        ({"topic": "Neon"}, "topic", "lower-case letters a to z, digits"),
        ({"topic": "auto"}, "topic", "not auto or none"),
        ({"topic": "x" * 33}, "topic", "a string of 1 to 32 characters"),
        ({"topic": "x", "prompts": "a boat"}, "prompts", "a list of at most 1000"),
        ({"topic": "x", "prompts": [3]}, "prompts.0", "a string of 1 to 1000 characters"),
        ({"topic": "x", "triggers": ["a"] * 101}, "triggers", "a list of at most 100"),
        ({"topic": "x", "triggers": ["a" * 101]}, "triggers.0", "a string of 1 to 100 characters"),
        ({"topic": "x", "rank": 0}, "rank", "an integer of at least 1 and at most"),
        ({"topic": "x", "steps": 1.5}, "steps", "an integer of at least 2 and at most"),
        ({"topic": "x", "epochs": 1}, "epochs", "topic, prompts, triggers"),
    ],
)
async def test_a_topic_that_is_not_allowed_is_explained(
    alone: Client, body: dict[str, Any], field: str, allowed: str
) -> None:
    (error,) = is_problem(await alone.post("/v1/knowledge", json=body), 422)["errors"]
    assert error["field"] == field
    assert allowed in error["allowed"]


async def test_a_topic_may_have_all_prompts_and_triggers_that_are_allowed(
    client: Client, empty: None
) -> None:
    texts = [
        f"{number:03} " + "\U00020000" * (limits.MAX_PROMPT_CHARS - 4) for number in range(limits.MAX_PROMPTS)
    ]
    chars = limits.MAX_TRIGGERS_CHARS // limits.MAX_TRIGGERS
    triggers = [text[:chars] for text in texts[: limits.MAX_TRIGGERS]]
    body = {"topic": "vast", "prompts": texts, "triggers": triggers, **SMALL}
    headers = {"Content-Type": "application/json"}
    content = json.dumps(body, indent=2)  # with two \\uXXXX for each character
    answer = await client.post("/v1/knowledge", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    assert (await client.delete(f"/v1/jobs/{answer.json()['id']}")).status_code == 200
    is_problem(await client.post("/v1/knowledge", content=content + " " * 10**6, headers=headers), 413)
    longer = {**body, "triggers": [text + "x" for text in triggers]}
    (error,) = is_problem(await client.post("/v1/knowledge", json=longer), 422)["errors"]
    assert error["field"] == "triggers"
    assert error["allowed"] == "at most 100 of 1 to 100 characters each, 2000 in all"


async def test_what_the_cloud_refuses_is_explained_too(client: Client, empty: None) -> None:
    answer = await client.post("/v1/knowledge", json={"topic": "castle", "prompts": ["one and the same"]})
    (error,) = is_problem(answer, 422)["errors"]
    assert error["field"] == "prompts"
    assert (
        "specify its prompts"
        in is_problem(await client.post("/v1/knowledge", json={"topic": "x"}), 404)["detail"]
    )
    for path in ("/v1/jobs/nobody", "/v1/jobs/nobody/events", "/v1/knowledge/nothing"):
        is_problem(await client.get(path), 404)
    is_problem(await client.get("/v1/knowledge/..%5Cx"), 422)
    is_problem(await client.delete("/v1/jobs/" + "x" * 65), 422)


async def test_without_a_cloud_there_is_no_knowledge(alone: Client) -> None:
    for path in (
        "/v1/knowledge",
        "/v1/knowledge/neon",
        "/v1/jobs",
        "/v1/jobs/x",
        "/v1/jobs/x/events",
        "/v1/demand",
    ):
        assert "cloud" in is_problem(await alone.get(path), 503)["detail"]


async def test_event_streams_outlast_the_deadline_and_end_with_the_gateway(
    chain: Any, redis_url: str, empty: None
) -> None:
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url=redis_url,
        deadline_s=0.5,
    )
    app = create_app(settings)
    async with serving(app) as client:
        job = (await client.post("/v1/knowledge", json={"topic": "thermal", **SMALL})).json()
        following = asyncio.create_task(follow(client, job))
        await asyncio.sleep(1)
        assert not following.done()
        app.state.stopping.set()
        async with asyncio.timeout(2):
            assert [state["status"] for state in await following] == ["queued"]


async def test_left_event_stream_does_not_delay_shutdown(client: Client, empty: None) -> None:
    job = (await client.post("/v1/knowledge", json={"topic": "rocket", **SMALL})).json()
    with capture_logs() as logs:
        async with client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            await anext(answer.aiter_lines())
        async with asyncio.timeout(5):
            while not any(line.get("method") == "/dekag.v1.Cloud/WatchJob" for line in logs):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_openapi_document_describes_events(alone: Client) -> None:
    paths = (await alone.get("/openapi.json")).json()["paths"]
    answers = paths["/v1/jobs/{name}/events"]["get"]["responses"]
    assert list(answers["200"]["content"]) == ["text/event-stream"]
    for path in ("/v1/jobs/{name}/events", "/v1/knowledge/{topic}/samples", "/v1/knowledge/{topic}"):
        content = paths[path]["get"]["responses"]["404"]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
