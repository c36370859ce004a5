"""Every RPC of every service, with anything."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.budgets import FUZZ
from tests.hostile.calls import REFUSALS, Rpc, answer_of, legal_requests, requests, rpcs
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
RPCS = list(rpcs())


@pytest.mark.parametrize("rpc", RPCS, ids=[rpc.name for rpc in RPCS])
@settings(FUZZ, max_examples=300)
@given(data=st.data())
async def test_anything_is_served_or_refused(
    channels: Any, tally: Tally, rpc: Rpc, data: st.DataObject
) -> None:
    sent = data.draw(requests(rpc))
    code = await answer_of(channels[rpc.service], rpc, sent)
    tally.answered(f"grpc {rpc.name}", code)
    assert code is StatusCode.OK or code in REFUSALS


@settings(FUZZ, max_examples=300)
@given(sent=legal_requests())
async def test_what_is_allowed_is_served(channels: Any, tally: Tally, sent: bytes) -> None:
    (rpc,) = (rpc for rpc in RPCS if rpc.name == "user.Receive")
    code = await answer_of(channels["user"], rpc, sent)
    tally.answered("grpc user.Receive, legal", code)
    assert code is StatusCode.OK, sent
