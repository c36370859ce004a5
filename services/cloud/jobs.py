"""Distillation jobs: a SAQ queue in Redis, and what may be said of a job.

Redis may lose everything: what a job is to do stays on the disk until the job is over
(``JobFolders.orders``), and the cloud queues it again from there.

=====================================  =======================================================
``saq:*``                              the queue and its jobs, as SAQ keeps them
``dekag:jobs``                         sorted set: job id by the time it was created, Unix s
``dekag:outcome:{job id}``             "cancelled" or "published"; whoever writes first decides
``dekag:lock:jobs``                    held while a job is started
=====================================  =======================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
from redis.asyncio import Redis
from saq import Job, Status
from saq.job import TERMINAL_STATUSES
from saq.queue.redis import RedisQueue

from dekag.api.limits import JOB_ID, check_topic
from dekag.documents import parse_json
from dekag.errors import ConflictError, DekagError, NotFoundError, UnavailableError
from services.cloud.job_folder import JobFolders
from services.cloud.settings import CloudSettings, KnowledgeSettings
from services.cloud.version_store import trouble
from services.common import metrics, tracing
from services.common.redis_state import REDIS_ERRORS, Trial, why
from services.common.security import redis_options
from services.proto import cloud_pb2

FUNCTION = "distill"
CANCELLED, PUBLISHED = b"cancelled", b"published"
_QUEUE = "distill"
_JOBS_KEY, _LOCK_KEY, _LOCK_S = "dekag:jobs", "dekag:lock:jobs", 10.0
_LISTED = 100
_UNCLAIMED_S = 2.0  # that a job which was given out may take until its worker has claimed it
_NO_REDIS = "distillation needs Redis, which is turned off (DEKAG_REDIS_URL is none)"
_LONGEST = 64  # name that is looked up
_NO_JOB = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, DekagError)
_log = structlog.get_logger()
_STATUSES = {
    Status.NEW: "queued",
    Status.QUEUED: "queued",
    Status.ACTIVE: "running",
    Status.ABORTING: "cancelled",
    Status.COMPLETE: "finished",
    Status.FAILED: "failed",
    Status.ABORTED: "cancelled",
}
STATUSES = {
    "queued": cloud_pb2.JOB_STATUS_QUEUED,
    "running": cloud_pb2.JOB_STATUS_RUNNING,
    "finished": cloud_pb2.JOB_STATUS_FINISHED,
    "failed": cloud_pb2.JOB_STATUS_FAILED,
    "cancelled": cloud_pb2.JOB_STATUS_CANCELLED,
}
OVER = frozenset({"finished", "failed", "cancelled"})


@dataclass(frozen=True)
class Order:
    """What a job is to distil; JSON can hold it.

    Attributes:
        topic, prompts, triggers: as ``dekag.makd.topics.topic_prompts`` takes them.
        config: fields of ``dekag.makd.config.DistillConfig`` that differ from its defaults.
        force: whether the update is published even if it is not better than what there is.
    """

    topic: str
    prompts: list[str]
    triggers: list[str]
    config: dict[str, Any]
    force: bool = False


@dataclass(frozen=True)
class JobState:
    """What is known of a job; times are Unix times, s.

    Attributes:
        status: "queued", "running", "finished", "failed" or "cancelled".
        stage: "generate" (pictures), "train" (steps) or "score" (pictures); empty before the first.
        done, total: of this stage.
        loss: smoothed training loss.
        finished: when its worker let go of it; a moment after it was cancelled.
        error: why it failed, for people to read.
        version: of the knowledge that it made; None if that was kept aside.
        kept_aside: why it was not published; empty unless it was not.
        scores: of the update on held-out prompts, once the job is finished.
    """

    id: str
    topic: str
    status: str
    stage: str
    done: int
    total: int
    loss: float | None
    error: str
    created: float
    started: float | None
    finished: float | None
    version: int | None
    kept_aside: str
    scores: Mapping[str, float]

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in OVER

    def to_proto(self) -> cloud_pb2.Job:
        """The message."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return cloud_pb2.Job(**fields | {"status": STATUSES[self.status]})


