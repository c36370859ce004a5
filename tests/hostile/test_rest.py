"""The gateway, by its own OpenAPI document and against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.hostile.budgets import FUZZ
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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(gateway_url: str) -> AsyncIterator[Gateway]:
    yield await asyncio.to_thread(Gateway, gateway_url)


@pytest.mark.parametrize(("name", "mode"), KINDS)
@settings(FUZZ, max_examples=200)
@given(data=st.data())
async def test_each_operation_is_as_the_document_says(
    gateway: Gateway, tally: Tally, name: str, mode: GenerationMode, data: st.DataObject
) -> None:
    (operation,) = (each for each in gateway.operations() if each.name == name)
    case = data.draw(operation.strategy(mode))
    status = await asyncio.to_thread(gateway.send_case, case)
    tally.answered(f"rest {name}, {mode.value}", status)


@settings(FUZZ, max_examples=1000)
@given(asked=anything())
async def test_any_request_is_answered(gateway: Gateway, tally: Tally, asked: Anything) -> None:
    tally.answered("rest, any request", await asyncio.to_thread(gateway.send, asked))


@settings(FUZZ, max_examples=400)
@given(body=image_bodies())
async def test_any_picture_is_drawn_or_refused(gateway: Gateway, tally: Tally, body: bytes) -> None:
    asked = Anything("POST", "/v1/images/generations", {"Content-Type": "application/json"}, body)
    tally.answered(
        "rest POST /v1/images/generations, any values", await asyncio.to_thread(gateway.send, asked)
    )


@settings(FUZZ, max_examples=300)
@given(data=any_bytes())
async def test_any_bytes_are_answered_or_cut_off(gateway: Gateway, tally: Tally, data: bytes) -> None:
    tally.answered("rest, any bytes", await asyncio.to_thread(gateway.send_bytes, data))
