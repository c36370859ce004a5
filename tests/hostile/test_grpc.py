"""Every RPC of every service, with anything."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from grpc import StatusCode, aio
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.budgets import examples
from tests.hostile.calls import REFUSALS, Rpc, answer_of, legal_requests, requests, rpcs
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
RPCS = list(rpcs())


@pytest.mark.parametrize("rpc", RPCS, ids=[rpc.name for rpc in RPCS])
@examples(quick=30, thorough=300)
@given(data=st.data())
async def test_anything_is_served_or_refused(
    channels: Mapping[str, aio.Channel], tally: Tally, rpc: Rpc, data: st.DataObject
) -> None:
    sent = data.draw(requests(rpc))
    code = await answer_of(channels[rpc.service], rpc, sent)
    tally.answered(f"grpc {rpc.name}", code)
    assert code is StatusCode.OK or code in REFUSALS


@examples(quick=10, thorough=300)
@given(sent=legal_requests())
async def test_what_is_allowed_is_served(
    channels: Mapping[str, aio.Channel], tally: Tally, sent: bytes
) -> None:
    (rpc,) = (rpc for rpc in RPCS if rpc.name == "user.Receive")
    code = await answer_of(channels["user"], rpc, sent)
    tally.answered("grpc user.Receive, legal", code)
    assert code is StatusCode.OK, sent


@pytest.mark.parametrize(
    "text", ["\N{FOX FACE}" * 1000, "\0" * 700, "a" * 10_000_000, "\N{RIGHT-TO-LEFT OVERRIDE}x"]
)
async def test_long_and_odd_texts_are_refused_quickly(channels: Mapping[str, aio.Channel], text: str) -> None:
    for rpc in RPCS:
        for field in rpc.takes.DESCRIPTOR.fields:
            if field.type == field.TYPE_STRING and not field.is_repeated:
                message = rpc.takes(**{field.name: text})
                code = await answer_of(channels[rpc.service], rpc, message.SerializeToString())
                assert code in REFUSALS, f"{field.name} of {rpc.name}"
