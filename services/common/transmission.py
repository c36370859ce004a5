"""Transmission knowledge, the codec's adapters: its manifest, and a cache of codecs with adapters.

Imports no torch, so that the gateway can use it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from dekag.errors import InvalidInputError
from services.common.artifact_cache import ArtifactCache, Files
from services.common.knowledge import VersionManifest
from services.proto.downlink_pb2 import TransmissionKnowledge
from services.proto.downlink_pb2 import TransmissionManifest as ManifestMessage

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.pixel_modules import AnyPixelCodec
    from dekag.profile import Profile
    from services.common.cache import Cache
    from services.common.settings import CodecSettings

TRANSMISSION_KEY = "dekag:transmission"


class TransmissionManifest(VersionManifest):
    """One version of a codec's adapters; version numbers are shared by all codecs."""

    base_hash: str = Field(pattern="^[0-9a-f]{64}$", description="Hash of the codec that it fits.")

    def to_proto(self) -> ManifestMessage:
        """Returns the message; the inverse of ``from_proto``."""
        return ManifestMessage(**self.model_dump())

    @classmethod
    def from_proto(cls, message: ManifestMessage) -> TransmissionManifest:
        """The manifest in ``message``; raises pydantic's ValidationError if it is invalid."""
        return cls(
            version=message.version,
            content_hash=message.content_hash,
            base_hash=message.base_hash,
            size_bytes=message.size_bytes,
            scores=dict(message.scores),
            created=message.created,
            signature=message.signature,
        )


class CodecCache:
    """The profile's codecs without adapters, and an LRU cache of its codec with adapters.

    Args:
        settings: capacity of the cache, and largest batch of the codec.
        cache: Redis, the first source of adapters.
        fetch: gets adapters from the next service by content hash; returns the response and the bytes
            transferred.

    Attributes:
        base: the codec without adapters.
        unaligned: the codec of unaligned deliveries; the same as `base` unless the profile names another.
        own: the codec with the adapters of the profile; None if it has none.
        pixels: the codec of pixels; None if the profile has none.
    """

    base: AlignedCodec
    unaligned: AlignedCodec
    own: AlignedCodec | None
    pixels: AnyPixelCodec | None

    def __init__(
        self,
        settings: CodecSettings,
        cache: Cache,
        fetch: Callable[[str], Awaitable[tuple[TransmissionKnowledge, int]]],
    ) -> None:
        self._max_batch, self._fetch = settings.max_batch, fetch
        self._codecs: ArtifactCache[AlignedCodec] = ArtifactCache(
            "transmission knowledge", "adapters", self._load, cache, capacity=settings.adapters_capacity
        )
        self.held = self._codecs.held

    def load(self, profile: Profile) -> None:
        """Loads the profile's codecs and adapters from their folders; MismatchError on a mismatch."""
        from dekag.cala.aligned_codec import AlignedCodec
        from dekag.cala.artifact import TransmissionKnowledge
        from dekag.inventory import check_latents
        from dekag.pixel_modules import load_pixel_codec

        check_latents(profile)
        self.unaligned = self.base = AlignedCodec.load(profile.codec, max_batch=self._max_batch)
        if profile.unaligned_codec is not None:
            self.unaligned = AlignedCodec.load(profile.unaligned_codec, max_batch=self._max_batch)
        self.pixels = None if profile.pixel_codec is None else load_pixel_codec(profile.pixel_codec)
        self.own = None
        if profile.adapters is not None:
            self.own = self.base.with_knowledge(TransmissionKnowledge.load(profile.adapters))
            self._codecs.keep(self.own)

    def of_pixels(self) -> AnyPixelCodec:
        """The codec of pixels; InvalidInputError if the profile has none."""
        if self.pixels is None:
            raise InvalidInputError("delivery", "another one: the profile names no pixel_codec", "pixels")
        return self.pixels

    async def get(self, content_hash: str) -> tuple[AlignedCodec, int]:
        """The codec with those adapters, and the bytes transferred for them, 0 if it was in memory.

        Args:
            content_hash: hash of the adapters; empty for the codec without adapters.

        Raises:
            MismatchError: the adapters in Redis and in the next service are damaged or fit another codec.
            NotFoundError: neither has them.
            UnavailableError: neither can be reached.
        """
        if not content_hash:
            return self.base, 0
        return await self._codecs.get(content_hash, partial(self._fetch_files, content_hash))

    async def _fetch_files(self, content_hash: str) -> tuple[Files, int]:
        response, sent_bytes = await self._fetch(content_hash)
        return dict(response.files), sent_bytes

    def _load(self, files: Files, content_hash: str) -> AlignedCodec:
        from dekag.cala.artifact import TransmissionKnowledge

        knowledge = TransmissionKnowledge.from_files(
            files, announced=content_hash, base_hash=self.base.base_hash
        )
        return self.base.with_knowledge(knowledge)
