"""Plug-ins through the real services: named in requests, never brought by them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dekag import plugins
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.methods import build
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.loading import folder_hash
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.metrics import Metric
from services.cloud.publish import adapters_of, publish_adapters
from services.cloud.version_store import TransmissionStore
from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.common.frames import collect
from services.common.request_context import begin_request
from services.gateway.app import create_app
from services.gateway.converters import to_report
from services.gateway.settings import GatewaySettings
from services.proto.downlink_pb2_grpc import DownlinkStub
from services.proto.user_pb2_grpc import UserStub
from services.user import servicer
from tests.chain import Start, start_chain
from tests.profiles import PROFILE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("plugging")]
ROOT = Path(__file__).resolve().parents[2]
NAKAGAMI = f"{ROOT}/examples/my_channel.py:Nakagami"
BIASES = f"{ROOT}/examples/my_method.py:Biases"
OUTLINES = f"{ROOT}/examples/my_metric.py:Outlines"


@pytest.fixture
def faded(asked: DeliveryRequest) -> DeliveryRequest:
    """A request for the plugged-in channel."""
    plugins.load(NAKAGAMI)
    begin_request(None, None)
    return replace(asked, link=LinkConditions(fading="nakagami", snr_db=15, csi="pilots"))


async def test_the_air_does_what_a_plugged_in_channel_does(chain: Any, faded: DeliveryRequest) -> None:
    request = converters.request_to_proto(faded)
    assert converters.request_from_proto(request, PROFILE) == faded
    sent = await collect(clients.stream(chain.edge.Provide, request, "edge"))
    bent = await collect(clients.stream(chain.channel.Provide, request, "channel"))
    expected = transmit(sent.symbols, [faded.link], [faded.seed])
    assert torch.equal(bent.symbols, expected.symbols)
    assert bent.states[0].gains == expected.gains.numpy().tobytes()


@pytest.mark.parametrize("delivery", ["semantic", "conventional"])
async def test_reports_name_the_channel_and_plugged_in_scores(
    chain: Any, faded: DeliveryRequest, delivery: str
) -> None:
    cbr = faded.cbr if delivery == "semantic" else 0.0
    request = converters.request_to_proto(replace(faded, delivery=delivery, cbr=cbr))
    plain = to_report((await clients.call(chain.user.Receive, request, "user")).report, "id")
    assert (plain.fading, plain.pilot_uses, plain.scores) == ("nakagami", 16, {})
    plugins.load(OUTLINES)
    received = await clients.call(chain.user.Receive, request, "user")
    scored = to_report(received.report, "id")
    assert list(scored.scores) == (["outlines"] if scored.decoded else [])
    assert scored.psnr_db == plain.psnr_db
    received.report.scores["outlines"] = float("nan")
    assert to_report(received.report, "id").scores == {"outlines": None}, "JSON has no NaN"


class Broken(Metric):
    """Fails always."""

    name = "broken"

    def score(self, images: Any, references: Any) -> Any:
        """Raises."""
        raise ValueError("not today")


async def test_a_metric_that_fails_costs_no_picture(chain: Any, faded: DeliveryRequest) -> None:
    plugins.register(Broken)
    plugins.load(OUTLINES)
    received = await clients.call(chain.user.Receive, converters.request_to_proto(faded), "user")
    assert received.png
    assert list(received.report.scores) == ["outlines"]


class Choosy(Metric):
    """Of images larger than those of the test."""

    name = "choosy"
    smallest_side = 129

    def score(self, images: Any, references: Any) -> Any:
        """Is never called."""
        raise AssertionError("too small")


async def test_a_metric_is_left_out_of_images_that_are_too_small_for_it(
    chain: Any, faded: DeliveryRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.register(Choosy)
    failed: list[str] = []
    monkeypatch.setattr(servicer._log, "exception", lambda event, **_: failed.append(event))
    received = await clients.call(chain.user.Receive, converters.request_to_proto(faded), "user")
    assert (dict(received.report.scores), failed) == ({}, [])


async def test_rest_takes_a_plugged_in_name_and_nothing_else(chain: Any, faded: DeliveryRequest) -> None:
    settings = GatewaySettings(
        user_address=chain.addresses["user"], cloud_address=chain.addresses["cloud"], redis_url=""
    )
    app = create_app(settings)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):

        async def ask(fading: str) -> tuple[int, Any]:
            body = {"prompt": "a boat", "seed": 1, "size": "64x64", "link": {"fading": fading, "cbr": 0.005}}
            answer = await client.post("/v1/images/generations", json=body)
            return answer.status_code, answer.json()

        status, body = await ask("nakagami")
        assert status == 200, body
        assert body["data"][0]["link_report"]["fading"] == "nakagami"
        for hostile in (OUTLINES, NAKAGAMI, "os:system", "../my_channel", "x" * 10_000):
            status, body = await ask(hostile)
            assert status == 422
            (problem,) = body["errors"]
            assert problem["field"] == "link.fading"
            assert problem["allowed"].endswith("trace, rayleigh-magnitude, mimo-2x2, mimo-4x4, nakagami")
    assert plugins.plugged_in("metric") == {}


async def test_a_codec_of_ones_own_carries_the_picture(
    start: Start, asked: DeliveryRequest, dummy_profile: Path, tmp_path: Path, connect: Any
) -> None:
    begin_request(None, None)
    codec = plugins.load(f"{ROOT}/examples/my_codec.py:LinearCodec")
    profile = tmp_path / "profile"
    shutil.copytree(dummy_profile, profile)
    shutil.rmtree(profile / "codec")
    torch.manual_seed(0)
    codec().save_pretrained(profile / "codec")
    addresses = await start_chain(start, profile, "")
    user = UserStub(connect(addresses["user"]))
    found = await clients.call(user.Receive, converters.request_to_proto(asked), "user")
    assert found.report.decoded
    assert found.report.channel_uses == 512


async def test_a_method_of_ones_own_encodes_and_decodes(
    start: Start,
    asked: DeliveryRequest,
    dummy_profile: Path,
    tmp_path: Path,
    connect: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the cloud publishes the profile's adapters, which is nothing for the other tests' clouds
    monkeypatch.setenv("DEKAG_DATA_DIR", str(tmp_path / "data"))
    begin_request(None, None)
    plugins.load(BIASES)
    profile = tmp_path / "profile"
    shutil.copytree(dummy_profile, profile)
    codec = JsccCodec.load(profile / "codec")
    torch.manual_seed(1)
    weights = {
        name: torch.randn_like(values)
        for name, values in build("biases", codec, 1).named_parameters()
        if values.requires_grad
    }
    info = {"base_hash": folder_hash(profile / "codec"), "scores": {}}
    knowledge = TransmissionKnowledge.of_method(info, "biases", 1, weights)
    knowledge.save(profile / "biases")
    described = json.loads((profile / "profile.json").read_text())
    (profile / "profile.json").write_text(json.dumps({**described, "adapters": "biases"}))
    addresses = await start_chain(start, profile, "")
    user = UserStub(connect(addresses["user"]))
    found = await clients.call(user.Receive, converters.request_to_proto(asked), "user")
    assert found.report.model_hashes["adapters"] == knowledge.content_hash
    without = replace(asked, delivery="semantic-unaligned")
    plain = await clients.call(user.Receive, converters.request_to_proto(without), "user")
    assert plain.png != found.png


async def test_knowledge_of_a_method_that_nobody_knows_is_refused_kindly(
    dummy_profile: Path, tmp_path: Path
) -> None:
    codec = JsccCodec.load(dummy_profile / "codec")
    base_hash = folder_hash(dummy_profile / "codec")
    knowledge = TransmissionKnowledge.of_method({"base_hash": base_hash}, "biases", 1, {})
    with pytest.raises(MismatchError, match=r"of the method biases: .* one of none, cala"):
        AlignedCodec(codec, base_hash, knowledge)
    knowledge.save(tmp_path / "biases")
    with pytest.raises(InvalidInputError, match="biases"):
        publish_adapters(adapters_of(tmp_path / "biases"), TransmissionStore(tmp_path / "data"), base_hash)
    plugins.load(BIASES)
    with pytest.raises(MismatchError, match="what biases trains"):
        AlignedCodec(codec, base_hash, knowledge)
    assert (
        publish_adapters(
            adapters_of(tmp_path / "biases"), TransmissionStore(tmp_path / "data"), base_hash
        ).version
        == 1
    )


async def test_a_service_loads_what_its_environment_names(
    chain: Any, faded: DeliveryRequest, closed_port: int, connect: Callable[[str], Any]
) -> None:
    own = {"PORT": str(closed_port), "DOWNLINK_ADDRESS": chain.addresses["edge"], "PLUGINS": NAKAGAMI}
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "services.channel"],
        env=os.environ | {f"DEKAG_{name}": value for name, value in own.items()},
        cwd=ROOT,
    )
    try:
        channel = connect(f"127.0.0.1:{closed_port}")
        watch = health_pb2_grpc.HealthStub(channel).Watch
        async for answer in watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=120):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        request, stub = converters.request_to_proto(faded), DownlinkStub(channel)
        there = await collect(clients.stream(stub.Provide, request, "channel"))
        here = await collect(clients.stream(chain.channel.Provide, request, "channel"))
        assert torch.equal(there.symbols, here.symbols)
        request.link.custom_fading = OUTLINES
        with pytest.raises(InvalidInputError, match="mimo-2x2, mimo-4x4, nakagami"):
            await collect(clients.stream(stub.Provide, request, "channel"))
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


async def test_a_service_whose_plug_in_is_broken_says_so_and_ends() -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.channel"],
        env=os.environ | {"DEKAG_PLUGINS": "nowhere.py:Fog", "DEKAG_PORT": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no such file" in json.loads(done.stderr.splitlines()[-1])["event"]
    assert "Traceback" not in done.stderr
