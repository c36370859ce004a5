"""The codec that an edge encodes with: with the current adapters, whoever published them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from dekag.errors import MismatchError, NotFoundError, UnavailableError
from services.common import clients
from services.common.artifact_cache import CachedResponse
from services.common.transmission import TRANSMISSION_KEY, CodecCache, TransmissionManifest
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest, TransmissionKnowledge

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from services.common.cache import Cache
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_log = structlog.get_logger()


class EdgeCodecs(CodecCache):
    """Asks for each request which adapters are current, so that nothing needs to be announced to an edge.

    Args:
        settings: of the edge.
        cache: Redis, which is asked first.
        cloud: asked where Redis does not know.
    """

    def __init__(self, settings: EdgeSettings, cache: Cache, cloud: CloudAsyncStub) -> None:
        super().__init__(settings, cache, self.ask_cloud)
        self._cache, self._cloud = cache, cloud
        self._keep_s, self._timeout_s = settings.knowledge_keep_s, settings.knowledge_timeout_s
        self._announced: CachedResponse[TransmissionManifest | None] = CachedResponse(
            self._ask_what_is_current, None, keep_s=self._keep_s, subject="which adapters are current"
        )
        self._latest: AlignedCodec | None = None
        self._useless, self._useless_until = "", 0.0

    async def current(self) -> tuple[AlignedCodec, int]:
        """The codec with the current adapters, and the bytes that had to be sent for them.

        Where those cannot be had or do not fit, it is the codec with the latest that could, at first the
        profile's own; the codec alone if there never were any.
        """
        latest = self._latest or self.own or self.base
        manifest = await self._current_manifest()
        if manifest is None or manifest.content_hash == latest.content_hash:
            return latest, 0
        if manifest.content_hash == self._useless and time.monotonic() < self._useless_until:
            return latest, 0
        try:
            codec, sent_bytes = await self.get(manifest.content_hash)
        except (MismatchError, NotFoundError, UnavailableError) as error:
            _log.warning(
                "current transmission knowledge is of no use", version=manifest.version, error=str(error)
            )
            self._useless, self._useless_until = manifest.content_hash, time.monotonic() + self._keep_s
            return latest, 0
        self._latest = codec
        _log.info("transmission knowledge loaded", version=manifest.version, content_hash=codec.content_hash)
        return codec, sent_bytes

    async def ask_cloud(self, content_hash: str) -> tuple[TransmissionKnowledge, int]:
        """The cloud's answer with the files of those adapters, and the bytes that crossed."""
        request = GetTransmissionKnowledgeRequest(
            content_hash=content_hash, base_hash=self.base.base_hash, files=True
        )
        answer = await clients.call(self._cloud.GetTransmissionKnowledge, request, "cloud")
        return answer, request.ByteSize() + answer.ByteSize()

    async def _current_manifest(self) -> TransmissionManifest | None:
        """The manifest of what is current for this edge's codec, None if there is or was nothing."""
        fields = await self._cache.get_hash(TRANSMISSION_KEY)
        found = TransmissionManifest.parse(fields.get(self.base.base_hash.encode(), b""))
        return await self._announced.get() if found is None else found

    async def _ask_what_is_current(self) -> TransmissionManifest | None:
        request = GetTransmissionKnowledgeRequest(base_hash=self.base.base_hash)
        try:
            answer = await clients.call(
                self._cloud.GetTransmissionKnowledge, request, "cloud", timeout_s=self._timeout_s
            )
        except NotFoundError:
            return None
        return TransmissionManifest.from_proto(answer.manifest)
