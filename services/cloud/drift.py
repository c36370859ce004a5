"""The drift watch: tracks the consistency of sampled images per topic and detects when it falls.

=====================================  =======================================================
``dekag:consistency``                  hash: topic, or "none" -> JSON of its ``TopicConsistency``
``dekag:lock:consistency``             held while a sample is added
=====================================  =======================================================

This state exists in Redis only. If Redis loses it, the watch starts over; nothing else depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

import structlog
from pydantic import Field
from redis.asyncio import Redis

from dekag.documents import parse_json
from dekag.metrics.drift import RunningScore
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import metrics
from services.common.cache import Cache
from services.common.knowledge import NO_KNOWLEDGE
from services.common.redis_state import REDIS_ERRORS
from services.proto.cloud_pb2 import RunningConsistency
from services.proto.downlink_pb2 import KnowledgeUse

CONSISTENCY_KEY = "dekag:consistency"
_LOCK_KEY, _LOCK_S = "dekag:lock:consistency", 5.0
_log = structlog.get_logger()


class TopicConsistency(RunningScore):
    """Consistency of the images generated with one version of a topic's knowledge.

    Images generated without an update have version 0 and the hash of the edge model.
    """

    version: int = Field(description="Version of the knowledge.")
    content_hash: str = Field(description="SHA-256 of its content.")

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """Parses JSON; None if it is invalid or holds no samples."""
        try:
            score = cls.model_validate(parse_json(text, CONSISTENCY_KEY))
        except ValueError:  # includes pydantic's ValidationError
            return None
        return score if score.first and score.last else None

    def to_proto(self) -> RunningConsistency:
        """Returns the message for the API."""
        return RunningConsistency(
            samples=self.samples, fresh=self.fresh, recent=self.recent, drifting=self.drifting
        )


_Version = tuple[int, str]  # version and content hash


class DriftWatch:
    """Accumulates samples and flags topics that should be distilled again.

    Args:
        settings: settings of the cloud.
        store: knows the current versions; samples of other versions are ignored.
        redis: stores the running scores; None disables the watch.
        cache: the same Redis, for reads that must not block.
    """

    def __init__(
        self, settings: CloudSettings, store: KnowledgeStore, redis: Redis | None, cache: Cache
    ) -> None:
        self._settings, self._store, self._redis, self._cache = settings, store, redis, cache
        self._shown: set[str] = set()
        self.edge_hash = ""  # hash of the edge model, which generates images that use no update
        self.other_cloud = ""  # why Redis must not be written

    async def running(self) -> dict[str, TopicConsistency]:
        """Scores by topic for the current versions that have samples; empty without Redis."""
        fields = await self._cache.get_hash(CONSISTENCY_KEY)
        return _current_scores(fields, await asyncio.to_thread(self._current))

    async def add_sample(self, knowledge: Sequence[KnowledgeUse], consistency: float) -> None:
        """Adds a sample if its version is still current. Without Redis only the metrics count it.

        Args:
            knowledge: the updates that the image was generated with. An image with several updates is not
                counted, as a low score could not be attributed to one of them.
            consistency: consistency of the image with the cloud's own.
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
        if self._redis is None or self.other_cloud:
            return
        try:
            self._show(topic, await self._add(self._redis, topic, version, consistency))
        except REDIS_ERRORS as error:
            metrics.REDIS_FAILURES.inc()
            _log.debug("consistency sample lost", topic=topic, error=str(error))

    async def refresh(self) -> None:
        """Updates the metrics from Redis, if there is one, and removes deleted topics.

        Raises:
            redis.exceptions.RedisError: Redis does not answer.
        """
        fields: dict[bytes, bytes] = {}
        if self._redis is not None:
            fields = await self._redis.hgetall(CONSISTENCY_KEY)  # type: ignore[misc]
        current = await asyncio.to_thread(self._current)
        deleted = [name for name in fields if name.decode(errors="replace") not in current]
        if self._redis is not None and deleted:
            await self._redis.hdel(CONSISTENCY_KEY, *deleted)  # type: ignore[misc, arg-type]
        running = _current_scores(fields, current)
        for topic, score in running.items():
            self._show(topic, score)
        for topic in self._shown - running.keys():
            _hide(topic)
        for topic in self._shown - current.keys():
            metrics.CONSISTENCY.remove(topic)
        self._shown &= current.keys()

    async def _add(self, redis: Redis, topic: str, version: _Version, consistency: float) -> TopicConsistency:
        async with redis.lock(_LOCK_KEY, timeout=_LOCK_S, blocking_timeout=_LOCK_S):
            text = await redis.hget(CONSISTENCY_KEY, topic)  # type: ignore[misc]
            old = None if text is None else TopicConsistency.parse(text)
            if old is None or (old.version, old.content_hash) != version:
                old = TopicConsistency(version=version[0], content_hash=version[1])
            new = old.plus(consistency, window=self._settings.drift_window, fall=self._settings.drift_fall)
            await redis.hset(CONSISTENCY_KEY, topic, new.model_dump_json())  # type: ignore[misc]
        if new.drifting != old.drifting:
            log, event = (_log.warning, "drifts") if new.drifting else (_log.info, "no longer drifts")
            log(
                f"knowledge {event}",
                topic=topic,
                version=new.version,
                samples=new.samples,
                fresh=round(new.fresh, 4),
                recent=round(new.recent, 4),
            )
        return new

    def _current(self) -> dict[str, _Version]:
        manifests = self._store.topics().items()
        versions = {topic: (manifest.version, manifest.content_hash) for topic, manifest in manifests}
        return {**versions, NO_KNOWLEDGE: (0, self.edge_hash)}

    def _show(self, topic: str, score: TopicConsistency) -> None:
        self._shown.add(topic)
        metrics.CONSISTENCY_MEAN.labels(topic, "fresh").set(score.fresh)
        metrics.CONSISTENCY_MEAN.labels(topic, "recent").set(score.recent)
        metrics.DRIFTING.labels(topic).set(score.drifting)


def _hide(topic: str) -> None:
    for window in ("fresh", "recent"):
        metrics.CONSISTENCY_MEAN.remove(topic, window)
    metrics.DRIFTING.remove(topic)


def _current_scores(
    fields: Mapping[bytes, bytes], current: Mapping[str, _Version]
) -> dict[str, TopicConsistency]:
    """The scores in Redis that belong to current versions, sorted by topic."""
    scores = {name.decode(errors="replace"): TopicConsistency.parse(text) for name, text in fields.items()}
    return {
        topic: score
        for topic, score in sorted(scores.items())
        if score is not None and current.get(topic) == (score.version, score.content_hash)
    }
