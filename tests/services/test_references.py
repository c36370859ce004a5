"""The user service decodes an image as sent once, and compares what is received of it with that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dekag.link.conditions import LinkConditions
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.request_context import begin_request
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.references import References
from services.user.servicer import UserServicer
from services.user.settings import UserSettings
from tests.chain import Start

SHAPE = (1, 4, 2, 2)


def image(value: int, side: int = 10) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_an_image_is_found_by_its_latents() -> None:
    kept = References()
    kept.keep(b"one", SHAPE, image(1))
    found = kept.get(b"one", SHAPE)
    assert found is not None
    np.testing.assert_array_equal(found, image(1))
    assert kept.get(b"two", SHAPE) is None
    assert kept.get(b"one", (1, 4, 4, 1)) is None, "of another shape"
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_bytes_are_bounded_and_the_least_recently_used_go_first() -> None:
    kept = References(max_bytes=3 * image(0).nbytes)
    for number in range(3):
        kept.keep(bytes([number]), SHAPE, image(number))
    kept.keep(bytes([1]), SHAPE, image(1))  # is there already, and takes no more
    assert kept.get(bytes([0]), SHAPE) is not None
    kept.keep(bytes([3]), SHAPE, image(3))
    there = [number for number in range(4) if kept.get(bytes([number]), SHAPE) is not None]
    assert there == [0, 2, 3]
    kept.keep(b"huge", SHAPE, image(9, side=20))
    assert kept.get(b"huge", SHAPE) is None
    assert kept.get(bytes([3]), SHAPE) is not None


@pytest.mark.asyncio(loop_scope="session")
async def test_a_repeated_image_is_compared_without_decoding_what_was_sent(
    chain: Any, asked: DeliveryRequest, start: Start, connect: Any, dummy_profile: Path
) -> None:
    begin_request(None, None)
    settings = UserSettings(
        port=0, redis_url="", profile=str(dummy_profile), downlink_address=chain.addresses["channel"]
    )
    servicer = UserServicer(settings)
    user = UserStub(connect(await start(servicer, add_UserServicer_to_server, settings)))

    async def psnr_db(request: DeliveryRequest) -> float:
        image = await clients.call(user.Receive, converters.request_to_proto(request), "user")
        return float(image.report.psnr_db)

    weak = replace(asked, link=LinkConditions(snr_db=-5))
    both = [await psnr_db(each) for each in (asked, weak)]
    servicer._comparing.close()
    assert [await psnr_db(each) for each in (asked, weak)] == both
    assert both[0] != both[1]
