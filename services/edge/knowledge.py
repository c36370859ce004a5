"""Selects and fetches the knowledge updates for a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from dekag.api.limits import MAX_KNOWLEDGE
from dekag.errors import DekagError, MismatchError, NotFoundError, UnavailableError
from dekag.makd.topics import best_matching
from services.common import clients, metrics
from services.common.artifact_cache import ArtifactCache, CachedResponse, Files
from services.common.cache import Cache
from services.common.knowledge import CATALOGUE_KEY, Manifest
from services.common.signing import TrustedKeys
from services.proto.cloud_pb2 import (
    ACTION_DISTIL,
    ACTION_FILE,
    ACTION_UNSPECIFIED,
    ACTION_UPDATE,
    ACTION_WAIT,
    DecideRequest,
    GetKnowledgeRequest,
    ListKnowledgeRequest,
)

if TYPE_CHECKING:
    from dekag.makd.update import KnowledgeUpdate
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings
    from services.proto.cloud_pb2_grpc import CloudAsyncStub

_CHECKED_S = 1.0  # longest time that a key stays trusted after it was removed
_MAX_SEEN = 10_000  # topics, deleted ones among them
_log = structlog.get_logger()


@dataclass(frozen=True)
class Choice:
    """How the image of a request is made.

    Attributes:
        updates: to draw with, sorted by topic.
        file_topics: topics for which the cloud sends its image as a file; empty: the edge draws.
        model: hash of the cloud's model, with `file_topics`; empty if the cloud did not name it.
        sent_bytes: of the messages between cloud and edge that decided it.
    """

    updates: Sequence[Manifest]
    file_topics: Sequence[str] = ()
    model: bytes = b""
    sent_bytes: int = 0


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
        self._asks = settings.demand_policy != "off"
        self._trusted = TrustedKeys(settings.trusted_keys_file)
        self._seen: dict[str, float] = {}
        self._checked_fields: Mapping[bytes, bytes] = {}
        self._checked: Mapping[str, Manifest] = {}
        self._checked_until = 0.0
        self._teachable: Mapping[str, Sequence[str]] = {}
        self._fits: Callable[[KnowledgeUpdate], bool]
        self._updates: ArtifactCache[KnowledgeUpdate] = ArtifactCache(
            "knowledge",
            "update",
            _load,
            cache,
            capacity=settings.knowledge_capacity,
            kept_bytes=settings.knowledge_mib * 2**20,
            is_useful=lambda update: self._fits(update),
        )
        self._cached_catalogue: CachedResponse[Mapping[str, Manifest]] = CachedResponse(
            self._query_cloud, {}, keep_s=settings.knowledge_keep_s, subject="which knowledge exists"
        )

    def load(self, teachable: Mapping[str, Sequence[str]], fits: Callable[[KnowledgeUpdate], bool]) -> None:
        """Sets what the profile says.

        Args:
            teachable: triggers of topics that the cloud can distil, by topic.
            fits: whether the edge's model can draw with an update; others are not held, as they may be larger
                than any that does.
        """
        self._teachable, self._fits = teachable, fits

    async def choose(self, request: DeliveryRequest, base_hash: str) -> Choice:
        """The updates to use for ``request``, or that the cloud sends its image.

        Topics of other API keys do not exist for it. If the prompt selects the topics, those that fit it best
        are used, and updates that do not fit the model are skipped with a warning. With a
        demand policy, the cloud then decides for each topic, unless the request scales their adapters.

        Args:
            request: names topics, or leaves the selection to its prompt.
            base_hash: hash of the edge model.

        Raises:
            NotFoundError: a named topic is unknown.
            MismatchError: the update of a named topic fits another model.
            UnavailableError: a topic is named, and neither Redis nor the cloud can be queried.
        """
        if request.knowledge == ():
            return Choice([])
        everything, is_complete = await self._catalogue()
        known = {name: each for name, each in everything.items() if each.owner in ("", request.owner)}
        if request.knowledge is None:
            triggers = {name: manifest.triggers for name, manifest in known.items()}
            own = {name for name, manifest in known.items() if manifest.owner}
            # of a file of the cloud, which uses no adapters, their scale would say nothing
            if self._asks and request.sampling.adapter_scale == 1.0:
                candidates = {**self._teachable, **triggers}
                topics = await _matching(request.prompt, candidates, MAX_KNOWLEDGE, own)
                return await self._decided(topics, known, base_hash, request.owner) if topics else Choice([])
            fitting = {name: each for name, each in triggers.items() if known[name].base_hash == base_hash}
            topics = await _matching(request.prompt, triggers, len(triggers), own)
            _fitting(topics, known, base_hash)  # says which are skipped
            topics = await _matching(request.prompt, fitting, MAX_KNOWLEDGE, own)
            return Choice([known[name] for name in topics])
        for name in request.knowledge:
            if name not in known:
                if not is_complete:
                    raise UnavailableError("the list of knowledge is not available now; try again later")
                names = ", ".join(sorted(known)) or "none yet"
                raise NotFoundError(f"there is no knowledge of topic {name!r}; there is {names}")
            if known[name].base_hash != base_hash:
                raise MismatchError(f"the knowledge of topic {name!r} fits another edge model")
        return Choice([known[name] for name in sorted(request.knowledge)])

    async def fetch(self, manifest: Manifest) -> tuple[KnowledgeUpdate, int]:
        """The update, and the bytes transferred for it, 0 if it was in memory.

        Raises:
            MismatchError: the update is damaged in Redis and in the cloud.
            NotFoundError: it was deleted or replaced in the meantime.
            UnavailableError: neither Redis nor the cloud can be reached.
        """
        return await self._updates.get(manifest.content_hash, partial(self._from_cloud, manifest))

    async def _decided(
        self, topics: Sequence[str], known: Mapping[str, Manifest], base_hash: str, owner: str
    ) -> Choice:
        """What the cloud decides for these topics; without the cloud, the updates that there are.

        An update that the cloud has, but that this edge cannot use for the request, is replaced by a file:
        the catalogue here may be some time behind.
        """
        lacking = any(topic not in known or known[topic].base_hash != base_hash for topic in topics)
        message = DecideRequest(topics=topics, owner=owner, model=lacking)
        try:
            response = await clients.call(self._cloud.Decide, message, "cloud", timeout_s=self._timeout_s)
        except DekagError as error:
            _log.warning("the cloud does not decide by demand now", topics=list(topics), error=str(error))
            return Choice(_fitting([topic for topic in topics if topic in known], known, base_hash))
        actions = dict(zip(topics, response.actions, strict=False))
        # an action that only a newer cloud knows becomes what is done without it: use the update
        others = {None, ACTION_UNSPECIFIED, ACTION_DISTIL, ACTION_FILE, ACTION_WAIT}
        drawn = [topic for topic in topics if topic in known and actions.get(topic) not in others]
        updates = _fitting(drawn, known, base_hash)
        by_file = {topic for topic in topics if actions.get(topic) == ACTION_UPDATE}
        by_file -= {each.topic for each in updates}
        by_file |= {topic for topic in topics if actions.get(topic) in (ACTION_FILE, ACTION_DISTIL)}
        return Choice(
            updates,
            [topic for topic in topics if topic in by_file],
            response.model,
            message.ByteSize() + response.ByteSize(),
        )

    async def _catalogue(self) -> tuple[Mapping[str, Manifest], bool]:
        """The current manifest of each topic, and whether the list is known to be complete."""
        refused: list[Manifest] = []
        if fields := await self._cache.get_hash(CATALOGUE_KEY):
            if fields == self._checked_fields and time.monotonic() < self._checked_until:
                return self._checked, True
            parsed = {name.decode(errors="replace"): Manifest.parse(text) for name, text in fields.items()}
            known = {
                name: manifest for name, manifest in parsed.items() if manifest and manifest.topic == name
            }
            refused = [manifest for manifest in known.values() if not self._accepts(manifest)]
            if not refused:
                self._checked_fields, self._checked = fields, known
                self._checked_until = time.monotonic() + _CHECKED_S
                self._forget(len(known))
                return known, True
        said = await self._cached_catalogue.get()
        is_complete = self._cached_catalogue.error is None
        # one that the cloud confirms is right: its topic was made again while the clock was set back
        if refused and not (is_complete and all(said.get(each.topic) == each for each in refused)):
            metrics.REJECTED.labels("knowledge").inc()
            _log.warning("asked the cloud which knowledge exists, as what Redis says is not signed by it")
        return said, is_complete

    async def _query_cloud(self) -> Mapping[str, Manifest]:
        response = await clients.call(
            self._cloud.ListKnowledge, ListKnowledgeRequest(), "cloud", timeout_s=self._timeout_s
        )
        known = {message.topic: Manifest.from_proto(message) for message in response.knowledge}
        if not all(map(self._trusted.accepts, known.values())):
            raise MismatchError("the cloud's knowledge is not signed by a trusted key")
        self._seen = {topic: manifest.created for topic, manifest in known.items()}
        return known

    def _accepts(self, manifest: Manifest) -> bool:
        """Whether a manifest in Redis is signed, and no earlier one than has been seen of its topic."""
        if not self._trusted.required:
            return True
        if not self._trusted.accepts(manifest):
            return False
        if manifest.created < self._seen.get(manifest.topic, 0.0):
            return False
        self._seen.pop(manifest.topic, None)  # the topics that were seen last come last
        self._seen[manifest.topic] = manifest.created
        return True

    def _forget(self, topics: int) -> None:
        """Forgets the topics that were seen the longest ago, but none of these current ones."""
        while len(self._seen) > max(_MAX_SEEN, topics):
            del self._seen[next(iter(self._seen))]

    async def _from_cloud(self, manifest: Manifest) -> tuple[Files, int]:
        request = GetKnowledgeRequest(topic=manifest.topic, content_hash=manifest.content_hash, files=True)
        response = await clients.call(self._cloud.GetKnowledge, request, "cloud")
        return dict(response.files), request.ByteSize() + response.ByteSize()


async def _matching(
    prompt: str, triggers: Mapping[str, Sequence[str]], most: int, own: Collection[str]
) -> list[str]:
    """`best_matching` in a thread: the first look at many long triggers takes a second or more."""
    return await asyncio.to_thread(partial(best_matching, prompt, triggers, most, own=own))


def _fitting(topics: Sequence[str], known: Mapping[str, Manifest], base_hash: str) -> list[Manifest]:
    """The updates of these topics that fit the edge's model."""
    for topic in topics:
        if known[topic].base_hash != base_hash:
            _log.warning("skipping knowledge of another model", topic=topic)
    return [known[topic] for topic in topics if known[topic].base_hash == base_hash]


def _load(files: Files, content_hash: str) -> KnowledgeUpdate:
    from dekag.makd.update import KnowledgeUpdate

    return KnowledgeUpdate.from_files(files, announced=content_hash)
