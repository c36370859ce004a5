"""Caches for what comes from Redis or else the cloud: artifacts by content hash, and current versions."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, TypeVar

import structlog
from pydantic import ValidationError

from dekag.errors import DekagError, MismatchError
from services.common import metrics
from services.common.cache import Cache
from services.common.knowledge import update_key

Files = Mapping[str, bytes]


class _Hashed(Protocol):
    content_hash: str


_Artifact = TypeVar("_Artifact", bound=_Hashed)
_Response = TypeVar("_Response")
_log = structlog.get_logger()


class ArtifactCache(Generic[_Artifact]):
    """An LRU cache of artifacts.

    Args:
        name: name of the kind of artifact, for messages.
        label: label of the kind of artifact, for metrics.
        load: makes an artifact of its files; raises MismatchError if they are damaged.
        cache: Redis, the first source of an artifact's files.
        capacity: number of artifacts held in memory.
    """

    def __init__(
        self, name: str, label: str, load: Callable[[Files], _Artifact], cache: Cache, *, capacity: int
    ) -> None:
        self._name, self._label, self._load, self._cache = name, label, load, cache
        self._capacity = capacity
        self._held: OrderedDict[str, _Artifact] = OrderedDict()
        self._fetching = asyncio.Lock()

    def held(self, content_hash: str) -> _Artifact | None:
        """The artifact with that hash if it is in memory."""
        if content_hash in self._held:
            self._held.move_to_end(content_hash)
        return self._held.get(content_hash)

    def keep(self, artifact: _Artifact) -> None:
        """Holds an artifact in memory."""
        self._held[artifact.content_hash] = artifact
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)

    async def get(
        self, content_hash: str, fetch: Callable[[], Awaitable[tuple[Files, int]]]
    ) -> tuple[_Artifact, int]:
        """The artifact with that hash, and the bytes transferred for it, 0 if it was in memory.

        Args:
            content_hash: hash of the artifact.
            fetch: gets the files from the next service if Redis does not have them; returns them and the
                bytes transferred.

        Raises:
            MismatchError: the files in Redis and in the next service are damaged or do not fit.
            NotFoundError: neither has them.
            UnavailableError: neither can be reached.
        """
        if (held := self.held(content_hash)) is not None:
            return held, 0
        async with self._fetching:
            if (held := self.held(content_hash)) is not None:  # fetched by a concurrent request
                return held, 0
            artifact, sent_bytes = await self._from_redis(content_hash)
            if artifact is None:
                files, fetched_bytes = await fetch()
                sent_bytes += fetched_bytes
                artifact = await asyncio.to_thread(self._checked, content_hash, files)
            metrics.KNOWLEDGE_LOADED.labels(self._label).inc()
            self.keep(artifact)
        return artifact, sent_bytes

    async def _from_redis(self, content_hash: str) -> tuple[_Artifact | None, int]:
        fields = await self._cache.get_hash(update_key(content_hash))
        if not fields:
            return None, 0
        files = {name.decode(errors="replace"): data for name, data in fields.items()}
        sent_bytes = sum(len(name) + len(data) for name, data in fields.items())
        try:
            return await asyncio.to_thread(self._checked, content_hash, files), sent_bytes
        except MismatchError as error:
            _log.warning(f"{self._name} in Redis is damaged", error=str(error))
            await self._cache.delete(update_key(content_hash))  # the cloud writes an intact copy
            return None, sent_bytes

    def _checked(self, content_hash: str, files: Files) -> _Artifact:
        """The artifact in ``files``; MismatchError unless it is intact and has that hash."""
        artifact = self._load(files)
        if artifact.content_hash != content_hash:
            raise MismatchError(f"{self._name} {content_hash[:12]} does not have the announced content")
        return artifact


class CachedResponse(Generic[_Response]):
    """The cloud's last response about current versions, used when Redis has no catalogue.

    The cloud is queried again when the response is older than `keep_s`; while the cloud cannot be reached,
    the last response remains valid.

    Args:
        query: queries the cloud.
        default: the response before the first query succeeded.
        keep_s: how long a response, or a failure, is kept, s.
        subject: subject of the query, for messages.

    Attributes:
        error: why the last query failed; None if it succeeded.
    """

    def __init__(
        self, query: Callable[[], Awaitable[_Response]], default: _Response, *, keep_s: float, subject: str
    ) -> None:
        self._query, self._response, self._keep_s, self._subject = query, default, keep_s, subject
        self._expires_at = 0.0
        self._lock = asyncio.Lock()
        self.error: Exception | None = None

    async def get(self) -> _Response:
        """The response, at most `keep_s` old unless the cloud cannot be reached."""
        async with self._lock:
            if time.monotonic() >= self._expires_at:
                try:
                    self._response, self.error = await self._query(), None
                except (DekagError, ValidationError) as error:
                    _log.warning(f"neither Redis nor the cloud says {self._subject}", error=str(error))
                    self.error = error
                self._expires_at = time.monotonic() + self._keep_s
        return self._response
