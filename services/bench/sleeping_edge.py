"""An edge whose work is a sleep: ``python -m services.bench.sleeping_edge SECONDS``.

It is a simulated machine of its own: as many of them as needed run on one real machine. Everything but the
work is that of the real service: server, health, queue, frames.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import AsyncIterator

from grpc import aio

from dekag.errors import NotFoundError
from services.bench.recorded_downlink import name_of, recording
from services.common.server import run
from services.common.worker import ModelWorker
from services.edge.settings import EdgeSettings
from services.proto.downlink_pb2 import (
    GetTransmissionKnowledgeRequest,
    ProvideRequest,
    SymbolFrame,
    TransmissionKnowledge,
)
from services.proto.downlink_pb2_grpc import DownlinkServicer, add_DownlinkServicer_to_server

CHANNEL_USES = 512
CACHED = "cached"
"""First word of a prompt whose latent is as good as cached: it takes no time."""
PROMPT = name_of(CHANNEL_USES)


class SleepingEdge(DownlinkServicer):
    """Sleeps for each request, one after another, and answers with the same frames.

    Args:
        settings: of the edge.
        seconds: how long it sleeps on average, s: half to one and a half times that, by the request's seed.
    """

    def __init__(self, settings: EdgeSettings, seconds: float) -> None:
        self._worker = ModelWorker("edge generator", max_queue=settings.max_queue)
        self._seconds = seconds
        self._frames: list[SymbolFrame] = []

    def load(self) -> None:
        """Makes the frames."""
        self._frames = [SymbolFrame.FromString(frame) for frame in recording(CHANNEL_USES)]

    async def close(self) -> None:
        """Ends the thread."""
        self._worker.close()

    async def Provide(
        self, request: ProvideRequest, context: aio.ServicerContext[ProvideRequest, SymbolFrame]
    ) -> AsyncIterator[SymbolFrame]:
        """The frames, after the sleep."""
        if not request.prompt.startswith(CACHED):
            factor = random.Random(request.seed).uniform(0.5, 1.5)  # images differ too
            await self._worker.run(time.sleep, factor * self._seconds)
        for frame in self._frames:
            yield frame

    async def GetTransmissionKnowledge(
        self,
        request: GetTransmissionKnowledgeRequest,
        context: aio.ServicerContext[GetTransmissionKnowledgeRequest, TransmissionKnowledge],
    ) -> TransmissionKnowledge:
        """Refused: there are no adapters."""
        raise NotFoundError("an edge that sleeps has no adapters")


def main() -> None:
    """Serves on DEKAG_HOST and DEKAG_PORT until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    seconds = parser.parse_args().seconds
    run(
        "edge", EdgeSettings, lambda settings: SleepingEdge(settings, seconds), add_DownlinkServicer_to_server
    )


if __name__ == "__main__":
    main()
