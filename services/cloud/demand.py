"""The demand policy at work: counts requests and bytes of each topic, decides, and starts distillations.

=====================================  =======================================================
``dekag:demand``                       hash: topic -> JSON of its ``TopicState``
``dekag:budget``                       JSON of the current ``Period``
=====================================  =======================================================

The cloud keeps this state in memory and writes it through to Redis, from where it continues after a restart.
If Redis loses it, the counts start over; nothing else depends on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import structlog
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from dekag.documents import parse_json
from dekag.errors import ConflictError, DekagError, ExhaustedError, NotFoundError, UnavailableError
from dekag.makd.demand import Decision, TopicDemand, decide
from dekag.makd.topics import read_topics, topic_triggers
from dekag.profile import Profile
from services.cloud import distill_request
from services.cloud.jobs import Jobs, JobState
from services.cloud.settings import CloudSettings
from services.cloud.version_store import KnowledgeStore
from services.common import metrics
from services.common.converters import enum_values
from services.common.knowledge import Manifest
from services.common.redis_state import REDIS_ERRORS
from services.proto import cloud_pb2

DEMAND_KEY, BUDGET_KEY = "dekag:demand", "dekag:budget"
ACTIONS = enum_values(cloud_pb2.Action)
BY_FILE = frozenset({cloud_pb2.ACTION_DISTIL, cloud_pb2.ACTION_FILE})
_MAX = 2**53
_log = structlog.get_logger()


class _Stored(BaseModel):
    """State that is kept in Redis as JSON."""

    @classmethod
    def parse(cls, text: str | bytes) -> Self | None:
        """Parses JSON; None if it is invalid."""
        try:
            return cls.model_validate(parse_json(text, cls.__name__))
        except ValueError:  # includes pydantic's ValidationError
            return None


class TopicState(_Stored):
    """What is known of the demand for one topic."""

    requests: int = Field(default=0, ge=0, le=_MAX)
    files: int = Field(default=0, ge=0, le=_MAX)
    file_bytes: float = Field(default=0.0, ge=0, le=_MAX, allow_inf_nan=False)
    sent: bool = False
    wanted: bool = False  # whether a distillation is to be started, or runs
    job: str = ""
    failure: str = ""  # why the last distillation published nothing

    def demand(self) -> TopicDemand:
        """As the library's rule reads it."""
        return TopicDemand(self.requests, self.files, self.file_bytes, self.sent)


class Period(_Stored):
    """The period of the budget that began last."""

    began: float = Field(default=0.0, ge=0, allow_inf_nan=False)  # Unix time, s
    spent_bytes: float = Field(default=0.0, ge=0, le=_MAX, allow_inf_nan=False)


@dataclass(frozen=True)
class _Topics:
    """The topics of one moment, as an API key sees them.

    Attributes:
        known: the updates that fit the edge's model, by topic; none of other keys.
        teachable: topics that the profile has prompts for.
        private: topics that belong to API keys. Demand distils none of them.
        foreign: those of them that belong to other keys.
    """

    known: Mapping[str, Manifest]
    teachable: frozenset[str]
    private: frozenset[str]
    foreign: frozenset[str]

    def __contains__(self, topic: str) -> bool:
        return topic in self.known or topic in self.teachable


