"""Every channel through the services: what is asked for is what the air does, and the report says it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dekag.errors import InvalidInputError
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.link.recordings import write_sigmf
from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.frames import collect
from services.common.request_context import begin_request
from services.edge.settings import EdgeSettings
from services.gateway.converters import to_report
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from services.proto.user_pb2 import ReceivedImage
from services.proto.user_pb2_grpc import UserStub, add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")
Start = Callable[..., Awaitable[str]]
Connect = Callable[[str], Any]

LINKS = [
    {"fading": "rician", "rician_k_db": 0, "csi": "pilots"},
    {"fading": "tdl-c", "tau_rms_s": 3e-7, "speed_m_s": 30, "csi": "pilots", "equalizer": "zf"},
    {"fading": "tdl-d", "reported_snr_db": 0},
    {"fading": "trace", "trace": "walk", "trace_start_s": 0.3},
    {"fading": "rayleigh", "csi": "none"},
    {"fading": "mimo-2x2"},
]


@pytest.fixture(autouse=True)
async def no_request() -> None:
    begin_request(None, None)


async def receive(stub: UserStub, asked: DeliveryRequest) -> ReceivedImage:
    return await clients.call(stub.Receive, converters.request_to_proto(asked), "user")


def with_link(asked: DeliveryRequest, link: dict[str, Any], **more: Any) -> DeliveryRequest:
    return replace(asked, link=LinkConditions.model_validate({"snr_db": 20} | link), **more)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link["fading"])
async def test_the_air_does_what_the_library_does(
    chain: Any, asked: DeliveryRequest, link: dict[str, Any]
) -> None:
    asked = with_link(asked, link)
    request = converters.request_to_proto(asked)
    sent = await collect(chain.edge.Provide(request))
    bent = await collect(chain.channel.Provide(request))
    expected = transmit(sent.symbols, [asked.link], [asked.seed])
    assert torch.equal(bent.symbols, expected.symbols)
    (state,) = bent.states
    assert state.gains == expected.gains.numpy().tobytes()
    assert (state.pilot_uses,) == expected.pilot_uses
    assert bool(state.gain_errors) == (asked.link.csi == "pilots")


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link["fading"])
@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
async def test_every_link_is_reported_and_repeats(
    chain: Any, asked: DeliveryRequest, link: dict[str, Any], delivery: str
) -> None:
    cbr = asked.cbr if delivery == "semantic" else 0.0
    asked = with_link(asked, link, delivery=delivery, cbr=cbr)
    first, second = await receive(chain.user, asked), await receive(chain.user, asked)
    assert first.png == second.png
    report = to_report(first.report, "id")
    for name, value in asked.link.model_dump().items():
        assert getattr(report, name) == value
    assert (report.pilot_uses > 0) == (asked.link.csi == "pilots")
    assert report.cbr == (report.channel_uses + report.pilot_uses) / (3 * 128 * 128)
    if delivery == "semantic":
        assert report.decoded
        assert len(report.gains) == (512 if asked.link.fading[:4] in ("tdl-", "mimo") else 8)
    assert 0 < len(report.gains) <= 1024
    assert (report.gain_mse is not None) == (asked.link.csi == "pilots")
    if asked.link.csi == "none":
        assert set(report.gains) == {(1.0, 0.0)}


async def test_several_antennas_need_less_time_on_the_air(chain: Any, asked: DeliveryRequest) -> None:
    for fading, streams in (("rayleigh", 1), ("mimo-4x4", 4)):
        conventional = with_link(asked, {"fading": fading, "snr_db": 5}, delivery="conventional", cbr=0.0)
        report = (await receive(chain.user, conventional)).report
        assert report.channel_uses > 1600, "several slots of 800 channel uses, 1 ms each"
        slots = math.ceil(math.ceil(report.channel_uses / streams) / 800)
        assert report.latency.air_s == pytest.approx(1e-3 * slots)


async def test_pilots_are_counted_in_the_rate(chain: Any, asked: DeliveryRequest) -> None:
    report = (await receive(chain.user, with_link(asked, {"csi": "pilots"}))).report
    assert (report.channel_uses, report.pilot_uses) == (512, 16)
    assert report.cbr == 528 / 49152


async def test_the_error_of_the_gains_is_reported(chain: Any, asked: DeliveryRequest) -> None:
    link = {"csi": "pilots", "fading": "rayleigh"}
    noisy, clear = [
        (await receive(chain.user, with_link(asked, link | {"snr_db": snr_db}))).report for snr_db in (0, 20)
    ]
    expected = transmit(
        torch.ones(1, 512, dtype=torch.complex64), [with_link(asked, link).link], [asked.seed]
    )
    assert expected.gain_errors is not None
    assert clear.gain_mse == pytest.approx(expected.gain_errors.mean().item())
    assert noisy.gain_mse == pytest.approx(100 * clear.gain_mse, rel=0.6)


async def test_equalisers_differ(chain: Any, asked: DeliveryRequest) -> None:
    pngs = {
        (await receive(chain.user, with_link(asked, {"equalizer": kind, "snr_db": 0}))).png
        for kind in ("mmse", "zf")
    }
    assert len(pngs) == 2


@pytest.mark.parametrize("link", LINKS[:4], ids=lambda link: link["fading"])
async def test_two_hops_of_every_kind(
    chain: Any,
    start: Start,
    connect: Connect,
    asked: DeliveryRequest,
    dummy_profile: Path,
    link: dict[str, Any],
) -> None:
    settings = ChannelSettings(port=0, downlink_address=chain.addresses["channel"])
    second = await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings)
    models = UserSettings(port=0, redis_url="", profile=str(dummy_profile), downlink_address=second)
    user = UserStub(connect(await start(UserServicer(models), add_UserServicer_to_server, models)))
    asked = with_link(asked, link)
    once, twice = await receive(chain.user, asked), await receive(user, asked)
    assert twice.report.decoded
    assert twice.report.no == pytest.approx(2 * once.report.no)
    assert twice.report.pilot_uses == 2 * once.report.pilot_uses


async def test_a_trace_that_there_is_not_is_refused_before_anything_is_drawn(
    start: Start, connect: Connect, asked: DeliveryRequest, closed_port: int
) -> None:
    settings = ChannelSettings(port=0, downlink_address=f"127.0.0.1:{closed_port}")
    stub = DownlinkStub(
        connect(await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings))
    )
    request = converters.request_to_proto(with_link(asked, {"fading": "trace", "trace": "nowhere"}))
    with pytest.raises(InvalidInputError, match="one of drive, walk") as caught:
        await collect(clients.stream(stub.Provide, request, "channel"))
    assert caught.value.field == "link.trace"


async def test_a_folder_of_ones_own_traces(
    chain: Any, start: Start, connect: Connect, asked: DeliveryRequest, tmp_path: Path
) -> None:
    pytest.importorskip("sigmf")
    (tmp_path / "mine.csv").write_text("time_s,gain_re,gain_im\n0,1,0\n1,0,3\n")
    write_sigmf(tmp_path / "radio", torch.tensor([1, 3j], dtype=torch.complex64), sample_rate_hz=1.0)
    settings = ChannelSettings(port=0, downlink_address=chain.addresses["edge"], traces=tmp_path)
    stub = DownlinkStub(
        connect(await start(ChannelServicer(settings), add_DownlinkServicer_to_server, settings))
    )
    for name in ("mine", "radio"):
        link = {"fading": "trace", "trace": name, "trace_start_s": 1.2}
        request = converters.request_to_proto(with_link(asked, link))
        (state,) = (await collect(clients.stream(stub.Provide, request, "channel"))).states
        np.testing.assert_allclose(np.frombuffer(state.gains, "<c8"), np.full(8, 3j / 5**0.5), rtol=1e-6)
    with pytest.raises(ValidationError, match="traces"):
        ChannelSettings(traces=tmp_path / "none")


@pytest.mark.parametrize("csi", ["perfect", "pilots"])
async def test_the_latency_is_split(chain: Any, asked: DeliveryRequest, csi: str) -> None:
    """Air by the channel's settings, pilots included; nothing crosses the backhaul unless there is a file."""
    air, backhaul = ChannelSettings().air(), EdgeSettings().backhaul()
    link = {"csi": csi}
    semantic = to_report((await receive(chain.user, with_link(asked, link))).report, "id")
    file = to_report(
        (await receive(chain.user, with_link(asked, link, delivery="conventional", cbr=0.0))).report, "id"
    )
    for report in (semantic, file):
        assert report.latency is not None
        assert report.latency.air_s == air.seconds(report.channel_uses + report.pilot_uses) > 0
        stages_s = sum(each.seconds for each in report.stages if each.stage == "user.decode")
        assert report.latency.compute_s > stages_s
    sent_bytes = sum(hop.sent_bytes for hop in file.hops if hop.hop == "cloud-edge")
    assert file.latency.backhaul_s == backhaul.exchange_s(sent_bytes, np.random.default_rng(asked.seed)) > 0
    assert semantic.latency.backhaul_s == 0


async def test_an_ideal_channel_takes_no_air(chain: Any, asked: DeliveryRequest) -> None:
    latency = (await collect(chain.edge.Provide(converters.request_to_proto(asked)))).report.latency
    assert latency.air_s == 0
