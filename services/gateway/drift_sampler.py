"""Compares a sample of the delivered images with the cloud's images in the background, to detect drift."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog

from dekag.api import schemas
from dekag.errors import DekagError
from services.common import metrics
from services.common.clients import call
from services.common.knowledge import NO_KNOWLEDGE
from services.common.request_context import begin_request, request_id
from services.gateway.converters import to_model
from services.gateway.settings import GatewaySettings
from services.proto.cloud_pb2 import CompareRequest, Consistency
from services.proto.downlink_pb2 import DELIVERY_SEMANTIC, RESTORATION_DENOISER, ProvideRequest
from services.proto.user_pb2 import ReceivedImage

if TYPE_CHECKING:
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_REMEMBERED = 10_000  # compared images
AT_ONCE = 2  # the cloud compares one at a time; the other is in transfer meanwhile
_log = structlog.get_logger()


async def compare(
    cloud: CloudAsyncStub, request: ProvideRequest, received: ReceivedImage, *, sampled: bool = False
) -> Consistency:
    """CLIP- and DINO-score of a received image against the cloud's image; raises DekagError.

    Args:
        cloud: generates its image for the prompt and seed, or takes it from its cache.
        request: the request for the image.
        received: a decoded image.
        sampled: whether it counts in the running consistency of its topic.
    """
    comparison = CompareRequest(
        prompt=request.prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        image=received.png,
        knowledge=received.report.knowledge,
        sampled=sampled,
    )
    return await call(cloud.Compare, comparison, "cloud")


async def consistency(
    cloud: CloudAsyncStub, request: ProvideRequest, received: ReceivedImage
) -> schemas.Consistency | None:
    """The scores of `compare` for REST; None, and no error, if the cloud cannot compare."""
    try:
        scores = await compare(cloud, request, received)
        return to_model(scores, schemas.Consistency, mean=scores.consistency)
    except DekagError as error:
        _log.info("an image was not compared", error=str(error))
        return None


def in_sample(request: str, seed: int, fraction: float) -> bool:
    """Whether an image is in the sample; the same request and seed always give the same answer.

    Args:
        request: its id, which no client can choose.
        seed: of the image.
        fraction: of all images, 0 to 1.
    """
    digest = hashlib.sha256(f"{request} {seed}".encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


class DriftSampler:
    """Compares a sample of the images; responses neither wait for it nor fail with it.

    Only images that show the state of the knowledge are eligible: semantic deliveries that may use
    knowledge and that the link has not degraded too much. For the latter, the quality of images in the sample
    is always measured. An image counts once for each version of the knowledge, however often it is requested:
    a client that repeats one could make any topic seem to drift.

    Args:
        cloud: compares the images.
        settings: of the gateway.
    """

    def __init__(self, cloud: CloudAsyncStub, settings: GatewaySettings) -> None:
        self._cloud, self._settings = cloud, settings
        self._comparing: set[asyncio.Task[None]] = set()
        self._compared: OrderedDict[bytes, None] = OrderedDict()  # the latest last

    def chooses(self, request: ProvideRequest) -> bool:
        """Whether the image of a request, part of the current REST request, is in the sample."""
        return (
            request.delivery == DELIVERY_SEMANTIC
            and list(request.knowledge) != [NO_KNOWLEDGE]
            and not request.HasField("sampling")  # other settings than those that the knowledge was made for
            and in_sample(request_id.get(), request.seed, self._settings.watch_share)
        )

    def submit(self, request: ProvideRequest, received: ReceivedImage) -> None:
        """Starts a comparison if the image is in the sample and few enough are running.

        Args:
            request: the request for the image, part of the current REST request.
            received: its result.
        """
        if not self.chooses(request) or not self._is_eligible(received):
            return
        if len(self._comparing) >= AT_ONCE:
            metrics.WATCH_DROPPED.labels("busy").inc()
            return
        if not self._is_new(request, received):
            return
        task = asyncio.create_task(self._compare(request, received))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def close(self) -> None:
        """Cancels running comparisons."""
        for task in (tasks := list(self._comparing)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_new(self, request: ProvideRequest, received: ReceivedImage) -> bool:
        """Whether an image of this prompt, seed, size and knowledge was not compared lately; notes it."""
        updates = sorted(use.content_hash for use in received.report.knowledge)
        image = (request.prompt, request.seed, request.width, request.height, updates)
        key = hashlib.sha256(repr(image).encode()).digest()
        if key in self._compared:
            self._compared.move_to_end(key)
            return False
        self._compared[key] = None
        if len(self._compared) > _REMEMBERED:
            self._compared.popitem(last=False)
        return True

    def _is_eligible(self, received: ReceivedImage) -> bool:
        return (
            received.report.source != "cloud"
            # the receiver's denoiser does not know the topic, so what it changes says nothing of the edge
            and received.report.restoration != RESTORATION_DENOISER
            and received.report.psnr_db >= self._settings.watch_min_psnr_db
        )

    async def _compare(self, request: ProvideRequest, received: ReceivedImage) -> None:
        begin_request(request_id.get(), self._settings.deadline_s)  # the original deadline may have passed
        try:
            await compare(self._cloud, request, received, sampled=True)
        except DekagError as error:
            metrics.WATCH_DROPPED.labels("failed").inc()
            _log.info("a sampled image was not compared", error=str(error))