def open_redis(settings: KnowledgeSettings, timeout_s: float) -> Redis:
    """A client for jobs and the catalogue; unlike the cache's, it does fail."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        **redis_options(settings),
    )


class DistillQueue(RedisQueue):
    """SAQ's queue with a sweep of its own.

    SAQ's takes a job off every list for some seconds before it queues it again, so that a second death in
    that time loses the job, and it takes jobs for stuck that were given out a moment ago.

    Args:
        redis: holds the queue.
        folders: know which jobs a living process works at.
    """

    def __init__(self, redis: Redis, folders: JobFolders) -> None:
        super().__init__(redis, name=_QUEUE)
        self._folders = folders
        self._suspects: set[str] = set()

    def deserialize(
        self, payload: dict[str, Any] | str | bytes | None, status: Status | str | None = None
    ) -> Job | None:
        """The job that Redis holds; None where it holds none, or what no cloud or distiller wrote."""
        try:
            job = super().deserialize(payload, status)
            if job is not None:
                _check(job)
        except _NO_JOB as error:
            _log.warning("what is no job in Redis is passed over", error=str(error)[:200])
            return None
        return job

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queues unfinished jobs again that nobody has spoken of for longer than their heartbeat.

        Where a job was given out and its worker holds no claim to it, the worker is dead for sure, and
        nobody waits for the heartbeat.
        Each goes back in one transaction; one that should wait but is on no list goes back when the sweep
        before this one saw the same. A job that has used up its attempts fails instead.
        """
        swept, suspects = [], set()
        async with self.redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S):
            names = _names(await self.redis.zrange(_JOBS_KEY, 0, -1))
            waiting = await self.redis.lrange(self.namespace("queued"), 0, -1)  # type: ignore[misc]
            for job in await self.jobs(names) if names else []:
                if job is None or job.status in TERMINAL_STATUSES or not await self._abandoned(job):
                    continue
                if job.status is Status.QUEUED:
                    if job.id.encode() in waiting:
                        continue
                    suspects.add(job.key)
                    if job.key not in self._suspects:  # perhaps given out a moment ago
                        continue
                if job.retryable:
                    await self.retry(job, "its worker died")
                else:
                    await self.finish(job, Status.FAILED, error="its workers died")
                    metrics.DISTILLATIONS.labels("failed").inc()
                swept.append(job.key)
        self._suspects = suspects
        return swept

    async def _abandoned(self, job: Job) -> bool:
        silent_s = _silent_s(job)
        if silent_s > job.heartbeat or job.status is not Status.ACTIVE or silent_s <= _UNCLAIMED_S:
            return silent_s > job.heartbeat
        return not await asyncio.to_thread(self._folders.is_claimed, job.key)


def _names(found: Iterable[bytes]) -> list[str]:
    """The names of jobs among what the sorted set of jobs holds."""
    texts = (name.decode("ascii", "replace") for name in found)
    return [text for text in texts if JOB_ID.fullmatch(text)]


