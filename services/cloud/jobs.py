"""Distillation jobs: a SAQ queue in Redis, and the state of each job.

Redis may lose all data: the specification of a job stays on disk until the job has ended
(``JobFolders.specs``), and the cloud queues the job again from there.

=====================================  =======================================================
``saq:*``                              the queue and its jobs, in SAQ's format
``dekag:jobs``                         sorted set: job id by creation time, Unix s
``dekag:outcome:{job id}``             "cancelled" or "published"; the first write decides
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
from dekag.errors import ConflictError, DekagError, ExhaustedError, NotFoundError, UnavailableError
from services.cloud.job_folder import JobFolders
from services.cloud.settings import CloudSettings, KnowledgeSettings
from services.cloud.version_store import problem
from services.common import metrics, tracing
from services.common.redis_state import REDIS_ERRORS, RedisProbe, explain
from services.common.security import redis_options
from services.proto import cloud_pb2

FUNCTION = "distill"
CANCELLED, PUBLISHED = b"cancelled", b"published"
_QUEUE = "distill"
_JOBS_KEY, _LOCK_KEY, _LOCK_S = "dekag:jobs", "dekag:lock:jobs", 10.0
_LISTED = 100
_FULL_S = 60  # Retry-After when there are too many jobs
_UNCLAIMED_S = 2.0  # longest time from dequeuing a job to claiming it
_NO_REDIS = "distillation needs Redis, which is turned off (DEKAG_REDIS_URL is none)"
_MAX_ID_CHARS = 64  # of an id that is looked up or logged
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
class DistillSpec:
    """The specification of a job; can be stored as JSON.

    Attributes:
        topic, prompts, triggers: arguments of ``dekag.makd.topics.topic_prompts``.
        config: fields of ``dekag.makd.config.DistillConfig`` that differ from its defaults.
        force: whether the update is published even if it is no better than the current one.
    """

    topic: str
    prompts: list[str]
    triggers: list[str]
    config: dict[str, Any]
    force: bool = False


@dataclass(frozen=True)
class JobState:
    """The state of a job; times are Unix times, s.

    Attributes:
        status: "queued", "running", "finished", "failed" or "cancelled".
        stage: "generate" (images), "train" (steps) or "score" (images); empty before the first.
        done, total: progress of this stage.
        loss: smoothed training loss.
        finished: when the distiller released the job; shortly after a cancellation.
        error: why it failed, in plain words.
        version: version of the knowledge that it made; None if it was not published.
        kept_aside: why the update was not published; empty if it was.
        scores: scores of the update on held-out prompts, once the job is finished.
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
        """Whether the state is final."""
        return self.status in OVER

    def to_proto(self) -> cloud_pb2.Job:
        """Returns the message for the API."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return cloud_pb2.Job(**fields | {"status": STATUSES[self.status]})


def open_redis(settings: KnowledgeSettings, timeout_s: float) -> Redis:
    """A Redis client for jobs and the catalogue; unlike the cache, it raises errors."""
    return Redis.from_url(
        settings.redis_url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        **redis_options(settings),
    )


class DistillQueue(RedisQueue):
    """SAQ's queue with a safer sweep.

    SAQ's own sweep removes a job from all lists for some seconds before queuing it again, so that a second
    crash in that time loses the job. It also treats jobs as stuck that were dequeued a moment ago.

    Args:
        redis: holds the queue.
        folders: know which jobs are claimed by a running process.
    """

    def __init__(self, redis: Redis, folders: JobFolders) -> None:
        super().__init__(redis, name=_QUEUE)
        self._folders = folders
        self._suspects: set[str] = set()

    def deserialize(
        self, payload: dict[str, Any] | str | bytes | None, status: Status | str | None = None
    ) -> Job | None:
        """The job in Redis; None if there is none, or if this project did not write it."""
        try:
            job = super().deserialize(payload, status)
            if job is not None:
                _check(job)
        except _NO_JOB as error:
            _log.warning("ignoring an invalid job in Redis", error=str(error)[:200])
            return None
        return job

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queues unfinished jobs again whose heartbeat is overdue.

        A job that was dequeued and is not claimed has certainly lost its distiller; it does not wait for the
        heartbeat. Each job is queued again in one transaction. A queued job that is on no list is queued
        again only if the previous sweep found it like that, too. A job without attempts left fails instead.
        """
        swept, suspects = [], set()
        async with self.redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S):
            names = _job_ids(await self.redis.zrange(_JOBS_KEY, 0, -1))
            waiting = await self.redis.lrange(self.namespace("queued"), 0, -1)  # type: ignore[misc]
            for job in await self.jobs(names) if names else []:
                if job is None or job.status in TERMINAL_STATUSES or not await self._abandoned(job):
                    continue
                if job.status is Status.QUEUED:
                    if job.id.encode() in waiting:
                        continue
                    suspects.add(job.key)
                    if job.key not in self._suspects:  # may have been dequeued a moment ago
                        continue
                if job.retryable:
                    await self.retry(job, "its distiller died")
                else:
                    await self.finish(job, Status.FAILED, error="its distillers died")
                    metrics.DISTILLATIONS.labels("failed").inc()
                swept.append(job.key)
        self._suspects = suspects
        return swept

    async def _abandoned(self, job: Job) -> bool:
        silent_s = _silent_s(job)
        if silent_s > job.heartbeat or job.status is not Status.ACTIVE or silent_s <= _UNCLAIMED_S:
            return silent_s > job.heartbeat
        return not await asyncio.to_thread(self._folders.is_claimed, job.key)


