"""The adapters that an edge encodes with: the current ones, whoever published them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from dekag.errors import DekagError, MismatchError, NotFoundError, UnavailableError
from services.common import clients
from services.common.cache import Cache
from services.common.transmission import TRANSMISSION_KEY, TransmissionManifest
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest, TransmissionKnowledge

if TYPE_CHECKING:
    from dekag.cala.aligned import AlignedCodec
    from services.common.transmission import Codecs
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_log = structlog.get_logger()


class CurrentCodec:
    """Asks for each request which adapters are current, so that nothing needs to be announced to an edge.

    Args:
        settings: of the edge.
        cache: Redis, which is asked first.
        cloud: asked where Redis does not know.
        codecs: fetches and holds them.
    """

    def __init__(self, settings: EdgeSettings, cache: Cache, cloud: CloudAsyncStub, codecs: Codecs) -> None:
        self._settings, self._cache, self._cloud, self._codecs = settings, cache, cloud, codecs
        self._asking = asyncio.Lock()
        self._told: TransmissionManifest | None = None
        self._told_until = 0.0
        self._latest: AlignedCodec | None = None
        self._useless, self._useless_until = "", 0.0

    async def get(self) -> tuple[AlignedCodec, int]:
        """The codec with the current adapters, and the bytes that had to be sent for them.

        Where those cannot be had or do not fit, it is the codec with the latest that could, at first the
        profile's own; the codec alone if there never were any.
        """
        latest = self._latest or self._codecs.own or self._codecs.base
        manifest = await self._current()
        if manifest is None or manifest.content_hash == latest.content_hash:
            return latest, 0
        if manifest.content_hash == self._useless and time.monotonic() < self._useless_until:
            return latest, 0
        try:
            codec, sent_bytes = await self._codecs.get(manifest.content_hash)
        except (MismatchError, NotFoundError, UnavailableError) as error:
            _log.warning(
                "current transmission knowledge is of no use", version=manifest.version, error=str(error)
            )
            self._useless = manifest.content_hash
            self._useless_until = time.monotonic() + self._settings.knowledge_keep_s
            return latest, 0
        self._latest = codec
        _log.info("transmission knowledge loaded", version=manifest.version, content_hash=codec.content_hash)
        return codec, sent_bytes

    async def _current(self) -> TransmissionManifest | None:
        """The manifest of what is current for this edge's codec, None if there is or was nothing."""
        base_hash = self._codecs.base.base_hash
        fields = await self._cache.get_hash(TRANSMISSION_KEY)
        if (found := TransmissionManifest.parse(fields.get(base_hash.encode(), b""))) is not None:
            return found
        async with self._asking:
            if time.monotonic() >= self._told_until:
                await self._ask_cloud(base_hash)
                self._told_until = time.monotonic() + self._settings.knowledge_keep_s
        return self._told

    async def _ask_cloud(self, base_hash: str) -> None:
        """Asks the cloud what is current; what it said last holds on while it cannot be reached."""
        try:
            answer = await clients.call(
                self._cloud.GetTransmissionKnowledge,
                GetTransmissionKnowledgeRequest(base_hash=base_hash),
                "cloud",
                timeout_s=self._settings.knowledge_timeout_s,
            )
            self._told = TransmissionManifest.from_proto(answer.manifest)
        except NotFoundError:
            self._told = None
        except (DekagError, ValidationError) as error:
            _log.warning("neither Redis nor the cloud says which adapters are current", error=str(error))


async def ask_cloud(
    cloud: CloudAsyncStub, content_hash: str, base_hash: str
) -> tuple[TransmissionKnowledge, int]:
    """The cloud's answer with the files of those adapters, and the bytes that crossed."""
    request = GetTransmissionKnowledgeRequest(content_hash=content_hash, base_hash=base_hash, files=True)
    answer = await clients.call(cloud.GetTransmissionKnowledge, request, "cloud")
    return answer, request.ByteSize() + answer.ByteSize()
