"""The codec with the current adapters, as used by the edge."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from dekag.errors import MismatchError, NotFoundError, UnavailableError
from services.common import clients, metrics
from services.common.artifact_cache import CachedResponse
from services.common.signing import TrustedKeys
from services.common.transmission import TRANSMISSION_KEY, CodecCache, TransmissionManifest
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest, TransmissionKnowledge

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from services.common.cache import Cache
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_log = structlog.get_logger()


class EdgeCodecs(CodecCache):
    """Looks up the current adapters for each request, so that new versions need no announcement.

    Args:
        settings: settings of the edge.
        cache: Redis, which is queried first.
        cloud: queried if Redis does not have them.
    """

    def __init__(self, settings: EdgeSettings, cache: Cache, cloud: CloudAsyncStub) -> None:
        super().__init__(settings, cache, self.fetch_from_cloud)
        self._cache, self._cloud = cache, cloud
        self._keep_s, self._timeout_s = settings.knowledge_keep_s, settings.knowledge_timeout_s
        self._cached_manifest: CachedResponse[TransmissionManifest | None] = CachedResponse(
            self._query_cloud, None, keep_s=self._keep_s, subject="which adapters are current"
        )
        self._trusted = TrustedKeys(settings.trusted_keys_file)
        self._latest: AlignedCodec | None = None
        self._rejected_hash, self._rejected_until = "", 0.0

    async def current(self) -> tuple[AlignedCodec, int]:
        """The codec with the current adapters, and the bytes transferred for them.

        If they cannot be fetched or do not fit, the latest usable ones are used instead: those of an earlier
        request, else the profile's own, else none.
        """
        latest = self._latest or self.own or self.base
        manifest = await self._current_manifest()
        if manifest is None or manifest.content_hash == latest.content_hash:
            return latest, 0
        if manifest.content_hash == self._rejected_hash and time.monotonic() < self._rejected_until:
            return latest, 0
        try:
            codec, sent_bytes = await self.get(manifest.content_hash)
        except (MismatchError, NotFoundError, UnavailableError) as error:
            _log.warning(
                "cannot use the current transmission knowledge", version=manifest.version, error=str(error)
            )
            self._rejected_hash, self._rejected_until = (
                manifest.content_hash,
                time.monotonic() + self._keep_s,
            )
            return latest, 0
        self._latest = codec
        _log.info("transmission knowledge loaded", version=manifest.version, content_hash=codec.content_hash)
        return codec, sent_bytes

    async def fetch_from_cloud(self, content_hash: str) -> tuple[TransmissionKnowledge, int]:
        """The cloud's response with the files of those adapters, and the bytes transferred."""
        request = GetTransmissionKnowledgeRequest(
            content_hash=content_hash, base_hash=self.base.base_hash, files=True
        )
        response = await clients.call(self._cloud.GetTransmissionKnowledge, request, "cloud")
        return response, request.ByteSize() + response.ByteSize()

    async def _current_manifest(self) -> TransmissionManifest | None:
        """The manifest of the current adapters for this edge's codec; None if there are none."""
        fields = await self._cache.get_hash(TRANSMISSION_KEY)
        manifest = TransmissionManifest.parse(fields.get(self.base.base_hash.encode(), b""))
        if manifest is not None and not self._trusted.accepts(manifest):
            metrics.REJECTED.labels("transmission").inc()
            _log.warning("asking the cloud for the adapters, as those in Redis are not signed by it")
            manifest = None
        return await self._cached_manifest.get() if manifest is None else manifest

    async def _query_cloud(self) -> TransmissionManifest | None:
        request = GetTransmissionKnowledgeRequest(base_hash=self.base.base_hash)
        try:
            response = await clients.call(
                self._cloud.GetTransmissionKnowledge, request, "cloud", timeout_s=self._timeout_s
            )
        except NotFoundError:
            return None
        manifest = TransmissionManifest.from_proto(response.manifest)
        if not self._trusted.accepts(manifest):
            raise MismatchError("the cloud's adapters are not signed by a trusted key")
        return manifest
