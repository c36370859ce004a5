"""Scores received images against the cloud's own, one at a time, with a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from dekag.api.limits import MAX_PIXELS
from dekag.errors import ExhaustedError, InvalidInputError, NotFoundError
from services.common import metrics
from services.common.stages import stage_time
from services.common.worker import ModelWorker
from services.proto.cloud_pb2 import Consistency

if TYPE_CHECKING:
    from dekag.generation.images import Pixels
    from dekag.metrics.features import ImageScorer
    from dekag.profile import ScorerProfile
    from services.cloud.settings import CloudSettings

_NAME = "scorer"
Score = Callable[["Pixels", bytes], Awaitable[Consistency]]


def received_pixels(data: bytes, width: int, height: int) -> Pixels:
    """Pixels (height, width, 3) uint8 of a received image; InvalidInputError unless it has that size."""
    from dekag.generation.images import from_bytes

    pixels = from_bytes(data, max_side=MAX_PIXELS)
    if pixels.shape != (height, width, 3):
        raise InvalidInputError(
            "image", f"{width}x{height} pixels, as requested", f"{pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels


class ScoringQueue:
    """The encoders of the DINO- and CLIP-score, and a queue for them.

    The cloud's own image is generated in its regular batches. As only one comparison runs at a time, other
    requests wait for at most one such image.
    """

    def __init__(self, settings: CloudSettings) -> None:
        self._capacity, self._size, self._slot = settings.max_comparisons, 0, asyncio.Semaphore(1)
        self._scoring = ModelWorker(_NAME, threads=settings.threads, max_queue=settings.max_comparisons)
        self._scorer: ImageScorer | None = None

    def load(self, scorer: ScorerProfile | None) -> None:
        """Loads the encoders if the profile names any."""
        from dekag.metrics.features import ImageScorer

        self._scorer = None if scorer is None else ImageScorer.load(**scorer.encoders)

    def close(self) -> None:
        """Closes the encoders' thread."""
        self._scoring.close()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[Score]:
        """Waits for the only slot and holds it inside the context.

        Yields a function that scores a received image, (height, width, 3) uint8, against the cloud's own, a
        PNG.

        Raises:
            NotFoundError: the profile names no encoders.
            ExhaustedError: the queue is full.
        """
        if self._scorer is None:
            raise NotFoundError("the profile names no encoders to compare images with")
        with metrics.REFUSED.labels(_NAME).count_exceptions(ExhaustedError):
            if self._size >= self._capacity:
                raise ExhaustedError(f"{self._size} comparisons are running or waiting; try again later")
        self._size += 1
        try:
            async with self._slot:
                yield partial(self._score, self._scorer)
        finally:
            self._size -= 1

    async def _score(self, scorer: ImageScorer, received: Pixels, own: bytes) -> Consistency:
        consistency, seconds = await self._scoring.run(_consistency, scorer, received, own)
        stage_time("cloud.compare", seconds)
        return consistency


def _consistency(scorer: ImageScorer, received: Pixels, own: bytes) -> Consistency:
    from dekag.generation.images import from_bytes

    scores = scorer.scores(received[None], from_bytes(own)[None])
    # rounding may make the similarity of two identical images exceed 1 slightly
    clip, dino = (min(float(scores[name][0]), 1.0) for name in ("clip", "dino"))
    return Consistency(clip=clip, dino=dino, consistency=(clip + dino) / 2)
