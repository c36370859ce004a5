"""Requests for images count by what they cost."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from dekag.api.schemas import ImagesRequest, PictureRequest
from dekag.errors import ExhaustedError
from dekag.generation.images import to_png
from services.gateway.api_keys import ApiKeys, Key
from services.gateway.request_cost import PICTURE_BYTES, images_cost, picture_cost


def png(width: int, height: int, behind_header: bytes = b"") -> bytes:
    """A flat picture."""
    data = to_png(np.zeros((height, width, 3), np.uint8))
    return data[:33] + behind_header + data[33:]


def asked(picture: bytes, **fields: Any) -> PictureRequest:
    return PictureRequest.model_validate({"picture": base64.b64encode(picture).decode(), **fields})


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
        ({"stream": True, "partial_images": 3, "n": 4}, 7),
        ({"stream": True, "partial_images": 2, "n": 2, "size": "512x512"}, 12),
        ({"partial_images": 3, "n": 4}, 4),  # without a stream there are none
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
    assert picture_cost(asked(png(512, 512), **fields), 256) == cost
    large_file = png(10, 10) + bytes(4 * PICTURE_BYTES)
    assert picture_cost(asked(large_file[: 4 * PICTURE_BYTES], **fields), 256) == cost


@pytest.mark.parametrize(
    ("picture", "cost"),
    [
        (png(1024, 1024), 64),
        (png(128, 128), 1),
        (png(1, 1), 1),
        (png(129, 128), 2),  # two tiles of 96x128
        (png(1024, 10), 2),  # eight tiles of 128x32
        (png(10, 10, png(1024, 1024)[8:33]), 64),  # a second header, which Pillow follows
        (png(10, 10, b"\0\0\0\1tEXt"), 64),  # what follows cannot be read
        (b"", 64),
        (b"no picture", 64),
        (b"\xff\xd8\xff" + bytes(10**6), 64),
        (b"RIFF\0\0\0\0WEBPVP8X", 64),
    ],
    ids=[
        "largest",
        "profile's size",
        "one pixel",
        "two tiles",
        "eight tiles",
        "two headers",
        "cut chunk",
        "empty",
        "text",
        "JPEG without a picture",
        "WebP without a picture",
    ],
)
def test_pictures_count_by_their_pixels(picture: bytes, cost: int) -> None:
    assert picture_cost(asked(picture), 128) == cost


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
