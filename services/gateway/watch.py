"""The drift watch's share of the delivered images: compared with the cloud's own, in the background."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import structlog

from dekag.errors import DekagError
from services.common import metrics
from services.common.clients import call
from services.common.knowledge import NO_KNOWLEDGE
from services.common.request_context import begin_request, request_id
from services.gateway import schemas
from services.gateway.converters import to_image_consistency
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2 import CompareRequest, Consistency
from services.proto.downlink_pb2 import DELIVERY_SEMANTIC, ProvideRequest
from services.proto.user_pb2 import ReceivedImage

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

AT_ONCE = 2  # the cloud compares one at a time: the other is on its way meanwhile
_log = structlog.get_logger()


async def compare(
    cloud: CloudAsyncStub, asked: ProvideRequest, received: ReceivedImage, *, sampled: bool = False
) -> Consistency:
    """CLIP- and DINO-score of a received image against the cloud's own; raises DekagError.

    Args:
        cloud: draws its own image of that prompt and seed, unless it is cached.
        asked: what the image was asked for with.
        received: an image that did decode.
        sampled: whether it stands for others, so that it counts in the running consistency of its topic.
    """
    request = CompareRequest(
        prompt=asked.prompt,
        seed=asked.seed,
        width=asked.width,
        height=asked.height,
        image=received.png,
        knowledge=received.report.knowledge,
        sampled=sampled,
    )
    return await call(cloud.Compare, request, "cloud")


async def consistency(
    cloud: CloudAsyncStub, asked: ProvideRequest, received: ReceivedImage
) -> schemas.Consistency | None:
    """What `compare` says, as REST returns it; None where the cloud cannot tell, which fails no answer."""
    try:
        return to_image_consistency(await compare(cloud, asked, received))
    except DekagError as error:
        _log.info("an image was not compared", error=str(error))
        return None


def in_sample(of: str, seed: int, share: float) -> bool:
    """Whether the image with that seed of that request is in the sample; the same each time.

    Args:
        of: the request's id.
        seed: of the image.
        share: of all images, 0 to 1.
    """
    digest = hashlib.sha256(f"{of} {seed}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


class Watch:
    """Has a sample of the images compared; no answer waits for it, and none fails with it.

    Images are passed over that say little of the knowledge: other deliveries than the semantic one, those
    that were to be drawn without any knowledge, and those that the link has spoilt.

    Args:
        cloud: compares.
        settings: of the gateway.
    """

    def __init__(self, cloud: CloudAsyncStub, settings: GatewaySettings) -> None:
        self._cloud, self._settings = cloud, settings
        self._comparing: set[asyncio.Task[None]] = set()

    def offer(self, asked: ProvideRequest, received: ReceivedImage) -> None:
        """Starts a comparison, if the image is in the sample and not too many are under way.

        Args:
            asked: what the image was asked for with, by the current request.
            received: what came back.
        """
        if not self._tells(asked, received):
            return
        if not in_sample(request_id.get(), asked.seed, self._settings.watch_share):
            return
        if len(self._comparing) >= AT_ONCE:
            metrics.WATCH_DROPPED.labels("busy").inc()
            return
        task = asyncio.create_task(self._compare(asked, received))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in (tasks := list(self._comparing)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tells(self, asked: ProvideRequest, received: ReceivedImage) -> bool:
        return (
            asked.delivery == DELIVERY_SEMANTIC
            and list(asked.knowledge) != [NO_KNOWLEDGE]
            and received.report.psnr_db >= self._settings.watch_min_psnr_db
        )

    async def _compare(self, asked: ProvideRequest, received: ReceivedImage) -> None:
        begin_request(request_id.get(), self._settings.deadline_s)  # the request's own time may be used up
        try:
            await compare(self._cloud, asked, received, sampled=True)
        except DekagError as error:
            metrics.WATCH_DROPPED.labels("failed").inc()
            _log.info("a sampled image was not compared", error=str(error))
