"""The OpenAI Images interface as its official clients, LiteLLM and a chat interface use it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import pytest_asyncio
from PIL import Image

from dekag.api import image_file
from services.gateway.api_keys import new_key
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.services.answers import PATH, is_problem, pixels

pytestmark = pytest.mark.asyncio(loop_scope="session")

Client = httpx2.AsyncClient
SMALL = {"prompt": "a fox at the clients", "size": "64x64"}
JAVASCRIPT = Path(__file__).parents[2] / "javascript"


def sdk_of(client: Client, key: str = "unused") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{client.base_url}/v1/", api_key=key, max_retries=0)


@pytest.fixture
def run_javascript() -> Callable[..., Any]:
    """Runs calls of the official JavaScript client; returns what it made of each."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    if not (JAVASCRIPT / "node_modules" / "openai").is_dir():
        pytest.skip("the JavaScript client is not installed: make test-clients")

    async def run(client: Client, calls: list[Any], key: str = "unused") -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            node, "images.mjs", f"{client.base_url}/v1", key, json.dumps(calls),
            cwd=JAVASCRIPT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        return [json.loads(line) for line in out.splitlines()]

    return run


async def test_the_python_client_reads_the_whole_answer(client: Client) -> None:
    async with sdk_of(client) as sdk:
        answer = await sdk.images.generate(
            **SMALL, n=2, quality="high", background="opaque", moderation="low", style=None, user=None,
            output_format="webp", output_compression=40, extra_body={"seed": 5, "steps": 1},
        )  # fmt: skip
    assert (answer.size, answer.background, answer.output_format) == ("64x64", "opaque", "webp")
    assert answer.usage is not None
    spent = sum(image.link_report["channel_uses"] for image in answer.data)
    assert answer.usage.output_tokens == spent > 0
    assert answer.usage.input_tokens == answer.usage.input_tokens_details.text_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + spent
    assert [image.seed for image in answer.data] == [5, 6]
    assert [image.url for image in answer.data] == [None, None]
    for image in answer.data:
        assert Image.open(io.BytesIO(base64.b64decode(image.b64_json))).format == "WEBP"


async def test_the_python_client_streams_previews_of_the_denoiser(client: Client) -> None:
    body: dict[str, Any] = SMALL | {"prompt": "a streamed fox", "partial_images": 3, "stream": True}
    async with sdk_of(client) as sdk:
        stream = await sdk.images.generate(**body, extra_body={"seed": 9, "steps": 4})
        events = [event async for event in stream]
        again = await sdk.images.generate(**body, extra_body={"seed": 9, "steps": 4})
        cached = [event async for event in again]
    assert [event.type for event in events] == [*3 * ["image_generation.partial_image"], events[-1].type]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]
    assert [(event.step, event.steps) for event in events[:-1]] == [(1, 4), (2, 4), (3, 4)]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert (last.size, last.output_format, last.background, last.quality) == (
        "64x64",
        "png",
        "opaque",
        "auto",
    )
    assert last.usage.output_tokens == last.link_report["channel_uses"]
    shown = [pixels({"b64_json": event.b64_json}).astype(float) for event in events]
    assert {each.shape for each in shown} == {(64, 64, 3)}
    assert all(not np.array_equal(shown[i], shown[i + 1]) for i in range(3))
    # a latent from the cache has no steps to show; the image is the same, and the same as without a stream
    assert [event.type for event in cached] == ["image_generation.completed"]
    assert cached[0].b64_json == last.b64_json
    plain = await client.post(PATH, json=SMALL | {"prompt": "a streamed fox", "seed": 9, "steps": 4})
    assert plain.json()["data"][0]["b64_json"] == last.b64_json
    assert (await client.get(f"/v1/reports/{last.link_report['request_id']}")).status_code == 200


async def test_previews_come_near_the_image_over_a_good_link(client: Client) -> None:
    """The last preview is a prediction of the final latent, and not the noisy latent of its step."""
    body = SMALL | {"prompt": "a near fox", "seed": 3, "steps": 8, "stream": True, "partial_images": 3}
    body |= {"details": True}
    async with sdk_of(client) as sdk:
        stream = await sdk.images.generate(prompt=body.pop("prompt"), stream=True, extra_body=body)
        *previews, last = [event async for event in stream]
    sent = pixels({"b64_json": last.details["reference_b64_json"]}).astype(float)
    errors = [np.abs(pixels({"b64_json": each.b64_json}) - sent).mean() for each in previews]
    assert len(errors) == 3
    assert errors[-1] < errors[0]


