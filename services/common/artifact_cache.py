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
_MAX_REMEMBERED = 10_000  # hashes of what was fetched


class _Hashed(Protocol):
    content_hash: str


_Artifact = TypeVar("_Artifact", bound=_Hashed)
_Response = TypeVar("_Response")
_log = structlog.get_logger()


class ArtifactCache(Generic[_Artifact]):
    """An LRU cache of artifacts, and of the files that they were made of, which take less memory.

    Args:
        name: name of the kind of artifact, for messages.
        label: label of the kind of artifact, for metrics.
        load: makes an artifact of its files and of the hash that it must have, compared before the rest is
            read; raises MismatchError if it has another, or the files are damaged.
        cache: Redis, the first source of an artifact's files.
        capacity: number of artifacts held in memory.
        kept_bytes: memory for files, from which artifacts are made again.
        is_useful: whether an artifact, which is intact, is of use here; others are not held.
    """

    def __init__(
        self,
        name: str,
        label: str,
        load: Callable[[Files, str], _Artifact],
        cache: Cache,
        *,
        capacity: int,
        kept_bytes: int = 0,
        is_useful: Callable[[_Artifact], bool] = lambda _: True,
    ) -> None:
        self._name, self._label, self._load, self._cache = name, label, load, cache
        self._capacity, self._kept_bytes, self._is_useful = capacity, kept_bytes, is_useful
        self._held: OrderedDict[str, _Artifact] = OrderedDict()
        self._files: OrderedDict[str, Files] = OrderedDict()
        self._fetched: OrderedDict[str, None] = OrderedDict()
        self._fetching = asyncio.Lock()

    def held(self, content_hash: str) -> _Artifact | None:
        """The artifact with that hash if it is in memory."""
        for kept in (self._held, self._files):
            if content_hash in kept:
                kept.move_to_end(content_hash)
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
            if (files := self._files.get(content_hash)) is not None:
                self._files.move_to_end(content_hash)
                artifact, sent_bytes = await asyncio.to_thread(self._load, files, content_hash), 0
            else:
                artifact, sent_bytes = await self._fetch(content_hash, fetch)
            if self._is_useful(artifact):
                self.keep(artifact)
        return artifact, sent_bytes

    async def _fetch(
        self, content_hash: str, fetch: Callable[[], Awaitable[tuple[Files, int]]]
    ) -> tuple[_Artifact, int]:
        artifact, sent_bytes = await self._from_redis(content_hash)
        if artifact is None:
            files, fetched_bytes = await fetch()
            sent_bytes += fetched_bytes
            artifact = await asyncio.to_thread(self._load, files, content_hash)
            self._keep_files(content_hash, files)
        metrics.KNOWLEDGE_LOADED.labels(self._label).inc()
        if content_hash in self._fetched:  # its bytes are paid for once more
            metrics.KNOWLEDGE_FETCHED_AGAIN.labels(self._label).inc()
            _log.info(f"{self._name} fetched again: it had been dropped", bytes=sent_bytes, hash=content_hash)
        self._fetched[content_hash] = None
        self._fetched.move_to_end(content_hash)
        while len(self._fetched) > _MAX_REMEMBERED:
            self._fetched.popitem(last=False)
        return artifact, sent_bytes

    def _keep_files(self, content_hash: str, files: Files) -> None:
        if _size(files) > self._kept_bytes:  # nothing else is dropped for what cannot be kept
            return
        self._files[content_hash] = files
        left = self._kept_bytes - sum(map(_size, self._files.values()))
        while left < 0:
            left += _size(self._files.popitem(last=False)[1])

    async def _from_redis(self, content_hash: str) -> tuple[_Artifact | None, int]:
        fields = await self._cache.get_hash(update_key(content_hash))
        if not fields:
            return None, 0
        files = {name.decode(errors="replace"): data for name, data in fields.items()}
        sent_bytes = _size(fields)
        try:
            artifact = await asyncio.to_thread(self._load, files, content_hash)
        except MismatchError as error:
            _log.warning(f"{self._name} in Redis is damaged", error=str(error))
            await self._cache.delete(update_key(content_hash))  # the cloud writes an intact copy
            return None, sent_bytes
        self._keep_files(content_hash, files)
        return artifact, sent_bytes


def _size(files: Mapping[str, bytes] | Mapping[bytes, bytes]) -> int:
    """Bytes of names and contents."""
    return sum(len(name) + len(data) for name, data in files.items())


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