class DemandLedger:
    """Counts the demand for topics and decides by the policy of the settings.

    Args:
        settings: of the cloud.
        store: knows which topics have an update.
        jobs: starts distillations.
        redis: keeps the state beyond a restart; None: it is lost then.
    """

    def __init__(
        self, settings: CloudSettings, store: KnowledgeStore, jobs: Jobs, redis: Redis | None
    ) -> None:
        self._settings, self._store, self._jobs, self._redis = settings, store, jobs, redis
        self._states: dict[str, TopicState] = {}
        self._period = Period()
        self._reserved: dict[object, float] = {}  # bytes of files that are being made, by request
        self._restored = redis is None
        self._restoring = asyncio.Lock()
        self._profile: Profile
        self.edge_hash = ""  # hash of the edge model that updates must fit
        self.other_cloud = ""  # why Redis must not be used

    def load(self, profile: Profile) -> None:
        """Sets the profile whose topics can be distilled."""
        self._profile = profile

    async def decide(self, topics: Sequence[str], owner: str | None = None) -> list[Decision]:
        """Counts a request that needs these topics; what it gets for each of them.

        A topic of another API key has no update for the request, whose demand does not count for that topic.
        If one topic makes it a file, the edge draws nothing: then no update of the others is sent with it.

        Args:
            topics: that the prompt needs.
            owner: name of the API key that requests; empty without keys; None: one that may use all topics.
        """
        await self._restore()
        there = await asyncio.to_thread(self._topics, owner)
        decisions, new, planned = [], {}, 0.0
        for topic in topics:
            if topic not in there:
                decisions.append(Decision("wait", "there is no such topic"))
                continue
            is_foreign = topic in there.foreign
            state = TopicState() if is_foreign else self._current(topic, there.known)
            decision = self._decide(topic, state, there, planned)
            decisions.append(decision)
            if is_foreign:
                continue
            state.requests += 1
            if decision.action == "update" and not state.sent and self._settings.demand_policy != "off":
                new[topic] = decision.reason
                planned += there.known[topic].size_bytes
            if decision.action == "distil" and not state.wanted:
                state.wanted, state.job = True, ""  # not the one before, whose update was deleted
                _log.info("distillation pays", topic=topic, why=decision.reason)
            self._states[topic] = state
        if any(decision.action in ("file", "distil") for decision in decisions):
            # also not if the file then cannot be made: what is not charged must not be sent
            instead = Decision("wait", "another topic of the prompt makes it a file")
            decisions = [instead if t in new else d for t, d in zip(topics, decisions, strict=True)]
        else:
            for topic, reason in new.items():
                self._states[topic].sent = True
                self._spend(there.known[topic].size_bytes)
                _log.info("update pays", topic=topic, why=reason)
        await self._save(topics)
        return decisions

    @contextlib.asynccontextmanager
    async def sending(
        self, topics: Sequence[str], files: int, owner: str | None = None
    ) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
        """Reserves the budget for files that are sent in place of these topics' updates.

        Gives what to call with the bytes of each file before it is sent. What was reserved for files that are
        not made, as the request fails, is free again at the end.

        Args:
            topics: without any, nothing is reserved or counted.
            files: how many.
            owner: as in `decide`.

        Raises:
            ExhaustedError: other files that are being made, or were sent, have taken the budget.
        """
        counted: list[str] = []
        expected = 0.0
        if topics:
            await self._restore()
            there = await asyncio.to_thread(self._topics, owner)
            counted = [topic for topic in topics if topic in self._states and topic not in there.foreign]
            states = [self._states[topic] for topic in counted] or [TopicState()]
            expected = max(map(self._next_file_bytes, states))
        if topics and files * expected > max(0.0, self._left()):
            raise ExhaustedError("the budget of the demand policy does not allow the file")
        request = object()
        self._reserved[request] = files * expected

        async def add_file(size_bytes: int) -> None:
            if topics:
                self._reserved[request] -= expected
                await self._add_file(counted, size_bytes)

        try:
            yield add_file
        finally:
            del self._reserved[request]

    async def _add_file(self, topics: Sequence[str], size_bytes: int) -> None:
        """Counts a file for these topics, in equal parts, and spends its bytes."""
        for topic in topics:
            if (state := self._states.get(topic)) is not None:  # None: deleted meanwhile
                state.files += 1
                state.file_bytes += size_bytes / len(topics)
        self._spend(size_bytes)
        await self._save(topics)

    async def messages(self) -> cloud_pb2.DemandList:
        """The demand for each topic that exists and was requested so far, and what its next request gets."""
        await self._restore()
        settings, period = self._settings, self._now()
        there = await asyncio.to_thread(self._topics)
        found = cloud_pb2.DemandList(
            policy=settings.demand_policy,
            budget_bytes=settings.demand_budget_bytes or None,
            spent_bytes=round(period.spent_bytes),
            period_s=settings.demand_period_s,
            period_ends=period.began + settings.demand_period_s if period.began else None,
        )
        # whose a deleted topic was is not known for long, so its name is not shown either
        topics = sorted(topic for topic in self._states if topic in there)
        owners = await asyncio.to_thread(lambda: [self._store.owners.of(topic) for topic in topics])
        for topic, owner in zip(topics, owners, strict=True):
            state = self._current(topic, there.known)
            decision = self._decide(topic, state, there)
            found.demand.add(
                topic=topic,
                requests=state.requests,
                files=state.files,
                file_bytes=round(state.file_bytes),
                update_bytes=self._update_bytes(topic, there.known),
                has_update=topic in there.known,
                sent=state.sent,
                next_file_bytes=round(self._next_file_bytes(state)),
                action=ACTIONS[decision.action],
                reason=decision.reason,
                job=state.job,
                owner=owner,
            )
        return found

    async def start_jobs(self) -> None:
        """Starts the distillations that pay, and notes how those that were started have ended."""
        await self._restore()
        await self._forget()
        for topic, state in list(self._states.items()):
            if not state.wanted:
                continue
            try:
                await self._start_or_follow(topic, state)
            except (ConflictError, UnavailableError) as error:  # may succeed later
                _log.debug("distillation not started", topic=topic, error=str(error))
                continue
            except DekagError as error:
                state.wanted, state.failure = False, f"it cannot be distilled: {error}"
            await self._save([topic])

    async def _start_or_follow(self, topic: str, state: TopicState) -> None:
        if not state.job:
            there = await asyncio.to_thread(self._topics)
            if topic in there.known or topic in there.private:  # somebody else was quicker
                state.wanted = False
                return
            request = cloud_pb2.DistillRequest(topic=topic)
            spec = await asyncio.to_thread(distill_request.from_proto, request, self._profile)
            state.job = (await self._jobs.start(spec)).id
            _log.info("distillation started by demand", topic=topic, job=state.job)
            return
        try:
            job = await self._jobs.get(state.job)
        except NotFoundError:  # its result has expired; whether there is an update, the store knows
            state.wanted, state.job = False, ""
            return
        if job.over:
            state.wanted, state.failure = False, _failure(job)

    async def _restore(self) -> None:
        """Reads the state that an earlier process left in Redis, once."""
        if self._restored or self._redis is None or self.other_cloud:
            return
        async with self._restoring:
            if self._restored:
                return
            try:
                fields: dict[bytes, bytes] = await self._redis.hgetall(DEMAND_KEY)  # type: ignore[misc]
                budget: bytes | None = await self._redis.get(BUDGET_KEY)
            except REDIS_ERRORS as error:
                metrics.REDIS_FAILURES.inc()
                _log.warning("the demand so far is not known: Redis cannot be read", error=str(error))
                self._restored = True
                return
            states = {name.decode(errors="replace"): TopicState.parse(text) for name, text in fields.items()}
            self._states = {name: state for name, state in states.items() if state is not None}
            self._period = Period.parse(budget or b"") or Period()
            self._restored = True

    async def _forget(self) -> None:
        """Drops the demand for topics that have been deleted."""
        if not (counted := list(self._states)):
            return
        try:
            there = await asyncio.to_thread(self._topics)
            gone = [topic for topic in counted if topic not in there]
            if gone and self._redis is not None:
                await self._redis.hdel(DEMAND_KEY, *gone)  # type: ignore[misc]
        except (*REDIS_ERRORS, DekagError) as error:  # or the disk, or a topic's file; the next may succeed
            _log.debug("the demand for deleted topics is kept", error=str(error))
            return
        for topic in gone:
            self._states.pop(topic, None)

    async def _save(self, topics: Sequence[str]) -> None:
        if self._redis is None or self.other_cloud:
            return
        texts = {topic: self._states[topic].model_dump_json() for topic in topics if topic in self._states}
        try:
            if texts:
                await self._redis.hset(DEMAND_KEY, mapping=texts)  # type: ignore[misc]
            await self._redis.set(BUDGET_KEY, self._period.model_dump_json())
        except REDIS_ERRORS as error:
            metrics.REDIS_FAILURES.inc()
            _log.debug("demand not saved", error=str(error))

    def _topics(self, owner: str | None = None) -> _Topics:
        """The topics as an API key of that name sees them; None: all of them."""
        stored = self._store.topics()
        teachable = frozenset(topic_triggers(read_topics(self._profile.topics)))
        # a topic may have an owner before its first update, and some time after its last
        owners = {name: self._store.owners.of(name) for name in teachable - stored.keys()}
        owners |= {name: each.owner for name, each in stored.items()}
        private = frozenset(name for name, its in owners.items() if its)
        foreign = frozenset(name for name in private if owner is not None and owners[name] != owner)
        fitting = {name: each for name, each in stored.items() if each.base_hash == self.edge_hash}
        known = {name: each for name, each in fitting.items() if name not in foreign}
        return _Topics(known, teachable, private, foreign)

    def _current(self, topic: str, known: Mapping[str, Manifest]) -> TopicState:
        """The state of a topic; if the update that was sent has been deleted, its counts start over."""
        state = self._states.get(topic, TopicState())
        if state.sent and topic not in known:
            return TopicState(requests=state.requests)
        return state

    def _decide(self, topic: str, state: TopicState, there: _Topics, planned: float = 0.0) -> Decision:
        """What the next request of a topic gets, if so many bytes are planned for updates of others."""
        settings = self._settings
        cannot = state.failure
        if not cannot and topic in there.private:
            cannot = "the topic belongs to an API key"
        if not cannot and not settings.redis_url:
            cannot = "distillation needs Redis, which is turned off"
        if not cannot and topic not in there.teachable:
            cannot = "the profile has no prompts for the topic"
        return decide(
            settings.demand_policy,
            state.demand(),
            update_bytes=self._update_bytes(topic, there.known),
            next_file_bytes=self._next_file_bytes(state),
            available=topic in there.known,
            cannot_distil=cannot,
            budget_left=self._left(),
            planned=planned,
        )

    def _left(self) -> float:
        """Bytes of the budget that are neither spent in this period nor reserved."""
        if not self._settings.demand_budget_bytes or self._settings.demand_policy == "off":
            return math.inf
        return self._settings.demand_budget_bytes - self._now().spent_bytes - sum(self._reserved.values())

    def _update_bytes(self, topic: str, known: Mapping[str, Manifest]) -> int:
        """Bytes of the topic's update, or else expected of one: the median of those that there are."""
        if topic in known:
            return known[topic].size_bytes
        sizes = [each.size_bytes for each in known.values()]
        return round(statistics.median(sizes)) if sizes else self._settings.demand_update_bytes

    def _next_file_bytes(self, state: TopicState) -> float:
        """Mean bytes of the topic's files, or else of all files so far, or else what the settings expect."""
        if state.files:
            return state.file_bytes / state.files
        files = sum(each.files for each in self._states.values())
        spent = sum(each.file_bytes for each in self._states.values())
        return spent / files if files else float(self._settings.demand_file_bytes)

    def _now(self) -> Period:
        """The current period; a new one, not yet begun, if the last one is over or begins only later.

        The latter is so after the clock was set back: the budget would be spent until it has caught up.
        """
        if not 0 <= time.time() - self._period.began < self._settings.demand_period_s:
            self._period = Period()
        return self._period

    def _spend(self, size_bytes: float) -> None:
        period = self._now()
        self._period = period.model_copy(
            update={"began": period.began or time.time(), "spent_bytes": period.spent_bytes + size_bytes}
        )


def _failure(job: JobState) -> str:
    """Why a job that is over published nothing; empty if it published an update."""
    if job.status == "cancelled":
        return "its distillation was cancelled"
    if job.status == "failed":
        return f"its distillation failed: {job.error}"
    return f"its update was not published: {job.kept_aside}" if job.kept_aside else ""
