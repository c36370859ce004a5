"""What HTTP clients of all kinds send: methods, paths, queries, encodings of bodies, nulls."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from dekag.api import schemas
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.services.answers import PATH, is_problem

pytestmark = pytest.mark.asyncio(loop_scope="session")
Client = httpx2.AsyncClient
SMALL = {"prompt": "a red boat", "seed": 5, "size": "64x64"}
JSON = {"Content-Type": "application/json"}


def optional(model: type[Any]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not field.is_required()]


async def ask(client: Client, body: Any, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(PATH, content=content, headers={**JSON, **headers})


async def test_null_is_as_good_as_left_out_for_every_optional_field(client: Client) -> None:
    plain = (await ask(client, SMALL)).json()["data"][0]
    nulls = dict.fromkeys(optional(schemas.ImagesRequest)) | SMALL
    link = dict.fromkeys(optional(schemas.LinkRequest))
    for body in (nulls, {**nulls, "link": link}):
        answer = await ask(client, body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"][0]["b64_json"] == plain["b64_json"]
    asked = schemas.KnowledgeRequest.model_validate(
        {"topic": "neon"} | dict.fromkeys(optional(schemas.KnowledgeRequest))
    )
    assert asked == schemas.KnowledgeRequest(topic="neon")


@pytest.mark.parametrize("model", [schemas.ImagesRequest, schemas.LinkRequest, schemas.KnowledgeRequest])
async def test_the_document_says_where_null_may_be(model: type[Any]) -> None:
    schema = model.model_json_schema()
    for name in optional(model):
        assert {"type": "null"} in schema["properties"][name]["anyOf"], name
    for name in schema.get("required", []):
        assert "null" not in json.dumps(schema["properties"][name])


async def test_null_is_refused_for_prompt_and_topic(alone: Client) -> None:
    assert is_problem(await ask(alone, {"prompt": None}), 422)["errors"][0]["field"] == "prompt"
    answer = await alone.post("/v1/knowledge", json={"topic": None})
    assert is_problem(answer, 422)["errors"][0]["field"] == "topic"
    assert is_problem(await ask(alone, {**SMALL, "unknown": None}), 422)["errors"][0]["field"] == "unknown"


async def test_the_size_may_be_left_to_the_gateway(client: Client) -> None:
    auto = (await ask(client, {"prompt": "a cat", "seed": 1, "size": "auto"})).json()["data"][0]
    plain = (await ask(client, {"prompt": "a cat", "seed": 1})).json()["data"][0]
    assert auto["b64_json"] == plain["b64_json"]
    assert "auto" in is_problem(await ask(client, {"prompt": "a cat", "size": "AUTO"}), 422)["detail"]


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/openapi.json", "/docs", "/web/style.css", "/v1/traffic", "/v1/knowledge",
     "/v1/demand", "/v1/jobs", "/v1/reports/none", "/v1/jobs/none", "/v1/jobs/none/events", "/nothing"],
)  # fmt: skip
async def test_head_returns_the_headers_of_get(client: Client, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    varying = {"x-request-id", "date", "content-length"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in got.headers.items() if k not in varying
    }
    assert (await client.get("/healthz")).status_code == 200  # the connection goes on


async def test_head_of_an_event_stream_ends(client: Client, empty: None) -> None:
    small = {"topic": "queued-for-head", "prompts": ["a {red|blue|green} {cat|dog|fox|owl}"], "images": 4}
    job = (await client.post("/v1/knowledge", json=small)).json()
    head = await client.head(f"/v1/jobs/{job['id']}/events", timeout=10)
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    await client.delete(f"/v1/jobs/{job['id']}")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", PATH, "POST, OPTIONS"),
        ("HEAD", PATH, "POST, OPTIONS"),
        ("DELETE", "/v1/knowledge", "GET, HEAD, POST, OPTIONS"),
        ("PATCH", "/v1/knowledge/neon", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("POST", "/v1/jobs/x", "GET, HEAD, DELETE, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("TRACE", "/", "GET, HEAD, OPTIONS"),
        ("POST", "/web/style.css", "GET, HEAD, OPTIONS"),
        ("PROPFIND", "/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
async def test_wrong_method_gets_405_with_the_allowed_ones(
    alone: Client, method: str, path: str, allow: str
) -> None:
    answer = await alone.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        is_problem(answer, 405)
    options = await alone.options(path)
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", allow)
    assert "access-control-allow-origin" not in options.headers


async def test_options_of_an_unknown_path_is_404(alone: Client) -> None:
    is_problem(await alone.options("/v1/nothing"), 404)


async def test_trailing_slash_makes_no_difference(client: Client) -> None:
    answer = await client.post(f"{PATH}/", json=SMALL)
    assert answer.status_code == 200, answer.text
    for path in ("/v1/knowledge/", "/v1/traffic/", "/healthz/", "/docs/"):
        assert (await client.get(path)).status_code == 200, path
    for path in ("/v1/nothing/", "/web/", "/v1//knowledge", "/v1/knowledge//"):
        is_problem(await client.get(path), 404)


@pytest.mark.parametrize("query", ["size=64x64", "seed=1&seed=2", "=", "%00=%ff", "a" * 300])
@pytest.mark.parametrize("path", ["/v1/knowledge", "/v1/jobs/x", "/v1/reports/x", "/v1/traffic"])
async def test_unexpected_query_is_refused_by_name(alone: Client, path: str, query: str) -> None:
    answer = await alone.get(f"{path}?{query}")
    (wrong,) = is_problem(answer, 422)["errors"][:1]
    assert wrong["field"].startswith("query.")
    assert "no query parameters" in wrong["detail"]


async def test_empty_query_and_queries_of_probes_are_ignored(alone: Client) -> None:
    for path in ("/v1/traffic?", "/v1/traffic?&", "/healthz?x=1", "/?utm=1"):
        assert (await alone.get(path)).status_code == 200, path


def deflated(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


async def test_compressed_bodies_are_read(client: Client) -> None:
    body = json.dumps(SMALL).encode()
    plain = (await ask(client, body)).json()["data"][0]["b64_json"]
    for coding, sent in {
        "gzip": gzip.compress(body),
        "X-GZIP": gzip.compress(body[:9]) + gzip.compress(body[9:]),
        "deflate": deflated(body, 15),
        "Deflate": deflated(body, -15),
        "identity": body,
        "identity, gzip": gzip.compress(body),
        "": body,
    }.items():
        answer = await ask(client, sent, **{"Content-Encoding": coding})
        assert answer.status_code == 200, (coding, answer.text)
        assert answer.json()["data"][0]["b64_json"] == plain


BOMB = gzip.compress(b" " * 50_000_000)


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", BOMB, 413),
        ("deflate", deflated(b" " * 10_000_000, 15), 413),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("gzip", gzip.compress(b"{}") + b"rest", 400),
        ("gzip", gzip.compress(b"") * 17, 400),
        ("gzip", b"{}", 400),
        ("deflate", b"\x78\x9c\xff", 400),
        ("br", b"\x0b\x02\x80{}\n\x03", 415),
        ("zstd", b"(\xb5/\xfd", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415),
        ("x" * 500, b"{}", 415),
    ],
)
async def test_unsupported_or_broken_compression_is_refused(
    alone: Client, coding: str, body: bytes, status: int
) -> None:
    answer = await ask(alone, body, **{"Content-Encoding": coding})
    problem = is_problem(answer, status)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        assert "gzip or deflate" in problem["detail"]


async def test_json_needs_no_content_type(client: Client, gateway_url: str) -> None:
    body = json.dumps(SMALL).encode()
    async with Client(base_url=gateway_url, trust_env=False, timeout=60) as bare:
        for headers in ({}, {"Content-Type": ""}, {"Content-Type": "application/vnd.dekag+json"}):
            answer = await bare.post(PATH, content=body, headers=headers)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_cross_origin_request_needs_a_content_type(alone: Client, headers: dict[str, str]) -> None:
    problem = is_problem(await alone.post(PATH, content=b'{"prompt": "a boat"}', headers=headers), 415)
    assert "Content-Type application/json" in problem["detail"]


@pytest.mark.parametrize(
    "said",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json",
     "text/json", "application/json; charset=latin-1", "application/json; charset=UTF-16",
     "application/json; charset=klingon", 'application/json; charset="iso-8859-1"'],
)  # fmt: skip
async def test_another_type_or_charset_is_refused_with_the_right_one(alone: Client, said: str) -> None:
    problem = is_problem(await ask(alone, SMALL, **{"Content-Type": said}), 415)
    assert "application/json" in problem["detail"] or "UTF-8" in problem["detail"]


@pytest.mark.parametrize("said", ["application/json; charset=UTF-8", 'application/JSON;charset="utf-8"'])
async def test_charset_utf_8_is_accepted(client: Client, said: str) -> None:
    answer = await ask(client, b"\xef\xbb\xbf" + json.dumps(SMALL).encode(), **{"Content-Type": said})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b'{"prompt": "caf\xe9"}', b"\xff\xfe\xff", b"\xc3("])
async def test_invalid_utf_8_is_refused_with_its_position(alone: Client, body: bytes) -> None:
    assert "UTF-8; byte 0x" in is_problem(await ask(alone, body), 400)["detail"]


async def test_concurrent_uploads_beyond_the_limit_are_refused() -> None:
    settings = GatewaySettings(user_address="127.0.0.1:1", cloud_address="127.0.0.1:1", redis_url="")
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"files"'
        await release.wait()
        yield b": {}}"

    async with serving(create_app(settings)) as client:
        uploads = [client.put("/v1/transmission", content=slow(), headers=JSON) for _ in range(2)]
        held = [asyncio.ensure_future(upload) for upload in uploads]
        answer = await client.put("/v1/knowledge/neon", json={"files": {}})
        while answer.status_code != 429:  # until both are being received
            await asyncio.sleep(0.02)
            answer = await client.put("/v1/knowledge/neon", json={"files": {}})
        assert "2 uploads" in is_problem(answer, 429)["detail"]
        release.set()
        assert {(await each).status_code for each in held} == {422}
        assert (await client.put("/v1/knowledge/neon", json={"files": {}})).status_code == 422
