"""Transmission knowledge, the codec's adapters, as cloud, edge, user and Redis pass it on.

Imports no torch, so that the gateway can use it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import structlog
from pydantic import Field

from dekag.errors import MismatchError
from services.common import metrics
from services.common.knowledge import VersionManifest, update_key
from services.proto.downlink_pb2 import TransmissionKnowledge
from services.proto.downlink_pb2 import TransmissionManifest as ManifestMessage

if TYPE_CHECKING:
    from dekag.cala.aligned import AlignedCodec
    from services.common.cache import Cache
    from services.common.settings import CodecSettings

TRANSMISSION_KEY = "dekag:transmission"
_log = structlog.get_logger()


class TransmissionManifest(VersionManifest):
    """One version of a codec's adapters; versions count up over all codecs."""

    base_hash: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of the codec that it fits.")

    def to_proto(self) -> ManifestMessage:
        """The message that ``from_proto`` reads back."""
        return ManifestMessage(**self.model_dump())

    @classmethod
    def from_proto(cls, message: ManifestMessage) -> TransmissionManifest:
        """The manifest that ``message`` carries; pydantic's ValidationError if it carries none."""
        return cls(
            version=message.version,
            content_hash=message.content_hash,
            base_hash=message.base_hash,
            size_bytes=message.size_bytes,
            scores=dict(message.scores),
            created=message.created,
        )


class Codecs:
    """The profile's codec, alone and with each of the adapters that were used lately.

    Args:
        settings: how many adapters are held, and how the codec works.
        cache: Redis, where adapters are looked for first.
        ask: the next service, which is asked where Redis has none: from a content hash to its answer and the
            bytes that crossed.

    Attributes:
        base: the codec alone.
        own: the codec with the adapters of the profile, None if it has none.
    """

    base: AlignedCodec
    own: AlignedCodec | None

    def __init__(
        self,
        settings: CodecSettings,
        cache: Cache,
        ask: Callable[[str], Awaitable[tuple[TransmissionKnowledge, int]]],
    ) -> None:
        self._settings, self._cache, self._ask = settings, cache, ask
        self._held: OrderedDict[str, AlignedCodec] = OrderedDict()
        self._fetching = asyncio.Lock()

    def load(self, codec: str, adapters: str | None) -> None:
        """Loads the profile's codec and adapters from their folders; MismatchError if they do not fit."""
        from dekag.cala.aligned import AlignedCodec
        from dekag.cala.artifact import TransmissionKnowledge

        self.base = AlignedCodec.load(codec, max_batch=self._settings.max_batch)
        self.own = None
        if adapters is not None:
            self.own = self.base.with_knowledge(TransmissionKnowledge.load(adapters))
        if self.own is not None:
            self._keep(self.own)

    def held(self, content_hash: str) -> AlignedCodec | None:
        """The codec with those adapters if it is in memory."""
        if content_hash in self._held:
            self._held.move_to_end(content_hash)
        return self._held.get(content_hash)

    async def get(self, content_hash: str) -> tuple[AlignedCodec, int]:
        """The codec with those adapters, and the bytes that had to be sent for them, 0 if it is in memory.

        Args:
            content_hash: of the adapters; empty for the codec alone.

        Raises:
            MismatchError: what Redis and the next service have is damaged or fits another codec.
            NotFoundError: neither has it.
            UnavailableError: neither can be reached.
        """
        if not content_hash:
            return self.base, 0
        if (held := self.held(content_hash)) is not None:
            return held, 0
        async with self._fetching:
            if (held := self.held(content_hash)) is not None:  # somebody else has just fetched it
                return held, 0
            codec, sent_bytes = await self._from_redis(content_hash)
            if codec is None:
                answer, answer_bytes = await self._ask(content_hash)
                sent_bytes += answer_bytes
                codec = await asyncio.to_thread(self._checked, dict(answer.files), content_hash)
            metrics.KNOWLEDGE_LOADED.labels("adapters").inc()
            self._keep(codec)
        return codec, sent_bytes

    def _keep(self, codec: AlignedCodec) -> None:
        self._held[codec.content_hash] = codec
        while len(self._held) > self._settings.adapters_capacity:
            self._held.popitem(last=False)

    async def _from_redis(self, content_hash: str) -> tuple[AlignedCodec | None, int]:
        fields = await self._cache.get_hash(update_key(content_hash))
        if not fields:
            return None, 0
        files = {name.decode(errors="replace"): data for name, data in fields.items()}
        sent_bytes = sum(len(name) + len(data) for name, data in fields.items())
        try:
            return await asyncio.to_thread(self._checked, files, content_hash), sent_bytes
        except MismatchError as error:
            _log.warning("transmission knowledge in Redis is damaged", error=str(error))
            await self._cache.delete(update_key(content_hash))  # the cloud puts a whole copy there
            return None, sent_bytes

    def _checked(self, files: Mapping[str, bytes], content_hash: str) -> AlignedCodec:
        """The codec with the adapters in ``files``; MismatchError unless they are those, and fit."""
        from dekag.cala.artifact import TransmissionKnowledge

        knowledge = TransmissionKnowledge.from_files(files)
        if knowledge.content_hash != content_hash:
            raise MismatchError(f"transmission knowledge {content_hash[:12]} is not what was announced")
        return self.base.with_knowledge(knowledge)
