"""A Downlink that plays recorded frames: ``python -m services.bench.recorded_downlink --help``.

It stands where the edge would, below a channel that is measured. Its frames are serialised before, so that it
costs little more than gRPC itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import torch
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from services.common.frames import Transmission
from services.proto.downlink_pb2 import (
    DELIVERY_SEMANTIC,
    ProvideRequest,
    TransmissionHeader,
    TransmissionReport,
)

SERVICE = "dekag.v1.Downlink"


def name_of(channel_uses: int) -> str:
    """The prompt that asks for the recording of so many symbols."""
    return f"recording of {channel_uses} symbols"


def recording(channel_uses: int) -> list[bytes]:
    """Serialised frames of one transmission of so many symbols, mean power 1."""
    draw = torch.Generator().manual_seed(channel_uses)
    symbols = torch.randn(1, channel_uses, dtype=torch.complex64, generator=draw)
    header = TransmissionHeader(channel_uses=channel_uses, delivery=DELIVERY_SEMANTIC)
    transmission = Transmission(header, symbols, [], None, TransmissionReport())
    return [frame.SerializeToString() for frame in transmission.frames()]


def handler(recordings: Mapping[str, Sequence[bytes]]) -> grpc.GenericRpcHandler:
    """Plays the recording that the request's prompt names."""

    async def play(
        request: ProvideRequest, context: aio.ServicerContext[ProvideRequest, bytes]
    ) -> AsyncIterator[bytes]:
        for frame in recordings[request.prompt]:
            yield frame

    provide: Any = grpc.unary_stream_rpc_method_handler(play, ProvideRequest.FromString)
    return grpc.method_handlers_generic_handler(SERVICE, {"Provide": provide})


async def serve(address: str, channel_uses: Sequence[int]) -> None:
    """Plays recordings of those numbers of symbols until it is cancelled."""
    server = aio.server()
    server.add_generic_rpc_handlers((handler({name_of(each): recording(each) for each in channel_uses}),))
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serves on DEKAG_HOST and DEKAG_PORT until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("channel_uses", type=int, nargs="+")
    asyncio.run(
        serve(f"{os.environ['DEKAG_HOST']}:{os.environ['DEKAG_PORT']}", parser.parse_args().channel_uses)
    )


if __name__ == "__main__":
    main()