async def test_a_stream_of_several_images_and_of_a_conventional_delivery(client: Client) -> None:
    body = SMALL | {"prompt": "several foxes", "n": 2, "seed": 1, "stream": True, "partial_images": 1}
    async with client.stream("POST", PATH, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join([part async for part in answer.aiter_text()])
    lines = text.splitlines()
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == 2 * ["image_generation.partial_image", "image_generation.completed"]
    data = [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")
    ]
    assert [(each["type"], each["seed"]) for each in data] == list(zip(names, (1, 1, 2, 2), strict=True))
    body |= {"delivery": "conventional", "n": 1, "link": {"snr_db": -20, "fading": "awgn"}}
    answer = await client.post(PATH, json=body)
    (line,) = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    event = json.loads(line.removeprefix("data: "))
    assert (event["type"], event["b64_json"]) == ("image_generation.completed", None)
    assert event["link_report"]["decoded"] is False


async def test_an_error_before_and_during_a_stream(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    body = SMALL | {"stream": True, "seed": 4, "n": 2}
    is_problem(await client.post(PATH, json=body | {"knowledge": "unheard-of"}), 404)
    from services.gateway import app as gateway

    real, calls = gateway.call, []

    async def failing(method: Any, request: Any, peer: str, **options: Any) -> Any:
        calls.append(peer)
        if calls.count("user") > 1:
            raise gateway.UnavailableError("the user service cannot be reached")
        return await real(method, request, peer, **options)

    monkeypatch.setattr(gateway, "call", failing)
    async with sdk_of(client) as sdk:
        stream = await sdk.images.generate(prompt="a fox", stream=True, extra_body=body)
        events = aiter(stream)
        first = await anext(events)
        assert first.type == "image_generation.completed"
        with pytest.raises(openai.APIError, match="the user service cannot be reached") as raised:
            await anext(events)
    assert (raised.value.code, raised.value.type) == ("service_unavailable", "server_error")
    kept = await client.get(f"/v1/reports/{first.link_report['request_id']}")
    assert kept.json()["link_reports"] == [first.link_report], "of the image that was delivered"


async def test_the_report_of_an_image_is_kept_before_a_client_sees_it(client: Client) -> None:
    body = SMALL | {"stream": True, "seed": 5, "n": 2}
    async with client.stream("POST", PATH, json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                report = json.loads(line.removeprefix("data: "))["link_report"]
                kept = (await client.get(f"/v1/reports/{report['request_id']}")).json()["link_reports"]
                assert report in kept


async def test_a_client_that_leaves_a_stream_frees_its_slot(client: Client, chain: Any) -> None:
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url="",
        max_in_flight=1,
    )
    async with serving(create_app(settings)) as single:
        body = SMALL | {"n": 10, "seed": 50, "stream": True}
        async with single.stream("POST", PATH, json=body) as answer:
            async for _ in answer.aiter_text():
                break
        assert (await single.post(PATH, json=SMALL | {"seed": 1})).status_code == 200


async def test_models_are_the_profile_and_its_topics(client: Client, chain: Any) -> None:
    async with sdk_of(client) as sdk:
        models = [model async for model in sdk.models.list()]
        assert [(models[0].id, models[0].object, models[0].owned_by)] == [("stickers", "model", "dekag")]
        assert models[0].created > 1_700_000_000
        assert (await sdk.models.retrieve("stickers")).id == "stickers"
        with pytest.raises(openai.NotFoundError, match="there is no model stickers/none-such"):
            await sdk.models.retrieve("stickers/none-such")
        answer = await sdk.images.generate(**SMALL, model="gpt-image-1")
        assert answer.model == "stickers"
        with pytest.raises(openai.NotFoundError) as refused:
            await sdk.images.generate(**SMALL, model="stickers/none-such")
    assert "none-such" in refused.value.message
    assert refused.value.code == "not_found"


async def test_a_folder_is_the_name_of_its_models(chain: Any, dummy_profile: Path) -> None:
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url="",
        profile=str(dummy_profile),
    )
    async with serving(create_app(settings)) as gateway, sdk_of(gateway) as sdk:
        (first, *_) = [model async for model in sdk.models.list()]
        assert first.id == str(dummy_profile)
        assert (await sdk.models.retrieve(first.id)).id == first.id
        assert (await sdk.images.generate(**SMALL, model=first.id)).model == first.id
        with pytest.raises(openai.NotFoundError, match="none-such"):
            await sdk.images.generate(**SMALL, model=f"{first.id}/none-such")


@pytest.mark.parametrize("delivery", ["conventional", "semantic-unaligned"])
async def test_deliveries_without_knowledge_take_no_topics(client: Client, delivery: str) -> None:
    body = SMALL | {"seed": 1, "delivery": delivery}
    for field, value in (("model", "stickers/neon"), ("knowledge", "neon"), ("knowledge", ["neon", "snail"])):
        (error,) = is_problem(await client.post(PATH, json=body | {field: value}), 422)["errors"]
        assert error["field"] == field
        assert "unless delivery is semantic" in error["allowed"]
    for allowed in (
        {"knowledge": "auto"},
        {"knowledge": "none"},
        {"model": "stickers"},
        {"model": "dall-e-3"},
    ):
        answer = await client.post(PATH, json=body | allowed)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["link_report"]["knowledge"] == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models/stickers", "/v1/models/stickers/"])
async def test_models_with_a_slash_and_by_head(client: Client, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")


async def test_null_is_absent_and_size_may_be_auto(client: Client) -> None:
    fields = (await client.get("/openapi.json")).json()["components"]["schemas"]["ImagesRequest"][
        "properties"
    ]
    nulls = dict.fromkeys(set(fields) - {"prompt"})
    answer = await client.post(PATH, json=nulls | {"prompt": "a fox", "size": "auto", "seed": 2})
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == "128x128"


async def test_ten_images_at_once(client: Client) -> None:
    answer = await client.post(PATH, json=SMALL | {"n": 10, "seed": 7})
    assert [image["seed"] for image in answer.json()["data"]] == list(range(7, 17))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
async def test_formats_and_compression(client: Client, name: str) -> None:
    body = SMALL | {"seed": 1, "output_format": name, "size": "128x128", "metadata": False}
    sizes = []
    for compression in (100, 10):
        answer = (await client.post(PATH, json=body | {"output_compression": compression})).json()
        file = base64.b64decode(answer["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(file)).format == name.upper()
        sizes.append(len(file))
    assert answer["output_format"] == name
    assert (sizes[0] > sizes[1]) == (name != "png")


async def test_an_image_as_a_data_url(client: Client) -> None:
    body = SMALL | {"seed": 1, "output_format": "jpeg"}
    (by_url,) = (await client.post(PATH, json=body | {"response_format": "url"})).json()["data"]
    (plain,) = (await client.post(PATH, json=body)).json()["data"]
    assert by_url["b64_json"] is None
    assert by_url["url"] == f"data:image/jpeg;base64,{plain['b64_json']}"
    assert "url" not in plain  # clients take its presence for an address to fetch


async def test_sampling_changes_the_image_and_needs_guidance_for_a_negative_prompt(client: Client) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"steps": 5},
        {"guidance_scale": 3.5},
        {"negative_prompt": "a dog"},
        {"delivery": "conventional"},
        {"delivery": "conventional", "steps": 5},
        {"delivery": "conventional", "guidance_scale": 3.5},
        {"delivery": "conventional", "negative_prompt": "a dog"},
    ]
    body = SMALL | {"seed": 1, "metadata": False, "link": {"snr_db": 40, "fading": "awgn"}}
    made = [(await client.post(PATH, json=body | change)).json()["data"][0] for change in changes]
    assert len({image["b64_json"] for image in made}) == len(changes)
    for delivery in ("semantic", "conventional"):
        useless = {"negative_prompt": "a dog", "guidance_scale": 1, "delivery": delivery}
        (error,) = is_problem(await client.post(PATH, json=body | useless), 422)["errors"]
        assert (error["field"], error["allowed"]) == (
            "negative_prompt",
            "left out unless guidance_scale is above 1; it is 1",
        )
    (error,) = is_problem(
        await client.post(PATH, json=body | {"delivery": "conventional", "adapter_scale": 0.5}), 422
    )["errors"]
    assert error["field"] == "adapter_scale"
    (error,) = is_problem(await client.post(PATH, json=body | {"negative_prompt": "dog " * 200}), 422)[
        "errors"
    ]
    assert error["field"] == "negative_prompt"
    assert "tokens" in error["allowed"]


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
async def test_edits_and_variations_say_what_to_do_instead(client: Client, path: str) -> None:
    answer = await client.post(path, files={"image": ("a.png", b"x" * 200_000)}, data={"prompt": "a fox"})
    problem = is_problem(answer, 404)
    assert "POST /v1/images/generations" in problem["detail"]
    async with sdk_of(client) as sdk:
        more = {"prompt": "a fox"} if path.endswith("edits") else {}
        ask = sdk.images.edit if more else sdk.images.create_variation
        with pytest.raises(openai.NotFoundError, match="/v1/images/generations"):
            await ask(image=("a.png", b"x"), **more)


@pytest_asyncio.fixture(loop_scope="session")
async def limited(tmp_path: Path) -> AsyncIterator[tuple[Client, str]]:
    """A gateway that allows one request a minute, and its key."""
    key, line = new_key("limited", requests_per_minute=1)
    (tmp_path / "api-keys").write_text(line + "\n")
    settings = GatewaySettings(redis_url="", api_keys_file=tmp_path / "api-keys", user_address="127.0.0.1:1")
    async with serving(create_app(settings)) as gateway:
        yield gateway, key


ERRORS = [  # what the clients show: class, status, code, type, param, and a part of the message
    ("NotFoundError", 404, "not_found", "invalid_request_error", None, "none-such"),
    ("UnprocessableEntityError", 422, "invalid_value", "invalid_request_error", "link.snr_db", "at most 40"),
    ("RateLimitError", 429, "rate_limit_exceeded", "rate_limit_error", None, "1 times a minute"),
    ("InternalServerError", 503, "service_unavailable", "server_error", None, "the user service"),
    ("AuthenticationError", 401, "invalid_api_key", "authentication_error", None, "API key"),
]


async def test_the_python_client_shows_message_code_and_param(
    client: Client, alone: Client, limited: tuple[Client, str]
) -> None:
    gateway, key = limited
    found = []
    for asked, own_key, more in (
        (client, "unused", {"knowledge": "none-such"}),
        (client, "unused", {"link": {"snr_db": 99}}),
        (gateway, key, {}),  # the one that is allowed
        (gateway, key, {}),
        (alone, "unused", {}),
        (gateway, "wrong", {}),
    ):
        async with sdk_of(asked, own_key) as sdk:
            with pytest.raises(openai.APIStatusError) as raised:
                await sdk.images.generate(**SMALL, extra_body=more)
            found.append(raised.value)
    del found[2]
    for error, (*expected, words) in zip(found, ERRORS, strict=True):
        kind = type(error).__name__
        assert [kind, error.status_code, error.code, error.type, error.param] == expected
        assert words in error.message


async def test_the_javascript_client(client: Client, run_javascript: Any) -> None:
    listed, image, streamed = await run_javascript(
        client,
        [
            "models",
            SMALL | {"seed": 3, "output_format": "jpeg", "n": 1},
            SMALL | {"prompt": "a js fox", "seed": 3, "steps": 4, "stream": True, "partial_images": 2},
        ],
    )
    assert listed["ids"][0] == "stickers"
    assert (image["size"], image["output_format"], image["data"][0]["seed"]) == ("64x64", "jpeg", 3)
    assert [event["type"] for event in streamed["events"]] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]


async def test_the_javascript_client_shows_message_code_and_param(
    client: Client, alone: Client, run_javascript: Any, limited: tuple[Client, str]
) -> None:
    gateway, key = limited
    missing, invalid = await run_javascript(
        client, [SMALL | {"knowledge": "none-such"}, SMALL | {"link": {"snr_db": 99}}]
    )
    (unavailable,) = await run_javascript(alone, [SMALL])
    _, exhausted = await run_javascript(gateway, [SMALL, SMALL], key)
    (stranger,) = await run_javascript(gateway, [SMALL], "wrong")
    errors = [each["error"] for each in (missing, invalid, exhausted, unavailable, stranger)]
    for error, (*expected, words) in zip(errors, ERRORS, strict=True):
        assert [error[name] for name in ("kind", "status", "code", "type", "param")] == expected
        assert words in error["message"]


async def test_litellm(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask another host for prices
    litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed: make test-clients")
    options = {"api_base": f"{client.base_url}/v1", "api_key": "unused", "max_retries": 0}
    answer = await litellm.aimage_generation(
        prompt="a fox", model="openai/stickers", n=2, size="64x64", **options
    )
    assert len(answer.data) == 2
    assert pixels({"b64_json": answer.data[0].b64_json}).shape == (64, 64, 3)
    with pytest.raises(litellm.exceptions.BadRequestError, match="size must be WIDTHxHEIGHT"):
        await litellm.aimage_generation(prompt="a fox", model="openai/stickers", size="63x64", **options)


async def test_a_chat_interface_lists_models_and_asks_as_open_webui_does(client: Client) -> None:
    headers = {
        "Authorization": "Bearer unused",
        "Content-Type": "application/json",
        "X-OpenWebUI-User-Id": "1",
    }
    models = (await client.get("/v1/models", headers=headers)).json()
    assert all(model["object"] == "model" for model in models["data"])
    body = {"model": models["data"][0]["id"], "prompt": "a fox", "n": 1, "size": "64x64"}
    answer = await client.post(PATH, json=body | {"response_format": "b64_json"}, headers=headers)
    for image in answer.json()["data"]:
        assert not image.get("url")
        assert base64.b64decode(image["b64_json"]).startswith(b"\x89PNG")


async def test_pages_of_listed_origins_may_ask(chain: Any, tmp_path: Path) -> None:
    key, line = new_key("page")
    (tmp_path / "api-keys").write_text(line + "\n")
    settings = GatewaySettings(
        user_address=chain.addresses["user"],
        cloud_address=chain.addresses["cloud"],
        redis_url="",
        api_keys_file=tmp_path / "api-keys",
        allowed_origins="https://app.example.org, http://localhost:3000",
    )
    mine, other = "http://localhost:3000", "https://example.com"
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-a",
    }
    async with serving(create_app(settings)) as client:
        allowed = await client.options(PATH, headers={"Origin": mine, **preflight})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == mine
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        refused = await client.options(PATH, headers={"Origin": other, **preflight})
        assert "access-control-allow-origin" not in refused.headers
        for origin, shown in ((mine, mine), (other, None)):
            answer = await client.post(PATH, json=SMALL, headers={"Origin": origin})
            is_problem(answer, 401)
            assert answer.headers.get("access-control-allow-origin") == shown
        headers = {"Origin": mine, "Authorization": f"Bearer {key}"}
        answer = await client.post(PATH, json=SMALL, headers=headers)
        assert answer.status_code == 200
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize(
    "origins",
    ["example.org", "ftp://example.org", "https://example.org/", "https://*.org", "*, https://a.org"],
)
async def test_a_malformed_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValueError, match=r"each entry must be an origin such as https://example\.org"):
        GatewaySettings(allowed_origins=origins)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
