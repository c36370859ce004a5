"""Transmission knowledge, the codec's adapters, as cloud, edge, user and Redis pass it on.

Imports no torch, so that the gateway can use it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from services.common.artifact_cache import ArtifactCache, Files
from services.common.knowledge import VersionManifest
from services.proto.downlink_pb2 import TransmissionKnowledge
from services.proto.downlink_pb2 import TransmissionManifest as ManifestMessage

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from services.common.cache import Cache
    from services.common.settings import CodecSettings

TRANSMISSION_KEY = "dekag:transmission"


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


class CodecCache:
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
        self._max_batch, self._ask = settings.max_batch, ask
        self._codecs: ArtifactCache[AlignedCodec] = ArtifactCache(
            "transmission knowledge", "adapters", self._load, cache, capacity=settings.adapters_capacity
        )
        self.held = self._codecs.held

    def load(self, codec: str, adapters: str | None) -> None:
        """Loads the profile's codec and adapters from their folders; MismatchError if they do not fit."""
        from dekag.cala.aligned_codec import AlignedCodec
        from dekag.cala.artifact import TransmissionKnowledge

        self.base = AlignedCodec.load(codec, max_batch=self._max_batch)
        self.own = None
        if adapters is not None:
            self.own = self.base.with_knowledge(TransmissionKnowledge.load(adapters))
            self._codecs.keep(self.own)

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
        return await self._codecs.get(content_hash, partial(self._fetch, content_hash))

    async def _fetch(self, content_hash: str) -> tuple[Files, int]:
        answer, sent_bytes = await self._ask(content_hash)
        return dict(answer.files), sent_bytes

    def _load(self, files: Files) -> AlignedCodec:
        from dekag.cala.artifact import TransmissionKnowledge

        return self.base.with_knowledge(TransmissionKnowledge.from_files(files))
