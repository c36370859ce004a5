"""How the edge draws: by a trace, and with an autoencoder in the number format of its machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common import clients, converters
from services.common.converters import DeliveryRequest
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.proto.downlink_pb2_grpc import DownlinkStub, add_DownlinkServicer_to_server
from tests.chain import Start

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def started(
    start: Start, connect: Callable[[str], Any], profile: Path, **settings: Any
) -> tuple[EdgeServicer, DownlinkStub]:
    own = EdgeSettings(port=0, redis_url="", profile=str(profile), cloud_address="127.0.0.1:1", **settings)
    servicer = EdgeServicer(own)
    return servicer, DownlinkStub(connect(await start(servicer, add_DownlinkServicer_to_server, own)))


async def test_the_edge_draws_by_a_trace(
    start: Start, connect: Callable[[str], Any], dummy_profile: Path, asked: DeliveryRequest
) -> None:
    servicer, edge = await started(start, connect, dummy_profile)
    calls: list[str] = []
    unet = servicer._generator.generator.pipeline.unet
    unet.conv_in.register_forward_hook(lambda *_: calls.append("python"))
    message = converters.request_to_proto(replace(asked, knowledge=()))
    frames = [frame async for frame in clients.stream(edge.Provide, message, "edge")]
    assert frames
    assert calls == []


async def test_files_of_the_cloud_are_cached_by_what_the_edge_computes_with(
    start: Start, connect: Callable[[str], Any], dummy_profile: Path, asked: DeliveryRequest
) -> None:
    keys = []
    for vae_dtype in ("", "float32", "bfloat16"):
        servicer, _ = await started(start, connect, dummy_profile, vae_dtype=vae_dtype)
        keys.append((servicer._file_key(asked, b"cloud"), servicer._key(asked, ())))
    plain, same, coarse = keys
    assert plain == same
    assert plain[0] != coarse[0]
    assert plain[1] != coarse[1]
    servicer._generator.generator.devices = ("cuda",)  # which rounds differently
    assert servicer._file_key(asked, b"cloud") not in {plain[0], coarse[0]}
    assert servicer._key(asked, ()) not in {plain[1], coarse[1]}
