"""The channel service: forwards the symbols of its downlink with fading, noise and CSI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from grpc import aio

from dekag.link.conditions import LinkConditions
from dekag.link.mimo import uses_on_air
from services.common import clients, converters, tracing
from services.common.frames import FrameReader, Transmission, channel_state
from services.common.worker import ModelWorker
from services.proto.downlink_pb2 import (
    GetTransmissionKnowledgeRequest,
    HopTraffic,
    ProvideRequest,
    SymbolFrame,
    TransmissionKnowledge,
)
from services.proto.downlink_pb2_grpc import DownlinkServicer, DownlinkStub

if TYPE_CHECKING:
    from services.channel.settings import ChannelSettings
    from services.common.converters import DeliveryRequest


class ChannelServicer(DownlinkServicer):
    """Applies fading and noise to symbols, according to the request's link conditions."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.downstream = clients.Peer(settings.downlink_address, settings)
        self._downlink = DownlinkStub(self.downstream.channel)
        self._worker = ModelWorker("channel", threads=1, max_queue=settings.max_queue)
        self._traces = settings.traces
        self._air = settings.air()

    def load(self) -> None:
        """Imports the signal processing before the first request needs it."""
        from dekag.pipeline import apply_channel

        apply_channel(torch.ones(1, 1, dtype=torch.complex64), LinkConditions(), 0)

    async def close(self) -> None:
        """Closes channel and thread."""
        self._worker.close()
        await self.downstream.close()

    async def Provide(
        self, message: ProvideRequest, context: aio.ServicerContext[ProvideRequest, SymbolFrame]
    ) -> AsyncIterator[SymbolFrame]:
        """The frames of the downlink, with fading and noise on the symbols and one more channel state."""
        request = converters.request_from_proto(message, None)
        if request.link.trace is not None:
            await self._worker.run(_check_trace, request.link.trace, self._traces)
        frames = FrameReader(clients.stream(self._downlink.Provide, message, "edge"), request.previews)
        async for preview in frames.previews():
            yield SymbolFrame(preview=preview)
        transmission = await frames.transmission()
        tracing.set_link_attributes(request, transmission.header.channel_uses)
        hop = "channel-channel" if transmission.states else "edge-channel"
        transmission.report.hops.append(
            HopTraffic(hop=hop, sent_bytes=converters.traffic_bytes(message) + transmission.received_bytes)
        )
        _, seconds = await self._worker.run(_apply_channel, transmission, request, self._traces)
        transmission.add_stage("channel.transmit", seconds)
        uses = transmission.header.channel_uses + transmission.states[-1].pilot_uses
        transmission.report.latency.air_s += self._air.seconds(uses_on_air(uses, request.link))
        for frame in transmission.frames():
            yield frame

    async def GetTransmissionKnowledge(
        self,
        request: GetTransmissionKnowledgeRequest,
        context: aio.ServicerContext[GetTransmissionKnowledgeRequest, TransmissionKnowledge],
    ) -> TransmissionKnowledge:
        """Forwards the request to the downlink; a channel acts on symbols, not on files."""
        return await clients.call(self._downlink.GetTransmissionKnowledge, request, "edge")


def _check_trace(name: str, traces: Path) -> None:
    """Raises InvalidInputError for an unknown trace, before an image is generated."""
    from dekag.link.trace import load

    load(name, traces)


def _apply_channel(transmission: Transmission, request: DeliveryRequest, traces: Path) -> None:
    from dekag.pipeline import apply_channel

    hop = len(transmission.states)
    reception = apply_channel(transmission.symbols, request.link, request.seed, hop=hop, traces=traces)
    transmission.symbols = reception.symbols
    errors = None if reception.gain_errors is None else reception.gain_errors[0]
    state = channel_state(reception.gains[0], reception.no.item(), errors, sum(reception.pilot_uses))
    transmission.states.append(state)
