"""Selects and fetches the knowledge updates for a request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from dekag.api.limits import MAX_KNOWLEDGE
from dekag.errors import MismatchError, NotFoundError, UnavailableError
from dekag.makd.topics import matching
from services.common import clients
from services.common.artifact_cache import ArtifactCache, CachedResponse, Files
from services.common.cache import Cache
from services.common.knowledge import CATALOGUE_KEY, Manifest
from services.proto.cloud_pb2 import GetKnowledgeRequest, ListKnowledgeRequest

if TYPE_CHECKING:
    from dekag.makd.update import KnowledgeUpdate
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_log = structlog.get_logger()


class Knowledge:
    """Looks up the current knowledge for each request, so that updates need no announcement.

    Args:
        settings: settings of the edge.
        cache: Redis, the first source of the catalogue and of updates.
        cloud: the source if Redis does not have them.
    """

    def __init__(self, settings: EdgeSettings, cache: Cache, cloud: CloudAsyncStub) -> None:
        self._cache, self._cloud = cache, cloud
        self._timeout_s = settings.knowledge_timeout_s
        self._updates: ArtifactCache[KnowledgeUpdate] = ArtifactCache(
            "knowledge", "update", _load, cache, capacity=settings.knowledge_capacity
        )
        self._cached_catalogue: CachedResponse[Mapping[str, Manifest]] = CachedResponse(
            self._query_cloud, {}, keep_s=settings.knowledge_keep_s, subject="which knowledge exists"
        )

    async def choose(self, request: DeliveryRequest, base_hash: str) -> list[Manifest]:
        """The updates to use for ``request``, sorted by topic.

        If the prompt selects the topics, updates that do not fit the model are skipped with a warning.

        Args:
            request: names topics, or leaves the selection to its prompt.
            base_hash: hash of the edge model.

        Raises:
            NotFoundError: a named topic is unknown.
            MismatchError: the update of a named topic fits another model.
            UnavailableError: a topic is named, and neither Redis nor the cloud can be queried.
        """
        if request.knowledge == ():
            return []
        known, is_complete = await self._catalogue()
        if request.knowledge is None:
            topics = matching(request.prompt, {name: manifest.triggers for name, manifest in known.items()})
            selected = [known[name] for name in topics]
            for manifest in selected:
                if manifest.base_hash != base_hash:
                    _log.warning("skipping knowledge of another model", topic=manifest.topic)
            return [manifest for manifest in selected if manifest.base_hash == base_hash][:MAX_KNOWLEDGE]
        for name in request.knowledge:
            if name not in known:
                if not is_complete:
                    raise UnavailableError("the list of knowledge is not available now; try again later")
                names = ", ".join(sorted(known)) or "none yet"
                raise NotFoundError(f"there is no knowledge of topic {name!r}; there is {names}")
            if known[name].base_hash != base_hash:
                raise MismatchError(f"the knowledge of topic {name!r} fits another edge model")
        return [known[name] for name in sorted(request.knowledge)]

    async def fetch(self, manifest: Manifest) -> tuple[KnowledgeUpdate, int]:
        """The update, and the bytes transferred for it, 0 if it was in memory.

        Raises:
            MismatchError: the update is damaged in Redis and in the cloud.
            NotFoundError: it was deleted or replaced in the meantime.
            UnavailableError: neither Redis nor the cloud can be reached.
        """
        return await self._updates.get(manifest.content_hash, partial(self._from_cloud, manifest))

    async def _catalogue(self) -> tuple[Mapping[str, Manifest], bool]:
        """The current manifest of each topic, and whether the list is known to be complete."""
        if fields := await self._cache.get_hash(CATALOGUE_KEY):
            parsed = {name.decode(errors="replace"): Manifest.parse(text) for name, text in fields.items()}
            known = {
                name: manifest for name, manifest in parsed.items() if manifest and manifest.topic == name
            }
            return known, True
        return await self._cached_catalogue.get(), self._cached_catalogue.error is None

    async def _query_cloud(self) -> Mapping[str, Manifest]:
        response = await clients.call(
            self._cloud.ListKnowledge, ListKnowledgeRequest(), "cloud", timeout_s=self._timeout_s
        )
        return {message.topic: Manifest.from_proto(message) for message in response.knowledge}

    async def _from_cloud(self, manifest: Manifest) -> tuple[Files, int]:
        request = GetKnowledgeRequest(topic=manifest.topic, content_hash=manifest.content_hash, files=True)
        response = await clients.call(self._cloud.GetKnowledge, request, "cloud")
        return dict(response.files), request.ByteSize() + response.ByteSize()


def _load(files: Files) -> KnowledgeUpdate:
    from dekag.makd.update import KnowledgeUpdate

    return KnowledgeUpdate.from_files(files)
