"""How consistent received images are with the cloud's own: one comparison at a time, and few in wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from dekag.errors import ExhaustedError, InvalidInputError, NotFoundError
from services.common import converters, metrics
from services.common.stages import stage_time
from services.common.worker import ModelWorker
from services.proto.cloud_pb2 import Consistency

if TYPE_CHECKING:
    from dekag.generation.images import Pixels
    from dekag.generation.profile import ScorerProfile
    from dekag.metrics.features import ImageScorer
    from services.cloud.settings import CloudSettings

_LINE = "scorer"
Score = Callable[["Pixels", bytes], Awaitable[Consistency]]


def received_pixels(data: bytes, width: int, height: int) -> Pixels:
    """Pixels (height, width, 3) uint8 of a received image; InvalidInputError if it is none of that size."""
    from dekag.generation.images import from_bytes

    pixels = from_bytes(data, max_side=converters.MAX_PIXELS)
    if pixels.shape != (height, width, 3):
        raise InvalidInputError(
            "image", f"{width}x{height} pixels as asked", f"{pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels


class Comparisons:
    """The encoders of DINO- and CLIP-score, and whose turn it is.

    An image that is drawn for a comparison takes part in the cloud's batches like any other. As there is one
    at a time, nobody else's waits for more than one drawing on its account.
    """

    def __init__(self, settings: CloudSettings) -> None:
        self._most, self._there, self._turn = settings.max_comparisons, 0, asyncio.Semaphore(1)
        self._scoring = ModelWorker(_LINE, threads=settings.threads, max_queue=settings.max_comparisons)
        self._scorer: ImageScorer | None = None

    def load(self, scorer: ScorerProfile | None) -> None:
        """Loads the encoders, if the profile names some."""
        from dekag.metrics.features import ImageScorer

        self._scorer = None if scorer is None else ImageScorer.load(scorer.clip, scorer.dino)

    def close(self) -> None:
        """Closes the encoders' thread."""
        self._scoring.close()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Score]:
        """The one turn to draw and score while inside, after a wait if somebody else has it.

        Gives what scores a received image, (height, width, 3) uint8, beside the cloud's own, a PNG.

        Raises:
            NotFoundError: there are no encoders.
            ExhaustedError: too many wait.
        """
        if self._scorer is None:
            raise NotFoundError("the profile names no encoders to compare images with")
        with metrics.REFUSED.labels(_LINE).count_exceptions(ExhaustedError):
            if self._there >= self._most:
                raise ExhaustedError(f"{self._there} comparisons wait or are made; try again later")
        self._there += 1
        try:
            async with self._turn:
                yield partial(self._score, self._scorer)
        finally:
            self._there -= 1

    async def _score(self, scorer: ImageScorer, received: Pixels, own: bytes) -> Consistency:
        found, seconds = await self._scoring.run(_scored, scorer, received, own)
        stage_time("cloud.compare", seconds)
        return found


def _scored(scorer: ImageScorer, received: Pixels, own: bytes) -> Consistency:
    from dekag.generation.images import from_bytes

    scores = scorer.scores(received[None], from_bytes(own)[None])
    # in half precision, the features of one and the same image may be a little longer than 1
    clip, dino = (min(float(scores[name][0]), 1.0) for name in ("clip", "dino"))
    return Consistency(clip=clip, dino=dino, consistency=(clip + dino) / 2)
