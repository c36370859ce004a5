"""The drift watch: how consistent the sampled images of each topic's knowledge are, and whether that falls.

=====================================  =======================================================
``dekag:consistency``                  hash: topic, or "none" -> JSON of its ``TopicConsistency``
``dekag:lock:consistency``             held while a sample is added
=====================================  =======================================================

Redis alone holds it. If it loses that, the watch starts anew; nothing else depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

import structlog
from pydantic import Field
from redis.asyncio import Redis
from redis.exceptions import RedisError

from dekag.documents import parse_json
from dekag.metrics.drift import RunningScore
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import metrics
from services.common.cache import Cache
from services.common.knowledge import NO_KNOWLEDGE
from services.proto.cloud_pb2 import RunningConsistency
from services.proto.downlink_pb2 import KnowledgeUse

CONSISTENCY_KEY = "dekag:consistency"
_LOCK_KEY, _LOCK_S = "dekag:lock:consistency", 5.0
_log = structlog.get_logger()


class TopicConsistency(RunningScore):
    """Consistency of the images that one version of a topic's knowledge drew.

    Of those that no update drew, the version is 0 and the hash that of the edge model.
    """

    version: int = Field(description="Of the knowledge.")
    content_hash: str = Field(description="sha256 over everything in it.")

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """What a JSON text holds, None if that is nothing of use."""
        try:
            found = cls.model_validate(parse_json(text, CONSISTENCY_KEY))
        except ValueError:  # pydantic's ValidationError is one, too
            return None
        return found if found.first and found.last else None

    def to_proto(self) -> RunningConsistency:
        """The message."""
        return RunningConsistency(
            samples=self.samples, fresh=self.fresh, recent=self.recent, drifting=self.drifting
        )


_Version = tuple[int, str]  # and hash of its content


class DriftWatch:
    """Adds up samples and says which topics are to be distilled anew.

    Args:
        settings: of the cloud.
        store: says which versions are current; samples of others are passed over.
        redis: where it is kept; without one, nothing is.
        cache: the same, for reading without waiting long.
    """

    def __init__(
        self, settings: CloudSettings, store: KnowledgeStore, redis: Redis | None, cache: Cache
    ) -> None:
        self._settings, self._store, self._redis, self._cache = settings, store, redis, cache
        self._shown: set[str] = set()
        self.edge_hash = ""  # of the edge model: what draws without any update

    async def running(self) -> dict[str, TopicConsistency]:
        """By topic, of the current versions that have samples; none without Redis."""
        fields = await self._cache.get_hash(CONSISTENCY_KEY)
        return _of_these(fields, await asyncio.to_thread(self._current))

    async def note(self, knowledge: Sequence[KnowledgeUse], consistency: float) -> None:
        """Adds a sample, if the version that drew it is still current. Without Redis it is counted only.

        Args:
            knowledge: the updates that drew the image. Several count for none of them, as nobody could say
                which of them is to blame.
            consistency: of the image with the cloud's own.
        """
        if len(knowledge) > 1:
            return
        current = await asyncio.to_thread(self._current)
        topic, version = NO_KNOWLEDGE, current[NO_KNOWLEDGE]
        for use in knowledge:
            topic, version = use.topic, (use.version, use.content_hash)
        if current.get(topic) != version:
            return
        metrics.CONSISTENCY.labels(topic).observe(consistency)
        self._shown.add(topic)
        if self._redis is None:
            return
        try:
            self._show(topic, await self._add(self._redis, topic, version, consistency))
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_FAILURES.inc()
            _log.debug("a sample of the consistency is lost", topic=topic, error=str(error))

    async def refresh(self) -> None:
        """Lets the metrics say what is so now, and forgets topics that were deleted.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        if self._redis is None:
            return
        fields: dict[bytes, bytes] = await self._redis.hgetall(CONSISTENCY_KEY)  # type: ignore[misc]
        current = await asyncio.to_thread(self._current)
        if gone := [name for name in fields if name.decode(errors="replace") not in current]:
            await self._redis.hdel(CONSISTENCY_KEY, *gone)  # type: ignore[misc, arg-type]
        running = _of_these(fields, current)
        for topic, found in running.items():
            self._show(topic, found)
        for topic in self._shown - running.keys():
            _hide(topic)
        for topic in self._shown - current.keys():
            metrics.CONSISTENCY.remove(topic)
        self._shown &= current.keys()

    async def _add(self, redis: Redis, topic: str, version: _Version, consistency: float) -> TopicConsistency:
        async with redis.lock(_LOCK_KEY, timeout=_LOCK_S, blocking_timeout=_LOCK_S):
            text = await redis.hget(CONSISTENCY_KEY, topic)  # type: ignore[misc]
            held = None if text is None else TopicConsistency.parse(text)
            if held is None or (held.version, held.content_hash) != version:
                held = TopicConsistency(version=version[0], content_hash=version[1])
            found = held.plus(consistency, window=self._settings.drift_window, fall=self._settings.drift_fall)
            await redis.hset(CONSISTENCY_KEY, topic, found.model_dump_json())  # type: ignore[misc]
        if found.drifting != held.drifting:
            say, what = (_log.warning, "drifts") if found.drifting else (_log.info, "drifts no more")
            say(
                f"knowledge {what}",
                topic=topic,
                version=found.version,
                samples=found.samples,
                fresh=round(found.fresh, 4),
                recent=round(found.recent, 4),
            )
        return found

    def _current(self) -> dict[str, _Version]:
        found = {name: (each.version, each.content_hash) for name, each in self._store.topics().items()}
        return {**found, NO_KNOWLEDGE: (0, self.edge_hash)}

    def _show(self, topic: str, found: TopicConsistency) -> None:
        self._shown.add(topic)
        metrics.CONSISTENCY_MEAN.labels(topic, "fresh").set(found.fresh)
        metrics.CONSISTENCY_MEAN.labels(topic, "recent").set(found.recent)
        metrics.DRIFTING.labels(topic).set(found.drifting)


def _hide(topic: str) -> None:
    for of in ("fresh", "recent"):
        metrics.CONSISTENCY_MEAN.remove(topic, of)
    metrics.DRIFTING.remove(topic)


def _of_these(fields: Mapping[bytes, bytes], current: Mapping[str, _Version]) -> dict[str, TopicConsistency]:
    """What Redis holds of these versions, in order of the topics' names."""
    found = {name.decode(errors="replace"): TopicConsistency.parse(text) for name, text in fields.items()}
    return {
        topic: each
        for topic, each in sorted(found.items())
        if each is not None and current.get(topic) == (each.version, each.content_hash)
    }
