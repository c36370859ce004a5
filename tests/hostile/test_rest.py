"""The gateway, by its own OpenAPI document and against it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode

from services.gateway import app
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.hostile.budgets import examples
from tests.hostile.rest import Anything, Gateway, any_bytes, anything, image_bodies
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
KINDS = [
    (f"{method.upper()} {path}", mode)
    for path, methods in create_app(GatewaySettings(redis_url="")).openapi()["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    # what takes nothing cannot be given anything wrong
    if mode is GenerationMode.POSITIVE or operation.keys() & {"parameters", "requestBody"}
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(client: httpx2.AsyncClient) -> Gateway:
    return await asyncio.to_thread(Gateway, str(client.base_url).rstrip("/"))


@pytest.mark.parametrize(("name", "mode"), KINDS)
@examples(quick=5, thorough=200)
@given(data=st.data())
async def test_each_operation_is_as_the_document_says(
    gateway: Gateway, tally: Tally, name: str, mode: GenerationMode, data: st.DataObject
) -> None:
    case = data.draw(gateway.operations[name].strategy(mode))
    status = await asyncio.to_thread(gateway.send_case, case)
    tally.answered(f"rest {name}, {mode.value}", status)


@pytest.mark.parametrize(
    "asked",
    [
        {"partial_images": 2},
        {"delivery": "conventional"},
        {"n": 2, "response_format": "url", "details": True},
    ],
    ids=str,
)
async def test_streams_are_as_the_document_says(gateway: Gateway, asked: dict[str, Any]) -> None:
    # few of the cases above are drawn whole and streamed
    body = {"prompt": "a fox", "size": "64x64", "seed": 7, "stream": True} | asked
    case = gateway.operations["POST /v1/images/generations"].case(body)
    assert await asyncio.to_thread(gateway.send_case, case) == 200


async def test_a_stream_that_fails_is_as_the_document_says(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = app.call, []

    async def fail_the_second(method: Any, request: Any, peer: str, **options: Any) -> Any:
        seen.append(peer)
        if seen.count("user") > 1:
            raise app.UnavailableError("the user service cannot be reached")
        return await real(method, request, peer, **options)

    monkeypatch.setattr(app, "call", fail_the_second)
    body = {"prompt": "a fox", "size": "64x64", "stream": True, "n": 2}
    case = gateway.operations["POST /v1/images/generations"].case(body)
    assert await asyncio.to_thread(gateway.send_case, case) == 200
    assert seen.count("user") == 2


@examples(quick=30, thorough=1000)
@given(asked=anything())
async def test_any_request_is_answered(gateway: Gateway, tally: Tally, asked: Anything) -> None:
    tally.answered("rest, any request", await asyncio.to_thread(gateway.send, asked))


@examples(quick=30, thorough=400)
@given(body=image_bodies())
async def test_any_picture_is_drawn_or_refused(gateway: Gateway, tally: Tally, body: bytes) -> None:
    asked = Anything("POST", "/v1/images/generations", {"Content-Type": "application/json"}, body)
    tally.answered(
        "rest POST /v1/images/generations, any values", await asyncio.to_thread(gateway.send, asked)
    )


@examples(quick=20, thorough=300)
@given(data=any_bytes())
async def test_any_bytes_are_answered_or_the_connection_closed(
    gateway: Gateway, tally: Tally, data: bytes
) -> None:
    tally.answered("rest, any bytes", await asyncio.to_thread(gateway.send_bytes, data))


@pytest.mark.parametrize("length", [b"\xb2", b"-1", b"1e3", b"0x10", b"99999999999999999999"])
async def test_a_length_that_is_no_number_is_refused(gateway: Gateway, length: bytes) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n"
    assert await asyncio.to_thread(gateway.send_bytes, head) in (0, 400, 413)


@pytest.mark.parametrize("wanted", ["x", "lines=1-2", "bytes=", "bytes=5-2", "bytes=9999999-", "bytes=0-9"])
@pytest.mark.parametrize("path", ["/", "/web/style.css", "/docs-assets/swagger-ui.css"])
async def test_files_come_whole_whatever_range_is_asked_for(
    client: httpx2.AsyncClient, path: str, wanted: str
) -> None:
    answer = await client.get(path, headers={"Range": wanted})
    assert answer.status_code == 200
    assert answer.content == (await client.get(path)).content
    assert answer.headers["accept-ranges"] == "none"
