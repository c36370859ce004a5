"""A service that is away is a fault of the system, a system that is full is none; needs no running system."""

from __future__ import annotations

import asyncio
import re

import pytest

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from tests.chain import serving
from tests.trust.refusals import is_broken
from tests.trust.system import PROXY

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_service_that_is_away_is_a_fault(closed_port: int) -> None:
    away = f"127.0.0.1:{closed_port}"
    settings = GatewaySettings(redis_url="", user_address=away, cloud_address=away)
    async with serving(create_app(settings)) as client:
        for answer in (
            await client.get("/v1/knowledge"),
            await client.post("/v1/images/generations", json={"prompt": "a dog"}),
        ):
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert is_broken(answer.status_code, answer.text)


async def test_a_gateway_that_is_full_is_none() -> None:
    async with serving(create_app(GatewaySettings(redis_url="", max_connections=1))) as client:
        port = client.base_url.port
        assert port is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        refusing, _ = await asyncio.open_connection("127.0.0.1", port)
        text = (await refusing.read()).decode()
        assert text.startswith("HTTP/1.1 503 ")
        assert not is_broken(503, text)
        writer.close()


async def test_of_the_proxy_only_a_full_gateway_is_none() -> None:
    said = dict(re.findall(r"http-error status (\d+) .*? string '(.*?)'", PROXY.read_text()))
    broken = {int(status): is_broken(int(status), text) for status, text in said.items()}
    assert broken == {400: False, 408: False, 502: True, 503: False, 504: True}
