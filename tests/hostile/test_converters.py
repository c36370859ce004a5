"""Every converter of messages from outside: a library type, or an error that names a field."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dekag.errors import InvalidInputError, NotFoundError
from services.cloud import distill_request
from services.common import converters
from services.common.frames import FrameError, channel_states
from services.gateway.converters import to_report
from services.proto import cloud_pb2, downlink_pb2, user_pb2
from tests.hostile.budgets import examples
from tests.hostile.calls import nearly_valid, picture
from tests.hostile.messages import any_of, spoiled
from tests.hostile.tally import Tally
from tests.profiles import PROFILE

LINK = picture().link
CODING = downlink_pb2.ModulationAndCoding(
    bits_per_symbol=2, codeword_bits=9600, information_bits=1920, payload_bytes=10
)
STATE = downlink_pb2.ChannelState(gains=bytes(64), no=0.1, gain_errors=bytes(32), pilot_uses=4)
CONVERTERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]] = {
    "request": (
        nearly_valid(downlink_pb2.ProvideRequest),
        lambda message: converters.request_from_proto(message, PROFILE),
    ),
    "link": (spoiled(LINK) | any_of(type(LINK)), converters.link_from_proto),
    "coding": (spoiled(CODING) | any_of(type(CODING)), converters.coding_from_proto),
    "formats": (nearly_valid(cloud_pb2.GenerateRequest), converters.image_formats),
    "seeds": (nearly_valid(cloud_pb2.GenerateRequest), converters.seeds),
    "order": (nearly_valid(cloud_pb2.DistillRequest), partial(distill_request.from_proto, profile=PROFILE)),
    "channel state": (spoiled(STATE) | any_of(type(STATE)), lambda state: channel_states([state], 8)),
}


def read(convert: Callable[..., Any], *given: Any) -> Any:
    """What ``convert`` makes of what is given, or its refusal, which says what would be right."""
    try:
        return convert(*given)
    except InvalidInputError as error:
        refusal: Exception = error
        assert all((error.field, error.allowed))  # noqa: PT017
    except (NotFoundError, FrameError) as error:
        refusal = error
    return refusal


@pytest.mark.parametrize("name", CONVERTERS)
@examples(quick=50, thorough=500)
@given(data=st.data())
def test_a_message_is_read_or_refused(tally: Tally, name: str, data: st.DataObject) -> None:
    messages, convert = CONVERTERS[name]
    found = read(convert, data.draw(messages))
    tally.note(f"converter of {name}", type(found).__name__)


@examples(quick=50, thorough=500)
@given(message=nearly_valid(downlink_pb2.ProvideRequest))
def test_what_is_read_is_written_and_read_alike(tally: Tally, message: downlink_pb2.ProvideRequest) -> None:
    found = read(converters.request_from_proto, message, PROFILE)
    tally.note("round trip of a request", type(found).__name__)
    if not isinstance(found, Exception):
        assert converters.request_from_proto(converters.request_to_proto(found), PROFILE) == found


@examples(quick=50, thorough=500)
@given(
    st.binary(max_size=100),
    st.lists(st.integers(0, 2**31), max_size=5) | st.lists(st.integers(0, 3), max_size=4),
)
def test_latents_are_of_their_shape_and_finite(tally: Tally, data: bytes, shape: list[int]) -> None:
    found = read(converters.latents_from_bytes, data, tuple(shape))
    tally.note("converter of latents", type(found).__name__)
    if not isinstance(found, Exception):
        assert found.shape == tuple(shape)
        assert all(map(math.isfinite, found.flatten()))


def test_latents_without_numbers_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="latents"):
        converters.latents_from_bytes(b"", (2**31, 2**31, 2**31, 0))


def test_invalid_link_report_is_not_the_clients_fault() -> None:
    with pytest.raises(ValueError, match=r"link report: link\.fading"):
        to_report(user_pb2.LinkReport(delivery="DELIVERY_SEMANTIC"), "id")