async def test_a_file_says_how_it_was_made(client: Client, tmp_path: Path, name: str) -> None:
    body = {
        "prompt": "a füchsin, 狐", "size": "64x64", "seed": 2**60, "output_format": name, "steps": 3,
        "user": "somebody", "link": {"snr_db": 7, "fading": "rician", "rician_k_db": 3},
    }  # fmt: skip
    headers = {"Authorization": "Bearer a-secret-key", "X-Request-ID": "a-request"}
    (image,) = (await client.post(PATH, json=body, headers=headers)).json()["data"]
    file = base64.b64decode(image["b64_json"])
    (tmp_path / "image").write_bytes(file)
    origin = image_file.read_provenance(tmp_path / "image")
    kept = origin.request
    assert {key: kept[key] for key in ("prompt", "seed", "size", "steps", "output_format")} == {
        key: body[key] for key in ("prompt", "seed", "size", "steps", "output_format")
    }
    assert (kept["link"]["snr_db"], kept["link"]["rician_k_db"]) == (7, 3)
    assert kept["knowledge"] == ["none"]
    assert origin.model_hashes == image["link_report"]["model_hashes"]
    assert not any(secret in file for secret in (b"a-secret-key", b"somebody", b"a-request"))
    again = (await client.post(PATH, json=kept)).json()["data"][0]
    assert again["b64_json"] == image["b64_json"]
    (plain,) = (await client.post(PATH, json=body | {"metadata": False})).json()["data"]
    bare = base64.b64decode(plain["b64_json"])
    assert len(bare) < len(file)
    np.testing.assert_array_equal(image_file.pixels(bare, "bare"), image_file.pixels(file, "file"))
