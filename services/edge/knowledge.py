"""The knowledge updates that an edge draws with: what there is, what a request needs, fetching it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog

from dekag.errors import MismatchError, NotFoundError, UnavailableError
from dekag.makd.topics import matching
from services.common import clients
from services.common.artifact_cache import ArtifactCache, CachedResponse, Files
from services.common.cache import Cache
from services.common.converters import MAX_KNOWLEDGE
from services.common.knowledge import CATALOGUE_KEY, Manifest
from services.proto.cloud_pb2 import GetKnowledgeRequest, ListKnowledgeRequest

if TYPE_CHECKING:
    from dekag.makd.update import KnowledgeUpdate
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_log = structlog.get_logger()


class Knowledge:
    """Asks for each request what knowledge there is, so that nothing needs to be announced to an edge.

    Args:
        settings: of the edge.
        cache: Redis, where the catalogue and the updates are looked for first.
        cloud: asked where Redis does not know.
    """

    def __init__(self, settings: EdgeSettings, cache: Cache, cloud: CloudAsyncStub) -> None:
        self._cache, self._cloud = cache, cloud
        self._timeout_s = settings.knowledge_timeout_s
        self._updates: ArtifactCache[KnowledgeUpdate] = ArtifactCache(
            "knowledge", "update", _load, cache, capacity=settings.knowledge_capacity
        )
        self._listed: CachedResponse[Mapping[str, Manifest]] = CachedResponse(
            self._ask_cloud, {}, keep_s=settings.knowledge_keep_s, subject="what knowledge there is"
        )

    async def choose(self, request: DeliveryRequest, base_hash: str) -> list[Manifest]:
        """The updates that ``request`` is to be drawn with, in order of the topics' names.

        Those that the prompt needs but that do not fit the model are left out with a warning.

        Args:
            request: names topics, or leaves it to its prompt.
            base_hash: of the edge model.

        Raises:
            NotFoundError: a topic that is named is unknown.
            MismatchError: the update of a topic that is named fits another model.
            UnavailableError: a topic is named, and neither Redis nor the cloud says what there is.
        """
        if request.knowledge == ():
            return []
        known, is_certain = await self._catalogue()
        if request.knowledge is None:
            named = matching(request.prompt, {name: found.triggers for name, found in known.items()})
            chosen = [known[name] for name in named]
            for manifest in chosen:
                if manifest.base_hash != base_hash:
                    _log.warning("knowledge of another model left out", topic=manifest.topic)
            return [manifest for manifest in chosen if manifest.base_hash == base_hash][:MAX_KNOWLEDGE]
        for name in request.knowledge:
            if name not in known:
                if not is_certain:
                    raise UnavailableError("it cannot be found out now what knowledge there is")
                there_is = ", ".join(sorted(known)) or "none yet"
                raise NotFoundError(f"there is no knowledge of topic {name!r}; there is {there_is}")
            if known[name].base_hash != base_hash:
                raise MismatchError(f"the knowledge of topic {name!r} fits another edge model")
        return [known[name] for name in sorted(request.knowledge)]

    async def fetch(self, manifest: Manifest) -> tuple[KnowledgeUpdate, int]:
        """The update and the bytes that had to be sent for it, 0 if it is in memory.

        Raises:
            MismatchError: what Redis and the cloud have of it is damaged.
            NotFoundError: it was deleted or replaced meanwhile.
            UnavailableError: neither Redis nor the cloud can be reached.
        """
        return await self._updates.get(manifest.content_hash, partial(self._from_cloud, manifest))

    async def _catalogue(self) -> tuple[Mapping[str, Manifest], bool]:
        """The current manifest of each topic by name, and whether that is all there is."""
        if fields := await self._cache.get_hash(CATALOGUE_KEY):
            found = {name.decode(errors="replace"): Manifest.parse(text) for name, text in fields.items()}
            known = {name: each for name, each in found.items() if each is not None and each.topic == name}
            return known, True
        return await self._listed.get(), self._listed.error is None

    async def _ask_cloud(self) -> Mapping[str, Manifest]:
        answer = await clients.call(
            self._cloud.ListKnowledge, ListKnowledgeRequest(), "cloud", timeout_s=self._timeout_s
        )
        return {each.topic: Manifest.from_proto(each) for each in answer.knowledge}

    async def _from_cloud(self, manifest: Manifest) -> tuple[Files, int]:
        request = GetKnowledgeRequest(topic=manifest.topic, content_hash=manifest.content_hash, files=True)
        answer = await clients.call(self._cloud.GetKnowledge, request, "cloud")
        return dict(answer.files), request.ByteSize() + answer.ByteSize()


def _load(files: Files) -> KnowledgeUpdate:
    from dekag.makd.update import KnowledgeUpdate

    return KnowledgeUpdate.from_files(files)
