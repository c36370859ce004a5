"""Distillation jobs: a SAQ queue in Redis, and the state of each job.

Which jobs exist and what was decided about them is on disk (``services.cloud.job_folder``); Redis only hands
them out and holds their progress. If it loses them, the cloud queues them again; if it was restored from a
backup, the jobs in it that have ended are dropped.

=====================================  =======================================================
``saq:*``                              the queue and its jobs, in SAQ's format
``saq:distill:turns``                  sorted set: client by its last turn, which counts up
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
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import structlog
from redis.asyncio import Redis
from saq import Job, Status
from saq.job import TERMINAL_STATUSES
from saq.queue.redis import RedisQueue

from dekag.api.limits import JOB_ID, check_job_id, check_topic
from dekag.documents import parse_json
from dekag.errors import ConflictError, DekagError, ExhaustedError, NotFoundError, UnavailableError
from services.cloud.housekeeping import check_quotas
from services.cloud.job_folder import JobFolders, is_final, split_order
from services.cloud.leases import other_cloud
from services.cloud.settings import CloudSettings
from services.cloud.version_store import disk_errors, problem
from services.common import metrics, tracing
from services.common.redis_client import open_redis
from services.common.redis_state import REDIS_ERRORS, RedisProbe, explain
from services.proto import cloud_pb2

FUNCTION = "distill"
_QUEUE = "distill"
_LOCK_KEY, _LOCK_S = "dekag:lock:jobs", 10.0
_CLIENTS = 1000  # whose last turns are remembered
# KEYS: queued, active; ARGV: id of a job in Redis. Returns whether it was queued.
_TAKE = """
if redis.call('lrem', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('rpush', KEYS[2], ARGV[1])
return 1
"""
_LISTED = 100
_FULL_S = 60  # Retry-After when there are too many jobs
_UNCLAIMED_S = 2.0  # longest time from dequeuing a job to claiming it
_UNTAKEN_S = 0.2
_NO_REDIS = "distillation needs Redis, which is turned off (DEKAG_REDIS_URL is none)"
_MAX_ID_CHARS = 64  # of an id that is looked up or logged
_NO_JOB = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, DekagError)
_P = ParamSpec("_P")
_T = TypeVar("_T")
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
        texts_hash: hash of the file that has prompts and triggers in place of the specification, see
            ``services.cloud.job_folder``; empty if the specification has all of them.
    """

    topic: str
    prompts: list[str]
    triggers: list[str]
    config: dict[str, Any]
    force: bool = False
    texts_hash: str = ""

    def split(self) -> tuple[dict[str, Any], bytes]:
        """The order as it is saved and queued, and the file of its texts; empty if it has none."""
        # a field that is left out lets an earlier release read the order
        return split_order({name: value for name, value in vars(self).items() if name != "texts_hash"})


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
        owner: name of the API key that started it, empty without keys; None of a job of an earlier release.
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
    owner: str | None = None

    @property
    def over(self) -> bool:
        """Whether the state is final."""
        return self.status in OVER

    def to_proto(self) -> cloud_pb2.Job:
        """Returns the message for the API."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return cloud_pb2.Job(**fields | {"status": STATUSES[self.status]})


class DistillQueue(RedisQueue):
    """SAQ's queue with a safer sweep.

    SAQ's own sweep removes a job from all lists for some seconds before queuing it again, so that a second
    crash in that time loses the job. It also treats jobs as stuck that were dequeued a moment ago.
    While the cloud of another data folder uses Redis, no job is taken or swept.

    Args:
        redis: holds the queue.
        folders: know which jobs are claimed by a running process.
        clock: seconds that pass; never set, unlike the clocks of the hosts that write the jobs.
    """

    def __init__(
        self, redis: Redis, folders: JobFolders, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(redis, name=_QUEUE)
        self._folders, self._clock = folders, clock
        self._suspects: set[str] = set()
        self._seen: dict[str, tuple[Any, float]] = {}  # jobs as they are, and since when

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

    async def dequeue(  # SAQ calls it
        self,
        timeout: float = 0.0,  # noqa: ASYNC109
        poll_interval: float = 0.0,
    ) -> Job | None:
        """The next job: clients take turns, and the jobs of each come in their order.

        Args:
            timeout: longest wait for a job, s; 0 waits without end.
            poll_interval: has no effect.
        """
        if await other_cloud(self.redis, self._folders.data_dir):
            await asyncio.sleep(_UNTAKEN_S)
            return None
        # from the head of the list to its head: only waits for a job
        if not await self.redis.blmove(self._queued, self._queued, math.ceil(timeout), "LEFT", "LEFT"):
            return None
        for name, client in await self._in_turn():
            taken = await self.redis.eval(_TAKE, 2, self._queued, self._active, self.job_id(name))  # type: ignore[misc]
            if not taken:  # by another distiller
                continue
            await self._note_turn(client)
            if (job := await self._get_job_by_id(self.job_id(name))) is not None:
                return job
        await asyncio.sleep(_UNTAKEN_S)  # what is left belongs to no job; the next sweep removes it
        return None

    async def _in_turn(self) -> list[tuple[str, str]]:
        """Id and client of the jobs that wait, those first whose client had its last turn the longest ago."""
        specs, waiting = await asyncio.to_thread(read_specs, self._folders), await self._waiting()
        key = self.namespace("turns")
        if await self.redis.type(key) not in (b"zset", b"none"):  # not written by this project
            await self.redis.delete(key)
        listed = await self.redis.zrange(key, 0, -1, withscores=True)
        turns = {member.decode(errors="replace"): turn for member, turn in listed}
        jobs = []
        for name in specs.keys() & waiting:
            client = str(specs[name].get("client", ""))
            jobs.append((turns.get(client, 0.0), specs[name]["created"], name, client))
        return [(name, client) for _, _, name, client in sorted(jobs)]

    async def _note_turn(self, client: str) -> None:
        key = self.namespace("turns")
        last = await self.redis.zrange(key, -1, -1, withscores=True)
        await self.redis.zadd(key, {client: (last[0][1] if last else 0.0) + 1})
        await self.redis.zremrangebyrank(key, 0, -_CLIENTS - 1)

    async def _waiting(self) -> set[str]:
        """Ids in the list of queued jobs."""
        listed = await self.redis.lrange(self._queued, 0, -1)  # type: ignore[misc]
        return {self.job_key_from_id(member.decode(errors="replace")) for member in listed}

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:
        """Queues unfinished jobs again that nobody works on, and drops jobs that have ended.

        A job that is claimed is left alone. One that was dequeued and is not claimed has certainly lost its
        distiller; it does not wait for the heartbeat. Each job is queued again in one transaction. A queued
        job that is on no list is queued again only if the previous sweep found it like that, too. A job
        without attempts left fails instead.
        """
        swept, suspects = [], set()
        if await other_cloud(self.redis, self._folders.data_dir):
            return []
        async with self.redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S):
            names = list(await asyncio.to_thread(read_specs, self._folders))
            await self._drop_ended(set(names))
            waiting = await self._waiting()
            for job in await self.jobs(names) if names else []:
                if job is None or job.status in TERMINAL_STATUSES or not await self._abandoned(job):
                    continue
                if job.status is Status.QUEUED:
                    if job.key in waiting:
                        continue
                    suspects.add(job.key)
                    if job.key not in self._suspects:  # may have been dequeued a moment ago
                        continue
                if job.retryable:
                    await self.retry(job, "its distiller died")
                else:
                    error = f"given up after {job.attempts} attempts: the distiller died each time"
                    if await asyncio.to_thread(self._folders.decide, job.key, "failed"):
                        metrics.DISTILLATIONS.labels("failed").inc()
                    await asyncio.to_thread(self._folders.end, job.key, {"error": error})
                    await self.finish(job, Status.FAILED, error=error)
                swept.append(job.key)
        self._suspects = suspects
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        return swept

    async def _drop_ended(self, unfinished: set[str]) -> None:
        """Removes jobs that have ended from the lists, as those of a Redis restored from a backup."""
        queued = await self.redis.lrange(self._queued, 0, -1)  # type: ignore[misc]  # typed for both clients
        active = await self.redis.lrange(self._active, 0, -1)  # type: ignore[misc]
        for member in {*queued, *active, *await self.redis.zrange(self._incomplete, 0, -1)}:
            name = self.job_key_from_id(member.decode(errors="replace"))
            if name in unfinished or await asyncio.to_thread(_exists, self._folders, name):
                continue
            async with self.redis.pipeline(transaction=True) as transaction:
                transaction.lrem(self._queued, 0, member)
                transaction.lrem(self._active, 0, member)
                transaction.zrem(self._incomplete, member)
                await transaction.execute()
            _log.warning("dropped a job from the queue that has ended", job=name[:_MAX_ID_CHARS])

    async def _abandoned(self, job: Job) -> bool:
        """Whether nothing was heard of a job for too long, and no process has claimed it."""
        longest_s = _UNCLAIMED_S if job.status is Status.ACTIVE else job.heartbeat
        if self._silent_s(job) <= longest_s:
            return False
        return not await asyncio.to_thread(_may_be_claimed, self._folders, job.key)

    def _silent_s(self, job: Job) -> float:
        """How long this process has seen a job unchanged, s."""
        now, state = self._clock(), (job.status, job.queued, job.started, job.touched)
        known, since = self._seen.get(job.key, (None, now))
        if state != known:
            since = now
        self._seen[job.key] = state, since
        return now - since


def read_specs(folders: JobFolders, *, newer: bool = False) -> dict[str, dict[str, Any]]:
    """Specifications of the jobs that have not ended, by id; quarantines damaged ones.

    Those that a newer release has saved stay as they are.

    Args:
        folders: of all jobs.
        newer: return those of a newer release too, which only it can run.
    """
    specs: dict[str, dict[str, Any]] = {}
    for name, text in folders.specs().items():
        if (saved := _parse_spec(name, text)) is None:
            if (saved := _parse_newer_spec(name, text)) is None:
                folders.quarantine_spec(name)
                continue
            if not newer:
                continue
        if not is_final(folders.record(name)):
            specs[name] = saved
    return specs


def _exists(folders: JobFolders, name: str) -> bool:
    """Whether there is an unfinished job of that id, also if its specification cannot be read now."""
    if JOB_ID.fullmatch(name) is None:
        return False
    try:
        return folders.exists(name)
    except OSError:
        return True


def _may_be_claimed(folders: JobFolders, name: str) -> bool:
    """Whether a process has claimed a job, or its folder cannot be read now."""
    try:
        return folders.is_claimed(name)
    except OSError:
        return True


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
    if not isinstance(spec.texts_hash, str):
        raise TypeError("texts_hash")
    _state(job).to_proto()
    created = job.meta["created"]
    times = job.queued + job.started + job.touched + job.heartbeat + created
    # bool is a subclass of int, but Redis rejects it as a number
    if not isinstance(job.retryable, bool) or not math.isfinite(times) or isinstance(created, bool):
        raise ValueError("times")
    if not isinstance(job.meta.get("owner", ""), str):
        raise TypeError("owner")
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


def _parse_newer_spec(name: str, text: bytes) -> dict[str, Any] | None:
    """A specification with fields that this release does not know; None if it is invalid without them."""
    with contextlib.suppress(*_NO_JOB):
        saved: dict[str, Any] = parse_json(text, "specification")
        unknown = saved["order"].keys() - DistillSpec.__dataclass_fields__.keys()
        order = {field: value for field, value in saved["order"].items() if field not in unknown}
        _check(_as_job(name, {**saved, "order": order}))
        if unknown:
            _log.warning("a job of a newer release waits for it", job=name, unknown=sorted(unknown))
            return saved
    return None


def _as_job(name: str, saved: Mapping[str, Any]) -> Job:
    """The job in its initial state."""
    return Job(FUNCTION, key=name, kwargs=saved["order"], meta=_meta(saved))


def _meta(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a job carries besides its order; jobs of earlier releases have no owner."""
    owner = {"owner": saved["owner"]} if "owner" in saved else {}
    return {"created": saved["created"], "trace": saved["trace"], **owner}


def redis_probe(redis: Redis) -> RedisProbe:
    """A probe for the operations that jobs need."""
    return RedisProbe(redis, "dekag:lock:", scripts=True)


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

    async def start(
        self,
        spec: DistillSpec,
        name: str = "",
        client: str = "",
        owner: str = "",
        *,
        limited: bool = True,
    ) -> JobState:
        """Queues a job, or returns the job that was queued with this id and the same specification.

        Args:
            spec: what to distil.
            name: id of the job; empty for a new one.
            client: whose job it is, for limits and turns.
            owner: name of the API key that may see and cancel it; empty without keys.
            limited: whether the limits of an API key apply; not to an admin's.

        Raises:
            ExhaustedError: too many jobs are unfinished, of this client or in all, or their orders are too
                large.
            ConflictError: another job of the topic is unfinished, or the job with this id has another
                specification.
        """
        order, texts = await asyncio.to_thread(spec.split)
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            await self._restore(redis, queue)
            specs = await self._specs(newer=True)
            if name and (known := specs.get(name) or await self._on_disk(self._folders.record, name)):
                if {"force": False, **split_order(known["order"])[0]} != order:  # older jobs have no force
                    raise ConflictError(
                        f"job {name} was started with other parameters; use another idempotency key"
                    )
                return await self.get(name)
            for other, saved in specs.items():
                if saved["order"]["topic"] == spec.topic:
                    raise ConflictError(
                        f"job {other} is already distilling topic {spec.topic!r}; wait for it or cancel it"
                    )
            await self._on_disk(self._check_room, specs, client, len(texts))
            await self._on_disk(self._check_quotas, spec, specs, owner if limited else "")
            name = name or uuid.uuid4().hex
            saved = {
                "order": order,
                "created": time.time(),
                "trace": tracing.outgoing(),
                "client": client,
                "owner": owner,
            }
            if disk_problem := await asyncio.to_thread(problem, self._settings.data_dir):
                raise UnavailableError(f"the job cannot be saved: {disk_problem}")
            try:
                await self._on_disk(self._folders.save_spec, name, json.dumps(saved), texts)
                job = await self._enqueue(redis, queue, name, saved)
            except BaseException:  # the client learns that the job was not started
                self._folders.delete(name)
                raise
            if job is None:
                raise ConflictError(f"job {name} exists already")
            return _state(job)

    def _check_room(self, specs: Mapping[str, Mapping[str, Any]], client: str, size: int) -> None:
        """ExhaustedError if the client, or all clients together, have as many unfinished jobs as allowed.

        Args:
            specs: of all unfinished jobs.
            client: whose job is to be started.
            size: bytes of the texts of its order.
        """
        own = [name for name, saved in specs.items() if saved.get("client", "") == client]
        for jobs, limit, whose in (
            (own, "max_client_jobs", "of this client "),
            (list(specs), "max_jobs", ""),
        ):
            most, most_mib = getattr(self._settings, limit), getattr(self._settings, f"{limit}_mib")
            mib, name = (sum(map(self._folders.order_bytes, jobs)) + size) / 2**20, f"DEKAG_{limit.upper()}"
            if len(jobs) >= most:
                full = f"{len(jobs)} jobs {whose}wait or run, which is the limit ({name})"
            elif mib > most_mib:
                full = (
                    f"with this one, the orders of all jobs {whose}that wait or run would take "
                    f"{mib:.1f} MiB, and the limit is {most_mib} MiB ({name}_MIB)"
                )
            else:
                continue
            raise ExhaustedError(f"{full}; wait for one to end, or cancel one", retry_after_s=_FULL_S)

    def _check_quotas(self, spec: DistillSpec, specs: Mapping[str, Mapping[str, Any]], owner: str) -> None:
        waiting = {str(saved["order"]["topic"]) for saved in specs.values()}
        check_quotas(self._settings, spec.topic, waiting, owner)

    async def restore(self) -> list[str]:
        """Queues jobs again that Redis has lost, from their specifications on disk; returns their ids."""
        async with (
            self._connected() as (redis, queue),
            redis.lock(_LOCK_KEY, _LOCK_S, blocking_timeout=_LOCK_S),
        ):
            return await self._restore(redis, queue)

    async def _specs(self, *, newer: bool = False) -> dict[str, dict[str, Any]]:
        return await self._on_disk(read_specs, self._folders, newer=newer)

    async def _restore(self, redis: Redis, queue: DistillQueue) -> list[str]:
        restored: list[str] = []
        specs = await self._specs()
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
        """Restores a job that Redis has lost, or that has ended only there; returns whether it did.

        Args:
            redis, queue: where the job belongs.
            name: id of the job.
            saved: its specification.
            job: its entry in Redis, if any.
        """
        if job is not None and job.status not in TERMINAL_STATUSES:
            return False
        # a distiller that has claimed the job rewrites it with its next heartbeat
        if await asyncio.to_thread(self._folders.is_claimed, name):
            return False
        if job is not None:  # of a Redis that was restored from a backup
            await redis.delete(job.id)
        await self._enqueue(redis, queue, name, saved)
        return True

    async def _enqueue(
        self, redis: Redis, queue: DistillQueue, name: str, saved: Mapping[str, Any]
    ) -> Job | None:
        return await queue.enqueue(
            FUNCTION,
            key=name,
            kwargs=saved["order"],
            timeout=0,
            heartbeat=self._settings.job_heartbeat_s,
            retries=self._settings.job_attempts,
            ttl=self._settings.job_keep_s,
            meta=_meta(saved),
        )

    async def unfinished(self) -> dict[str, int]:
        """Number of jobs that are "queued" and "running"."""

        def count() -> dict[str, int]:
            specs = read_specs(self._folders, newer=True)
            claimed = [self._folders.is_claimed(name) for name in specs]
            return {"queued": claimed.count(False), "running": claimed.count(True)}

        return await self._on_disk(count)

    async def get(self, name: str) -> JobState:
        """The current state of a job; NotFoundError if the id is unknown or has expired."""
        state = None
        if JOB_ID.fullmatch(name):  # it is looked up on disk
            (state,) = await self._states([name])
        if state is None:
            raise NotFoundError(
                f"there is no job {name[:_MAX_ID_CHARS]!r}; jobs are kept for {self._settings.job_keep_s} s"
            )
        return state

    async def recent(self, is_seen: Callable[[str, str | None], bool] = lambda *_: True) -> list[JobState]:
        """At most 100 jobs, newest first.

        Args:
            is_seen: given topic and owner, says whether a job is among them.
        """

        def seen(saved: Mapping[str, Any]) -> bool:
            return is_seen(str(saved["order"]["topic"]), saved.get("owner"))

        def seen_of_ended() -> list[str]:
            found: list[str] = []
            for name in self._folders.ended():
                record = self._folders.record(name)
                with contextlib.suppress(*_NO_JOB):
                    if record is not None and seen(record):
                        found.append(name)
                if len(found) == _LISTED:
                    break
            return found

        unfinished = [name for name, saved in (await self._specs(newer=True)).items() if seen(saved)]
        names = dict.fromkeys([*unfinished, *await self._on_disk(seen_of_ended)])
        states = [state for state in await self._states(list(names)) if state is not None]
        return sorted(states, key=lambda state: state.created, reverse=True)[:_LISTED]

    async def cancel(self, name: str) -> JobState:
        """Cancels a job, which then publishes nothing; ConflictError if it has already ended.

        Works without Redis: what is written to the disk decides.
        """
        check_job_id(name)
        saved, record, claimed = await self._on_disk(self._saved, name)
        if saved is None and record is None:
            await self.get(name)  # raises NotFoundError, or knows of one that ended earlier
        if not await self._on_disk(self._folders.decide, name, "cancelled") or record is not None:
            raise ConflictError(f"job {name} is already over or publishing its update")
        metrics.DISTILLATIONS.labels("cancelled").inc()  # counted here, since no distiller may ever see it
        if not claimed:  # else its distiller deletes the folder
            await asyncio.to_thread(self._folders.delete, name)
        job = None
        with contextlib.suppress(UnavailableError):  # a later sweep drops the job from the queue
            async with self._connected() as (_, queue):
                job = await queue.job(name)
                if job is not None and job.status is Status.QUEUED:
                    await queue.abort(job, "cancelled")
        record = await self._on_disk(self._folders.record, name)
        if record is None:
            raise NotFoundError(f"there is no job {name!r} any more")
        return _ended_state(name, record, job)

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

    async def _states(self, names: Sequence[str]) -> Sequence[JobState | None]:
        """The states of these jobs: ended jobs as on disk, the progress of the others as Redis knows it."""
        if not names:
            return []
        on_disk = await self._on_disk(lambda: [self._saved(name) for name in names])
        in_redis: Sequence[Job | None] = [None] * len(names)
        try:
            async with self._connected() as (_, queue):
                in_redis = await queue.jobs(names)
        except UnavailableError:
            if not all(is_final(record) for _, record, _ in on_disk):  # Redis knows their progress
                raise
        return [
            _merged(name, saved, record, claimed, job)
            for name, (saved, record, claimed), job in zip(names, on_disk, in_redis, strict=True)
        ]

    def _saved(self, name: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None, bool]:
        """The specification and the record of a job, and whether it is claimed.

        In this order: a specification is only deleted after the record was written.
        """
        text = self._folders.spec(name)
        saved = None if text is None else _parse_spec(name, text) or _parse_newer_spec(name, text)
        claimed = False
        with contextlib.suppress(OSError):  # from the disk: unknown whether the job is claimed
            claimed = saved is not None and self._folders.is_claimed(name)
        return saved, self._folders.record(name), claimed

    async def _on_disk(self, action: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Result of ``action``, in a thread; an UnavailableError names the data folder if the disk fails."""
        with disk_errors(self._settings.data_dir):
            return await asyncio.to_thread(action, *args, **kwargs)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Redis, DistillQueue]]:
        if self._redis is None or self._queue is None:
            raise UnavailableError(_NO_REDIS)
        try:
            yield self._redis, self._queue
        except REDIS_ERRORS as error:
            raise UnavailableError(f"distillation needs Redis, which {explain(error)}") from error


def _merged(
    name: str,
    saved: Mapping[str, Any] | None,
    record: Mapping[str, Any] | None,
    claimed: bool,
    job: Job | None,
) -> JobState | None:
    """The state of a job from what the disk and Redis know; the disk is right where they differ."""
    if record is not None and is_final(record):
        try:
            return _ended_state(name, record, job)
        except _NO_JOB as error:
            _log.warning("invalid record of a job", job=name, error=str(error)[:200])
    if saved is None:  # ended; of an unfinished job Redis must have been restored from a backup
        return None if job is None or job.status not in TERMINAL_STATUSES else _state(job)
    if job is None or job.status in TERMINAL_STATUSES:
        job = _as_job(name, saved)
        if claimed:
            job.status = Status.ACTIVE
    return _state(job)


def _ended_state(name: str, record: Mapping[str, Any], job: Job | None) -> JobState:
    """The state of a job that has ended: as its record says, with the progress and times that Redis knows."""
    last = _as_job(name, record) if job is None or job.meta["created"] != record["created"] else job
    last.status, last.result = Status.COMPLETE, record.get("result")
    if record["decision"] == "cancelled":
        last.status, last.result = Status.ABORTED, None
    last.completed = int(1000 * record["ended"])
    return _state(last)


def _state(job: Job) -> JobState:
    result: dict[str, Any] = job.result or {}
    status, error = _STATUSES[job.status], result.get("error", "")
    if status == "failed":
        error = job.error or ""
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
        owner=job.meta.get("owner"),
    )
