"""What comes from Redis or else the cloud: artifacts by content hash, and what is current."""

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
_Answer = TypeVar("_Answer")
_log = structlog.get_logger()


class ArtifactCache(Generic[_Artifact]):
    """The artifacts that were used lately; the least recently used one makes room.

    Args:
        name: of the kind of artifact, for messages.
        label: of the kind of artifact, for metrics.
        load: the artifact in some files; MismatchError if they are damaged.
        cache: Redis, where an artifact's files are looked for first.
        capacity: artifacts held in memory.
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
        """Hold an artifact in memory."""
        self._held[artifact.content_hash] = artifact
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)

    async def get(
        self, content_hash: str, fetch: Callable[[], Awaitable[tuple[Files, int]]]
    ) -> tuple[_Artifact, int]:
        """The artifact with that hash, and the bytes that had to be sent for it, 0 if it is in memory.

        Args:
            content_hash: of the artifact.
            fetch: asked where Redis has none: the files from the next service, and the bytes that crossed.

        Raises:
            MismatchError: what Redis and the next service have is damaged or does not fit.
            NotFoundError: neither has it.
            UnavailableError: neither can be reached.
        """
        if (held := self.held(content_hash)) is not None:
            return held, 0
        async with self._fetching:
            if (held := self.held(content_hash)) is not None:  # somebody else has just fetched it
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
            await self._cache.delete(update_key(content_hash))  # the cloud puts a whole copy there
            return None, sent_bytes

    def _checked(self, content_hash: str, files: Files) -> _Artifact:
        """The artifact in ``files``; MismatchError unless it is, undamaged, the one with that hash."""
        artifact = self._load(files)
        if artifact.content_hash != content_hash:
            raise MismatchError(f"{self._name} {content_hash[:12]} is not what was announced")
        return artifact


class CachedResponse(Generic[_Answer]):
    """What the cloud last said of what is current, for when Redis does not say.

    The cloud is asked again once its answer is older than `keep_s`; while it cannot be reached, the last
    answer holds.

    Args:
        ask: asks the cloud.
        first: the answer before the cloud gave any.
        keep_s: how long an answer, or a failure to get one, is not asked for again, s.
        subject: of the question, for messages.

    Attributes:
        error: why the last question was not answered; None if it was.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[_Answer]], first: _Answer, *, keep_s: float, subject: str
    ) -> None:
        self._ask, self._answer, self._keep_s, self._subject = ask, first, keep_s, subject
        self._expires_at = 0.0
        self._asking = asyncio.Lock()
        self.error: Exception | None = None

    async def get(self) -> _Answer:
        """The answer as of now, or of at most `keep_s` ago."""
        async with self._asking:
            if time.monotonic() >= self._expires_at:
                try:
                    self._answer, self.error = await self._ask(), None
                except (DekagError, ValidationError) as error:
                    _log.warning(f"neither Redis nor the cloud says {self._subject}", error=str(error))
                    self.error = error
                self._expires_at = time.monotonic() + self._keep_s
        return self._answer
