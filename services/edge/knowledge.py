"""The knowledge updates that an edge draws with: what there is, what a request needs, fetching it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from dekag.errors import DekagError, MismatchError, NotFoundError, UnavailableError
from dekag.makd.topics import matching
from services.common import clients, metrics
from services.common.cache import Cache
from services.common.converters import MAX_KNOWLEDGE
from services.common.knowledge import CATALOGUE_KEY, Manifest, update_key
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
        self._settings, self._cache, self._cloud = settings, cache, cloud
        self._updates: OrderedDict[str, KnowledgeUpdate] = OrderedDict()
        self._fetching = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._told: Mapping[str, Manifest] = {}
        self._told_until = 0.0
        self._cloud_error: DekagError | None = None

    async def choose(self, asked: DeliveryRequest, base_hash: str) -> list[Manifest]:
        """The updates that ``asked`` is to be drawn with, in order of the topics' names.

        Those that the prompt needs but that do not fit the model are left out with a warning.

        Args:
            asked: names topics, or leaves it to its prompt.
            base_hash: of the edge model.

        Raises:
            NotFoundError: a topic that is named is unknown.
            MismatchError: the update of a topic that is named fits another model.
            UnavailableError: a topic is named, and neither Redis nor the cloud says what there is.
        """
        if asked.knowledge == ():
            return []
        known = await self._catalogue()
        if asked.knowledge is None:
            named = matching(asked.prompt, {name: found.triggers for name, found in known.items()})
            chosen = [known[name] for name in named]
            for manifest in chosen:
                if manifest.base_hash != base_hash:
                    _log.warning("knowledge of another model left out", topic=manifest.topic)
            return [manifest for manifest in chosen if manifest.base_hash == base_hash][:MAX_KNOWLEDGE]
        for name in asked.knowledge:
            if name not in known:
                if self._cloud_error is not None:
                    raise self._cloud_error
                raise NotFoundError(f"there is no knowledge of topic {name!r}; there is {_listed(known)}")
            if known[name].base_hash != base_hash:
                raise MismatchError(f"the knowledge of topic {name!r} fits another edge model")
        return [known[name] for name in sorted(asked.knowledge)]

    async def fetch(self, manifest: Manifest) -> tuple[KnowledgeUpdate, int]:
        """The update and the bytes that had to be sent for it, 0 if it is in memory.

        Raises:
            MismatchError: what Redis and the cloud have of it is damaged.
            NotFoundError: it was deleted or replaced meanwhile.
            UnavailableError: neither Redis nor the cloud can be reached.
        """
        if (held := self._held(manifest)) is not None:
            return held, 0
        async with self._fetching:
            if (held := self._held(manifest)) is not None:  # somebody else has just fetched it
                return held, 0
            update, sent_bytes = await self._from_redis(manifest)
            if update is None:
                update, from_cloud_bytes = await self._from_cloud(manifest)
                sent_bytes += from_cloud_bytes
            metrics.KNOWLEDGE_LOADED.labels("update").inc()
            self._updates[manifest.content_hash] = update
            while len(self._updates) > self._settings.knowledge_capacity:
                self._updates.popitem(last=False)
        return update, sent_bytes

    def _held(self, manifest: Manifest) -> KnowledgeUpdate | None:
        if manifest.content_hash in self._updates:
            self._updates.move_to_end(manifest.content_hash)
        return self._updates.get(manifest.content_hash)

    async def _catalogue(self) -> Mapping[str, Manifest]:
        """The current manifest of each topic by name."""
        if fields := await self._cache.get_hash(CATALOGUE_KEY):
            found = {name.decode(errors="replace"): Manifest.parse(text) for name, text in fields.items()}
            self._cloud_error = None
            return {name: each for name, each in found.items() if each is not None and each.topic == name}
        async with self._asking:
            if time.monotonic() >= self._told_until:
                await self._ask_cloud()
                self._told_until = time.monotonic() + self._settings.knowledge_keep_s
        return self._told

    async def _ask_cloud(self) -> None:
        """Asks the cloud what there is; what it said last holds on while it cannot be reached."""
        timeout_s = self._settings.knowledge_timeout_s
        try:
            answer = await clients.call(
                self._cloud.ListKnowledge, ListKnowledgeRequest(), "cloud", timeout_s=timeout_s
            )
            self._told = {each.topic: Manifest.from_proto(each) for each in answer.knowledge}
            self._cloud_error = None
        except (DekagError, ValidationError) as error:
            _log.warning("neither Redis nor the cloud says what knowledge there is", error=str(error))
            self._cloud_error = UnavailableError("it cannot be found out now what knowledge there is")

    async def _from_redis(self, manifest: Manifest) -> tuple[KnowledgeUpdate | None, int]:
        fields = await self._cache.get_hash(update_key(manifest.content_hash))
        if not fields:
            return None, 0
        files = {name.decode(errors="replace"): data for name, data in fields.items()}
        sent_bytes = sum(len(name) + len(data) for name, data in fields.items())
        try:
            return await asyncio.to_thread(_checked, files, manifest), sent_bytes
        except MismatchError as error:
            _log.warning("knowledge in Redis is damaged", topic=manifest.topic, error=str(error))
            await self._cache.delete(update_key(manifest.content_hash))  # the cloud puts a whole copy there
            return None, sent_bytes

    async def _from_cloud(self, manifest: Manifest) -> tuple[KnowledgeUpdate, int]:
        request = GetKnowledgeRequest(topic=manifest.topic, content_hash=manifest.content_hash, files=True)
        answer = await clients.call(self._cloud.GetKnowledge, request, "cloud")
        sent_bytes = request.ByteSize() + answer.ByteSize()
        return await asyncio.to_thread(_checked, dict(answer.files), manifest), sent_bytes


def _checked(files: Mapping[str, bytes], manifest: Manifest) -> KnowledgeUpdate:
    """The update in ``files``; MismatchError unless it is, undamaged, the one that the manifest announced."""
    from dekag.makd.update import KnowledgeUpdate

    update = KnowledgeUpdate.from_files(files)
    if (update.content_hash, update.base_hash) != (manifest.content_hash, manifest.base_hash):
        raise MismatchError(f"the knowledge of topic {manifest.topic!r} is not what was announced")
    return update


def _listed(known: Mapping[str, Manifest]) -> str:
    return ", ".join(sorted(known)) or "none yet"