def _check(job: Job) -> None:
    """One of _NO_JOB unless the job is as `Jobs.start` makes it and a distiller changes it.

    Its name becomes a folder's.
    """
    if JOB_ID.fullmatch(job.key) is None or job.function != FUNCTION:
        raise ValueError(f"{job.function} {job.key}")
    order = Order(**(job.kwargs or {}))
    check_topic(order.topic)
    for texts in (order.prompts, order.triggers):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError("prompts or triggers")
    if not isinstance(order.config, dict) or not isinstance(order.force, bool):
        raise TypeError("config or force")
    _state(job, None).to_proto()
    created = job.meta["created"]
    times = _silent_s(job) + job.heartbeat + created
    # Redis takes no truth value for a number
    if not isinstance(job.retryable, bool) or not math.isfinite(times) or isinstance(created, bool):
        raise ValueError("times")
    for key, value in job.meta.get("trace", {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError("trace")


def _kept(name: str, text: bytes) -> dict[str, Any] | None:
    """What is kept of a job's order, as ``Jobs.start`` wrote it; None if that is not what ``text`` is."""
    try:
        kept: dict[str, Any] = parse_json(text, f"order of job {name[:_LONGEST]}")
        _check(_as_job(name, kept))
    except _NO_JOB as error:
        _log.warning("an order that is none is put aside", job=name[:_LONGEST], error=str(error)[:200])
        return None
    return kept


def _as_job(name: str, kept: Mapping[str, Any]) -> Job:
    """The job as it was before anybody took it up."""
    meta = {"created": kept["created"], "trace": kept["trace"]}
    return Job(FUNCTION, key=name, kwargs=kept["order"], meta=meta)


def _silent_s(job: Job) -> float:
    return time.time() - max(job.queued, job.started, job.touched) / 1000


def open_queue(redis: Redis, folders: JobFolders) -> DistillQueue:
    """The queue of distillations."""
    return DistillQueue(redis, folders)


async def outcome(redis: Redis, job: str) -> bytes | None:
    """CANCELLED or PUBLISHED, None as long as nobody decided."""
    value: bytes | None = await redis.get(_outcome_key(job))
    return value


async def decide(redis: Redis, job: str, how: bytes, keep_s: int) -> bool:
    """Whether the job's outcome is ``how``, now or as decided before: the first who decides is right."""
    await redis.set(_outcome_key(job), how, nx=True, ex=keep_s)
    return await outcome(redis, job) == how


def trial(redis: Redis) -> Trial:
    """Tries what jobs need of Redis."""
    return Trial(redis, _outcome_key(""), scripts=True)


def _outcome_key(job: str) -> str:
    return f"dekag:outcome:{job}"


class Jobs:
    """Starts, shows and cancels jobs; raises UnavailableError where Redis is needed and is not there."""

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings
        self._folders = JobFolders(settings.data_dir)
        self._redis = open_redis(settings, settings.queue_timeout_s) if settings.redis_url else None
        self._queue = open_queue(self._redis, self._folders) if self._redis else None
        self._trial = trial(self._redis) if self._redis else None

    async def trouble(self) -> str:
        """Why no job can be started now; empty if one can."""
        if self._trial is None:
            return _NO_REDIS
        if redis := await self._trial.trouble():
            return f"distillation needs Redis, which {redis}"
        return await asyncio.to_thread(trouble, self._settings.data_dir)

    async def close(self) -> None:
        """Closes the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    async def start(self, order: Order, name: str = "") -> JobState:
        """Queues a job, or finds the one that was queued under this name for the same order.

        Args:
            order: what to distil.
            name: id of the job; empty for a new one.

        Raises:
            ConflictError: another job of the topic is unfinished, or that of this name has another order.
        """
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            await self._restore(redis, queue)
            (known,) = await self._jobs(queue, [name]) if name else [None]
            if known is not None:
                if {"force": False, **(known.kwargs or {})} != vars(order):  # older jobs have no force
                    raise ConflictError(f"job {name} was started for another order; take another key")
                return await self.get(name)
            for state in await self._recent(redis, queue):
                if state.topic == order.topic and not state.over:
                    raise ConflictError(
                        f"job {state.id} already distils topic {order.topic!r}; wait for it or cancel it"
                    )
            name = name or uuid.uuid4().hex
            kept = {"order": vars(order), "created": time.time(), "trace": tracing.outgoing()}
            if full := await asyncio.to_thread(trouble, self._settings.data_dir):
                raise UnavailableError(f"the job cannot be kept: {full}")
            await asyncio.to_thread(self._folders.keep_order, name, json.dumps(kept))
            try:
                job = await self._enqueue(redis, queue, name, kept)
            except BaseException:  # its client is told that it was not started
                self._folders.drop_order(name)
                raise
            if job is None:
                raise ConflictError(f"job {name} exists already")
            return _state(job, None)

    async def restore(self) -> list[str]:
        """Queues the jobs again that Redis has lost, from their orders on the disk; returns their ids."""
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            return await self._restore(redis, queue)

    def _orders(self) -> dict[str, dict[str, Any]]:
        """What is kept of the jobs that are not over, by their ids; puts aside what is damaged."""
        orders: dict[str, dict[str, Any]] = {}
        for name, text in self._folders.orders().items():
            if (kept := _kept(name, text)) is None:
                self._folders.quarantine_order(name)
            else:
                orders[name] = kept
        return orders

    async def _restore(self, redis: Redis, queue: DistillQueue) -> list[str]:
        restored: list[str] = []
        orders = await asyncio.to_thread(self._orders)
        if not orders:
            return restored
        for (name, kept), job in zip(orders.items(), await queue.jobs(list(orders)), strict=True):
            try:
                if await self._restore_one(redis, queue, name, kept, job):
                    restored.append(name)
            except OSError as error:  # of the disk: the other jobs have folders of their own
                _log.warning("a job's folder cannot be used", job=name, error=str(error))
        return restored

    async def _restore_one(
        self, redis: Redis, queue: DistillQueue, name: str, kept: Mapping[str, Any], job: Job | None
    ) -> bool:
        """Whether Redis had lost the job, or its list had; ``job`` is what Redis knows of it."""
        over = job is not None and job.status in TERMINAL_STATUSES
        if over or await outcome(redis, name) == CANCELLED:
            await asyncio.to_thread(self._folders.drop_order, name)
            return False
        if job is not None and await redis.zscore(_JOBS_KEY, name) is not None:
            return False
        if job is not None or await asyncio.to_thread(self._folders.is_claimed, name):
            # its worker writes the job itself again with its next word; only the list forgot it
            await redis.zadd(_JOBS_KEY, {name: kept["created"]})
        else:
            await self._enqueue(redis, queue, name, kept)
        return True

    async def _enqueue(
        self, redis: Redis, queue: DistillQueue, name: str, kept: Mapping[str, Any]
    ) -> Job | None:
        await redis.zadd(_JOBS_KEY, {name: kept["created"]})
        return await queue.enqueue(
            FUNCTION,
            key=name,
            kwargs=kept["order"],
            timeout=0,
            heartbeat=self._settings.job_heartbeat_s,
            retries=self._settings.job_attempts,
            ttl=self._settings.job_keep_s,
            meta={"created": kept["created"], "trace": kept["trace"]},
        )

    async def unfinished(self) -> dict[str, int]:
        """How many jobs there are that are "queued" and "running"."""
        async with self._connected() as (_, queue):
            return {"queued": await queue.count("queued"), "running": await queue.count("active")}

    async def get(self, name: str) -> JobState:
        """The job as it is now; NotFoundError if there is none of that id, or no more."""
        state = None
        async with self._connected() as (redis, queue):
            if len(name) <= _LONGEST:
                (state,) = await self._states(redis, queue, [name])
        if state is None:
            raise NotFoundError(
                f"there is no job {name[:_LONGEST]!r}; jobs are kept for {self._settings.job_keep_s} s"
            )
        return state

    async def recent(self) -> list[JobState]:
        """At most 100 jobs, the newest first."""
        async with self._connected() as (redis, queue):
            return await self._recent(redis, queue)

    async def cancel(self, name: str) -> JobState:
        """Sees to it that the job publishes nothing; ConflictError if it is already over."""
        await self.restore()  # a job that Redis has lost can be cancelled too
        state = await self.get(name)
        async with self._connected() as (redis, queue):
            # the decision outlives the job, so that a worker that comes back late finds it
            keep_s = 2 * self._settings.job_keep_s
            if state.over or not await decide(redis, name, CANCELLED, keep_s):
                raise ConflictError(f"job {name} is already over or publishing its update")
            await asyncio.to_thread(self._folders.drop_order, name)
            job = await queue.job(name)
            if job is not None and job.status is Status.QUEUED:
                await queue.abort(job, "cancelled")
            (now,) = await self._states(redis, queue, [name])
        metrics.DISTILLATIONS.labels("cancelled").inc()  # here, since no distiller may ever see it
        return replace(state, status="cancelled") if now is None else now

    async def watch(self, name: str) -> AsyncIterator[JobState]:
        """The job as it is, and again after each change, until it is over."""
        seen: JobState | None = None
        while seen is None or not seen.over:
            state = await self.get(name)
            if state != seen:
                yield state
                seen = state
            else:
                await asyncio.sleep(self._settings.job_poll_s)

    async def _recent(self, redis: Redis, queue: DistillQueue) -> list[JobState]:
        listed = await redis.zrevrange(_JOBS_KEY, 0, _LISTED - 1)
        names = _names(listed)
        lost = [name for name in await asyncio.to_thread(self._orders) if name not in names]
        found = await self._states(redis, queue, [*names, *lost])
        states = [state for state in found if state is not None]
        known = {state.id.encode() for state in states}
        if gone := [name for name in listed if name not in known]:
            await redis.zrem(_JOBS_KEY, *gone)
        return sorted(states, key=lambda state: state.created, reverse=True)[:_LISTED]

    async def _jobs(self, queue: DistillQueue, names: Sequence[str]) -> Sequence[Job | None]:
        """What Redis knows of the jobs; of those that it has lost, what is on the disk."""
        jobs = list(await queue.jobs(names))
        if None not in jobs:
            return jobs
        orders = await asyncio.to_thread(self._orders)
        for position, name in enumerate(names):
            if jobs[position] is None and name in orders:
                jobs[position] = lost = _as_job(name, orders[name])
                with contextlib.suppress(OSError):  # of the disk: it is not known whether anybody works at it
                    if await asyncio.to_thread(self._folders.is_claimed, name):
                        lost.status = Status.ACTIVE
        return jobs

    async def _states(
        self, redis: Redis, queue: DistillQueue, names: Sequence[str]
    ) -> Sequence[JobState | None]:
        if not names:
            return []
        jobs = await self._jobs(queue, names)
        outcomes = await redis.mget(map(_outcome_key, names))
        return [
            None if job is None else _state(job, decided) for job, decided in zip(jobs, outcomes, strict=True)
        ]

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Redis, DistillQueue]]:
        if self._redis is None or self._queue is None:
            raise UnavailableError(_NO_REDIS)
        try:
            yield self._redis, self._queue
        except REDIS_ERRORS as error:
            if isinstance(error, OSError) and error.filename is not None:  # of the disk
                folder = self._settings.data_dir
                raise UnavailableError(
                    f"DEKAG_DATA_DIR {folder} cannot be used: {error.strerror or error}"
                ) from error
            raise UnavailableError(f"distillation needs Redis, which {why(error)}") from error


def _state(job: Job, decided: bytes | None) -> JobState:
    made: dict[str, Any] = job.result or {}
    status, error = _STATUSES[job.status], made.get("error", "")
    if decided == CANCELLED:
        status = "cancelled"
    elif status == "failed":
        error = f"given up after {job.attempts} workers that took it up died"
    elif error:
        status = "failed"
    return JobState(
        id=job.key,
        topic=(job.kwargs or {})["topic"],
        status=status,
        stage=job.meta.get("stage", ""),
        done=job.meta.get("done", 0),
        total=job.meta.get("total", 0),
        loss=job.meta.get("loss"),
        error=error,
        created=job.meta["created"],
        started=job.meta.get("started"),
        finished=job.completed / 1000 if status in OVER and job.completed else None,
        version=made.get("version"),
        kept_aside=made.get("kept_aside", ""),
        scores=dict(made.get("scores", {})),
    )