def _job_ids(members: Iterable[bytes]) -> list[str]:
    """The valid job ids among the members of the sorted set of jobs."""
    texts = (member.decode("ascii", "replace") for member in members)
    return [text for text in texts if JOB_ID.fullmatch(text)]


def _check(job: Job) -> None:
    """Raises one of _NO_JOB unless `Jobs.start` and the distillers could have written this job.

    Its id becomes the name of a folder.
    """
    if JOB_ID.fullmatch(job.key) is None or job.function != FUNCTION:
        raise ValueError(f"{job.function} {job.key}")
    spec = DistillSpec(**(job.kwargs or {}))
    check_topic(spec.topic)
    for texts in (spec.prompts, spec.triggers):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError("prompts or triggers")
    if not isinstance(spec.config, dict) or not isinstance(spec.force, bool):
        raise TypeError("config or force")
    _state(job, None).to_proto()
    created = job.meta["created"]
    times = _silent_s(job) + job.heartbeat + created
    # bool is a subclass of int, but Redis rejects it as a number
    if not isinstance(job.retryable, bool) or not math.isfinite(times) or isinstance(created, bool):
        raise ValueError("times")
    for key, value in job.meta.get("trace", {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError("trace")


def _parse_spec(name: str, text: bytes) -> dict[str, Any] | None:
    """The specification that ``Jobs.start`` saved; None if ``text`` is not valid."""
    try:
        saved: dict[str, Any] = parse_json(text, f"specification of job {name[:_MAX_ID_CHARS]}")
        _check(_as_job(name, saved))
    except _NO_JOB as error:
        _log.warning("invalid job specification", job=name[:_MAX_ID_CHARS], error=str(error)[:200])
        return None
    return saved


def _as_job(name: str, saved: Mapping[str, Any]) -> Job:
    """The job in its initial state."""
    meta = {"created": saved["created"], "trace": saved["trace"]}
    return Job(FUNCTION, key=name, kwargs=saved["order"], meta=meta)


def _silent_s(job: Job) -> float:
    return time.time() - max(job.queued, job.started, job.touched) / 1000


async def outcome(redis: Redis, job: str) -> bytes | None:
    """CANCELLED or PUBLISHED; None while undecided."""
    value: bytes | None = await redis.get(_outcome_key(job))
    return value


async def decide(redis: Redis, job: str, choice: bytes, keep_s: int) -> bool:
    """Sets the job's outcome if it is undecided; returns whether the outcome is ``choice``."""
    await redis.set(_outcome_key(job), choice, nx=True, ex=keep_s)
    return await outcome(redis, job) == choice


def redis_probe(redis: Redis) -> RedisProbe:
    """A probe for the operations that jobs need."""
    return RedisProbe(redis, _outcome_key(""), scripts=True)


def _outcome_key(job: str) -> str:
    return f"dekag:outcome:{job}"


class Jobs:
    """Starts, shows and cancels jobs; raises UnavailableError if Redis cannot be used."""

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings
        self._folders = JobFolders(settings.data_dir)
        self._redis = open_redis(settings, settings.queue_timeout_s) if settings.redis_url else None
        self._queue = DistillQueue(self._redis, self._folders) if self._redis else None
        self._probe = redis_probe(self._redis) if self._redis else None

    async def problem(self) -> str:
        """Why no job can be started now; empty if jobs can be started."""
        if self._probe is None:
            return _NO_REDIS
        if redis := await self._probe.problem():
            return f"distillation needs Redis, which {redis}"
        return await asyncio.to_thread(problem, self._settings.data_dir)

    async def close(self) -> None:
        """Closes the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    async def start(self, spec: DistillSpec, name: str = "", client: str = "") -> JobState:
        """Queues a job, or returns the job that was queued with this id and the same specification.

        Args:
            spec: what to distil.
            name: id of the job; empty for a new one.
            client: whose job it is.

        Raises:
            ExhaustedError: too many jobs are unfinished, of this client or in all.
            ConflictError: another job of the topic is unfinished, or the job with this id has another
                specification.
        """
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            await self._restore(redis, queue)
            (known,) = await self._jobs(queue, [name]) if name else [None]
            if known is not None:
                if {"force": False, **(known.kwargs or {})} != vars(spec):  # older jobs have no force
                    raise ConflictError(
                        f"job {name} was started with other parameters; use another idempotency key"
                    )
                return await self.get(name)
            for state in await self._recent(redis, queue):
                if state.topic == spec.topic and not state.over:
                    raise ConflictError(
                        f"job {state.id} is already distilling topic {spec.topic!r}; wait for it or cancel it"
                    )
            await self._check_room(client)
            name = name or uuid.uuid4().hex
            saved = {
                "order": vars(spec),
                "created": time.time(),
                "trace": tracing.outgoing(),
                "client": client,
            }
            if disk_problem := await asyncio.to_thread(problem, self._settings.data_dir):
                raise UnavailableError(f"the job cannot be saved: {disk_problem}")
            await asyncio.to_thread(self._folders.save_spec, name, json.dumps(saved))
            try:
                job = await self._enqueue(redis, queue, name, saved)
            except BaseException:  # the client learns that the job was not started
                self._folders.delete_spec(name)
                raise
            if job is None:
                raise ConflictError(f"job {name} exists already")
            return _state(job, None)

    async def _check_room(self, client: str) -> None:
        """ExhaustedError if the client, or all clients together, have as many unfinished jobs as allowed."""
        specs = await asyncio.to_thread(self._specs)
        own = sum(saved.get("client", "") == client for saved in specs.values())
        for jobs, most, whose in (
            (own, self._settings.max_client_jobs, "of this client "),
            (len(specs), self._settings.max_jobs, ""),
        ):
            if jobs >= most:
                raise ExhaustedError(
                    f"{jobs} jobs {whose}wait or run, which is the limit; wait for one to end, or cancel one",
                    retry_after_s=_FULL_S,
                )

    async def restore(self) -> list[str]:
        """Queues jobs again that Redis has lost, from their specifications on disk; returns their ids."""
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            return await self._restore(redis, queue)

    def _specs(self) -> dict[str, dict[str, Any]]:
        """Specifications of the jobs that have not ended, by id; quarantines damaged ones."""
        specs: dict[str, dict[str, Any]] = {}
        for name, text in self._folders.specs().items():
            if (saved := _parse_spec(name, text)) is None:
                self._folders.quarantine_spec(name)
            else:
                specs[name] = saved
        return specs

    async def _restore(self, redis: Redis, queue: DistillQueue) -> list[str]:
        restored: list[str] = []
        specs = await asyncio.to_thread(self._specs)
        if not specs:
            return restored
        for (name, saved), job in zip(specs.items(), await queue.jobs(list(specs)), strict=True):
            try:
                if await self._requeue_if_lost(redis, queue, name, saved, job):
                    restored.append(name)
            except OSError as error:  # from the disk; the other jobs have their own folders
                _log.warning("cannot use the folder of a job", job=name, error=str(error))
        return restored

    async def _requeue_if_lost(
        self, redis: Redis, queue: DistillQueue, name: str, saved: Mapping[str, Any], job: Job | None
    ) -> bool:
        """Restores a job that Redis or its job list has lost; returns whether it had.

        Args:
            redis, queue: where the job belongs.
            name: id of the job.
            saved: its specification.
            job: its entry in Redis, if any.
        """
        over = job is not None and job.status in TERMINAL_STATUSES
        if over or await outcome(redis, name) == CANCELLED:
            await asyncio.to_thread(self._folders.delete_spec, name)
            return False
        if job is not None and await redis.zscore(_JOBS_KEY, name) is not None:
            return False
        if job is not None or await asyncio.to_thread(self._folders.is_claimed, name):
            # the distiller rewrites the job with its next heartbeat; only the list entry is missing
            await redis.zadd(_JOBS_KEY, {name: saved["created"]})
        else:
            await self._enqueue(redis, queue, name, saved)
        return True

    async def _enqueue(
        self, redis: Redis, queue: DistillQueue, name: str, saved: Mapping[str, Any]
    ) -> Job | None:
        await redis.zadd(_JOBS_KEY, {name: saved["created"]})
        return await queue.enqueue(
            FUNCTION,
            key=name,
            kwargs=saved["order"],
            timeout=0,
            heartbeat=self._settings.job_heartbeat_s,
            retries=self._settings.job_attempts,
            ttl=self._settings.job_keep_s,
            meta={"created": saved["created"], "trace": saved["trace"]},
        )

    async def unfinished(self) -> dict[str, int]:
        """Number of jobs that are "queued" and "running"."""
        async with self._connected() as (_, queue):
            return {"queued": await queue.count("queued"), "running": await queue.count("active")}

    async def get(self, name: str) -> JobState:
        """The current state of a job; NotFoundError if the id is unknown or has expired."""
        state = None
        async with self._connected() as (redis, queue):
            if len(name) <= _MAX_ID_CHARS:
                (state,) = await self._states(redis, queue, [name])
        if state is None:
            raise NotFoundError(
                f"there is no job {name[:_MAX_ID_CHARS]!r}; jobs are kept for {self._settings.job_keep_s} s"
            )
        return state

    async def recent(self) -> list[JobState]:
        """At most 100 jobs, newest first."""
        async with self._connected() as (redis, queue):
            return await self._recent(redis, queue)

    async def cancel(self, name: str) -> JobState:
        """Cancels a job, which then publishes nothing; ConflictError if it has already ended."""
        await self.restore()  # a job that Redis has lost can be cancelled, too
        state = await self.get(name)
        async with self._connected() as (redis, queue):
            # the decision outlives the job, so that a distiller that returns late finds it
            keep_s = 2 * self._settings.job_keep_s
            if state.over or not await decide(redis, name, CANCELLED, keep_s):
                raise ConflictError(f"job {name} is already over or publishing its update")
            await asyncio.to_thread(self._folders.delete_spec, name)
            job = await queue.job(name)
            if job is not None and job.status is Status.QUEUED:
                await queue.abort(job, "cancelled")
            (now,) = await self._states(redis, queue, [name])
        metrics.DISTILLATIONS.labels("cancelled").inc()  # counted here, since no distiller may ever see it
        return replace(state, status="cancelled") if now is None else now

    async def watch(self, name: str) -> AsyncIterator[JobState]:
        """Yields the current state of a job, then each change, until the job has ended."""
        last: JobState | None = None
        while last is None or not last.over:
            state = await self.get(name)
            if state != last:
                yield state
                last = state
            else:
                await asyncio.sleep(self._settings.job_poll_s)

    async def _recent(self, redis: Redis, queue: DistillQueue) -> list[JobState]:
        listed = await redis.zrevrange(_JOBS_KEY, 0, _LISTED - 1)
        names = _job_ids(listed)
        lost = [name for name in await asyncio.to_thread(self._specs) if name not in names]
        states = [state for state in await self._states(redis, queue, [*names, *lost]) if state is not None]
        known = {state.id.encode() for state in states}
        if expired := [name for name in listed if name not in known]:
            await redis.zrem(_JOBS_KEY, *expired)
        return sorted(states, key=lambda state: state.created, reverse=True)[:_LISTED]

    async def _jobs(self, queue: DistillQueue, names: Sequence[str]) -> Sequence[Job | None]:
        """The jobs as Redis knows them; those that it has lost, as they are on disk."""
        jobs = list(await queue.jobs(names))
        if None not in jobs:
            return jobs
        specs = await asyncio.to_thread(self._specs)
        for position, name in enumerate(names):
            if jobs[position] is None and name in specs:
                jobs[position] = lost = _as_job(name, specs[name])
                with contextlib.suppress(OSError):  # from the disk: unknown whether the job is claimed
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
            if isinstance(error, OSError) and error.filename is not None:  # from the disk
                folder = self._settings.data_dir
                raise UnavailableError(
                    f"DEKAG_DATA_DIR {folder} cannot be used: {error.strerror or error}"
                ) from error
            raise UnavailableError(f"distillation needs Redis, which {explain(error)}") from error


def _state(job: Job, decided: bytes | None) -> JobState:
    result: dict[str, Any] = job.result or {}
    status, error = _STATUSES[job.status], result.get("error", "")
    if decided == CANCELLED:
        status = "cancelled"
    elif status == "failed":
        error = f"given up after {job.attempts} attempts: the distiller died each time"
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
        version=result.get("version"),
        kept_aside=result.get("kept_aside", ""),
        scores=dict(result.get("scores", {})),
    )
