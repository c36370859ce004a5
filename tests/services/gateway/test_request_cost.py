"""Requests for images count by what they cost."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from dekag.api.schemas import ImagesRequest, PictureRequest
from dekag.errors import ExhaustedError
from services.gateway.api_keys import ApiKeys, Key
from services.gateway.request_cost import PICTURE_BYTES, images_cost, picture_cost


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, 1),
        ({"n": 10}, 10),
        ({"n": 4, "delivery": "conventional", "link": {"snr_db": 0}}, 32),
        ({"delivery": "conventional", "link": {"snr_db": 20}}, 4),
        ({"size": "512x512"}, 4),
        ({"size": "128x128"}, 1),
        ({"steps": 100}, 5),
        ({"consistency": True}, 5),
        ({"measure": False}, 1),
        ({"measure": False, "n": 8}, 6),
        ({"measure": False, "n": 4, "steps": 100}, 19),
        ({"measure": False, "n": 2, "delivery": "conventional", "link": {"snr_db": 20}}, 8),
    ],
)
def test_costs(fields: dict[str, Any], cost: int) -> None:
    assert images_cost(ImagesRequest(prompt="a dog", **fields), 256) == cost


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({}, 4),
        ({"measure": False}, 3),
        ({"measure": False, "delivery": "pixels"}, 4),
        ({"measure": False, "delivery": "conventional"}, 16),
    ],
)
def test_costs_of_a_picture(fields: dict[str, Any], cost: int) -> None:
    picture = base64.b64encode(bytes(4 * PICTURE_BYTES)).decode()
    assert picture_cost(PictureRequest.model_validate({"picture": picture, **fields})) == cost


async def test_costly_requests_use_up_the_limit_of_a_key() -> None:
    now = 0.0
    key = Key("alice", b"", requests_per_minute=10, concurrency=8)
    keys = ApiKeys([key], clock=lambda: now)
    async with keys.in_flight(key):
        keys.charge(key, 6)
    async with keys.in_flight(key):
        with pytest.raises(
            ExhaustedError, match="counts as 6, and this API key may be used 10 times"
        ) as caught:
            keys.charge(key, 6)
    assert caught.value.retry_after_s == 60
    now = 61.0
    async with keys.in_flight(key):
        keys.charge(key, 1000)  # at most a minute's
    with pytest.raises(ExhaustedError):
        async with keys.in_flight(key):
            pass
