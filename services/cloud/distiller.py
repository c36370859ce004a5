"""Runs a distiller, a worker process that makes knowledge updates: ``python -m services.cloud.distiller``.

As many as there is room for may run, each with one job at a time. A job whose worker dies is taken up by
another one, or by the same one after its restart, where its last checkpoint is. Torch and the models are
loaded for the first job and not before; the models are let go after each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog
from opentelemetry.trace import Span, SpanKind
from redis.exceptions import RedisError
from saq import Job, Worker

from dekag.errors import DekagError, MismatchError, NotFoundError
from services.cloud.job_folder import JobFolders
from services.cloud.jobs import (
    CANCELLED,
    FUNCTION,
    PUBLISHED,
    Order,
    decide,
    open_queue,
    open_redis,
    outcome,
    trial,
)
from services.cloud.redis_mirror import mirror
from services.cloud.settings import DistillerSettings
from services.cloud.version_store import KnowledgeStore, figures, trouble
from services.common import metrics, tracing
from services.common.errors import SettingError, public
from services.common.process import errors_logged
from services.common.redis_state import why
from services.common.request_context import begin_request, configure_logging
from services.common.worker import ModelWorker

if TYPE_CHECKING:
    from dekag.generation.profile import Profile
    from dekag.metrics.features import ImageScorer
    from dekag.training.distill import Progress

BEAT_S = 0.5
_DEQUEUE_S = 5.0
_RETRY_S = 2.0
_REDIS_DOWN = (RedisError, ConnectionError, TimeoutError)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = structlog.get_logger()


@dataclass(frozen=True)
class Distilled:
    """A knowledge update as bytes, and PNG samples of what it does.

    Attributes:
        beside: content hash of the update that was current when this one was scored; empty if there was none.
    """

    info: Mapping[str, Any]
    content_hash: str
    files: Mapping[str, bytes]
    samples: bytes
    beside: str


@dataclass(frozen=True)
class _Current:
    """The update of a topic that is current when a job begins."""

    content_hash: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Outcome:
    """What a job came to: a version that is current now, or why its update is kept aside."""

    scores: Mapping[str, float]
    version: int | None = None
    kept_aside: str = ""


class Distillation:
    """One attempt at one job: what its thread does, and what the event loop may ask and tell it meanwhile."""

    def __init__(
        self, settings: DistillerSettings, order: Order, folder: Path, current: _Current | None
    ) -> None:
        self._settings, self._order, self._folder = settings, order, folder
        self._current = current
        self._progress: Progress | None = None
        self._stage = "generate"
        self._began = self._noted = 0.0  # the stage, and the last that it did; perf_counter, s
        self.stop = threading.Event()

    @property
    def progress(self) -> dict[str, Any]:
        """Stage, pictures or steps done and in all, and loss, as far as there are any."""
        return {} if self._progress is None else vars(self._progress)

    def run(self) -> Distilled | None:
        """Distils, or goes on where an earlier attempt was; None after ``stop`` was set."""
        from dekag.generation.models import Generator
        from dekag.generation.profile import load_profile
        from dekag.makd.config import DistillConfig
        from dekag.makd.topics import topic_prompts
        from dekag.makd.update import KnowledgeUpdate
        from dekag.training.distill import SAMPLES, Stopped, distill

        current = None
        if self._current is not None:
            with contextlib.suppress(MismatchError):  # damaged: nothing to be better than
                current = KnowledgeUpdate.from_files(self._current.files)
        profile, config = load_profile(self._settings.profile), DistillConfig(**self._order.config)
        cloud, edge = Generator.from_profile(profile.cloud), Generator.from_profile(profile.edge)
        topic = topic_prompts(
            self._order.topic,
            prompts=self._order.prompts,
            triggers=self._order.triggers,
            count=config.images,
            held_out=config.held_out,
            seed=config.seed,
        )
        scorer = _scorer(profile)
        self._began = time.perf_counter()
        try:
            update = distill(
                cloud,
                edge,
                topic,
                config,
                self._folder,
                scorer=scorer,
                current=current,
                on_progress=self._note,
                should_stop=self.stop.is_set,
                previews=self._settings.previews,
            )
        except Stopped:
            return None
        self._stage_over(time.perf_counter())
        samples = (self._folder / SAMPLES).read_bytes()
        beside = "" if self._current is None else self._current.content_hash
        return Distilled(update.info, update.content_hash, update.to_files(), samples, beside)

    def _note(self, progress: Progress) -> None:
        if progress.stage != self._stage:  # which it has begun already
            self._stage_over(self._noted)
            self._stage, self._began = progress.stage, self._noted
        self._progress, self._noted = progress, time.perf_counter()

    def _stage_over(self, end: float) -> None:
        _note_stage(self._stage, end - self._began, time.perf_counter() - end)


def _note_stage(name: str, seconds: float, ago_s: float = 0.0) -> None:
    tracing.over(f"distiller.{name}", seconds, ago_s)
    metrics.DISTILL_SECONDS.labels(name).observe(seconds)


def _why_not(info: Mapping[str, Any]) -> str:
    from dekag.training.distill import why_no_better

    return why_no_better(info["scores"])


def _scorer(profile: Profile) -> ImageScorer | None:
    from dekag.metrics.features import ImageScorer

    return None if profile.scorer is None else ImageScorer.load(profile.scorer.clip, profile.scorer.dino)


class Distiller:
    """Works off the queue of distillations."""

    def __init__(self, settings: DistillerSettings) -> None:
        self._settings = settings
        self._store, self._folders = KnowledgeStore(settings.data_dir), JobFolders(settings.data_dir)
        self._redis = open_redis(settings, _DEQUEUE_S + settings.queue_timeout_s)
        self._queue = open_queue(self._redis, self._folders)
        self._thread = ModelWorker("distiller", threads=settings.distill_threads)

    async def serve(self) -> None:
        """Takes jobs until SIGTERM or SIGINT; a job in hand is stopped, kept and left to another worker."""
        try:
            await asyncio.to_thread(self._folders.purge_stale, 2 * self._settings.job_keep_s)
        except OSError as error:  # what is left over keeps nobody from working
            _log.warning("old jobs were not tidied away", error=str(error))
        worker = Worker(
            self._queue,
            [(FUNCTION, self._distill)],
            concurrency=1,
            timers={"schedule": 1, "worker_info": 10, "sweep": self._settings.sweep_every_s, "abort": 1},
            dequeue_timeout=_DEQUEUE_S,
            cancellation_hard_deadline_s=self._settings.grace_s,
        )
        health = asyncio.create_task(self._say_healthy(worker))
        try:
            await worker.start()
        finally:
            health.cancel()
            self._thread.close()
            with contextlib.suppress(*_REDIS_DOWN):  # there is nothing to disconnect from then
                await self._queue.disconnect()

    async def _distill(self, context: Mapping[str, Any], **order: Any) -> dict[str, Any]:
        """What SAQ calls for a job; what it returns is the job's result, see ``services.cloud.jobs``."""
        job: Job = context["job"]
        begin_request(job.key, None)
        _log.info("job taken up", topic=order["topic"], attempt=job.attempts)
        about = {"dekag.job": job.key, "dekag.topic": order["topic"], "dekag.attempt": job.attempts}
        trace = job.meta.get("trace", {})
        with tracing.serving("distiller.Distill", trace, about, SpanKind.CONSUMER) as span:
            return await self._result(job, Order(**order), span)

    async def _result(self, job: Job, order: Order, span: Span) -> dict[str, Any]:
        try:
            async with self._claim(job):
                made = await self._make(job, order)
                await asyncio.to_thread(self._folders.delete, job.key)
        except Exception as error:
            if not isinstance(error, DekagError):
                _log.exception("job failed")
            metrics.DISTILLATIONS.labels("failed").inc()
            tracing.failed(span, str(error))
            await asyncio.to_thread(self._folders.delete, job.key)
            return {"error": str(public(error, job.key))}
        if made is None:  # who cancelled it has counted it
            return {}
        metrics.DISTILLATIONS.labels("kept_aside" if made.kept_aside else "finished").inc()
        found = {"version": made.version, "kept_aside": made.kept_aside, "scores": dict(made.scores)}
        return {name: value for name, value in found.items() if value}

    @contextlib.asynccontextmanager
    async def _claim(self, job: Job) -> AsyncIterator[None]:
        """Waits until no other process works at ``job``: SAQ may give one out again too early."""
        while True:
            with self._folders.claimed(job.key) as mine:
                if mine:
                    yield
                    return
            with contextlib.suppress(*_REDIS_DOWN, RuntimeError):  # RuntimeError: Redis lost the job
                await job.refresh()  # the other process says how far it is
            await self._beat(job, {})
            await asyncio.sleep(BEAT_S)

    async def _make(self, job: Job, order: Order) -> Outcome | None:
        """Publishes what the job makes, once however often it is called; None if the job was cancelled.

        What is not better than what there is is kept aside, unless the order says otherwise.
        """
        made = await asyncio.to_thread(self._store.made_by, order.topic, job.key)
        if made is None and await self._beat(job, {}) == CANCELLED:
            return None
        start = time.perf_counter()
        if made is None:
            distilled, seconds = await self._work(job, order)
            while distilled is not None and await asyncio.to_thread(self._replaced, order, distilled):
                distilled, seconds = await self._work(job, order)  # trained already: only scored again
            keep_s = 2 * self._settings.job_keep_s
            if distilled is None or not await _insist(decide, self._redis, job.key, PUBLISHED, keep_s):
                _log.info("job cancelled", topic=order.topic)
                return None
            start = time.perf_counter()
            if not order.force and (why := await asyncio.to_thread(_why_not, distilled.info)):
                place = await asyncio.to_thread(
                    self._store.keep_aside, job.key, distilled.files, distilled.samples, order.topic
                )
                _log.warning("knowledge kept aside", topic=order.topic, why=why, folder=str(place))
                return Outcome(figures(distilled.info.get("scores")), kept_aside=why)
            made = await asyncio.to_thread(
                self._store.publish,
                job.key,
                distilled.info,
                distilled.content_hash,
                distilled.files,
                distilled.samples,
            )
            _log.info("knowledge made", topic=made.topic, version=made.version, seconds=round(seconds, 1))
        await _insist(mirror, self._store, self._redis)
        _note_stage("publish", time.perf_counter() - start)
        return Outcome(made.scores, version=made.version)

    def _replaced(self, order: Order, distilled: Distilled) -> bool:
        """Whether another update became current since this one was compared with the one before."""
        manifest = self._store.topics().get(order.topic)
        return manifest is not None and manifest.content_hash != distilled.beside

    def _current(self, topic: str) -> _Current | None:
        if (manifest := self._store.topics().get(topic)) is None:
            return None
        with contextlib.suppress(NotFoundError):  # deleted meanwhile
            return _Current(manifest.content_hash, self._store.files(manifest))
        return None

    async def _work(self, job: Job, order: Order) -> tuple[Distilled | None, float]:
        """What the model's thread makes, None if the job was cancelled, and the seconds that it took."""
        current = await asyncio.to_thread(self._current, order.topic)
        attempt = Distillation(self._settings, order, self._folders.work(job.key), current)
        working = asyncio.create_task(self._thread.run(attempt.run))
        try:
            while not working.done():
                if await self._beat(job, attempt.progress) == CANCELLED:
                    attempt.stop.set()
                await asyncio.wait({working}, timeout=BEAT_S)
        except asyncio.CancelledError:  # this worker is to end: the job goes back to the queue
            attempt.stop.set()
            await asyncio.wait({working})
            raise
        return working.result()

    async def _beat(self, job: Job, progress: Mapping[str, Any]) -> bytes | None:
        """Says that the job lives and how far it is; returns its outcome. Without Redis the job goes on."""
        meta = {"started": job.started / 1000, **job.meta, **progress}
        try:
            await job.update(meta=meta)
            return await outcome(self._redis, job.key)
        except _REDIS_DOWN as error:
            metrics.REDIS_FAILURES.inc()
            _log.warning(f"Redis {why(error)}; the job goes on", error=str(error))
            return None

    async def _say_healthy(self, worker: Worker[Any]) -> None:
        """Touches the file of the settings while jobs can be done; says in the log why they cannot."""
        redis, said = trial(self._redis), ""
        while not worker.event.is_set():  # redis-py swallows a cancellation now and then
            wrong = await redis.trouble()
            wrong = f"Redis {wrong}" if wrong else await asyncio.to_thread(trouble, self._settings.data_dir)
            if wrong != said:
                said = wrong
                _log.warning(f"no job can be done: {wrong}") if wrong else _log.info("jobs can be done again")
            if (file := self._settings.health_file) is not None and not wrong:
                try:
                    await asyncio.to_thread(file.touch)
                except OSError as error:
                    _log.warning("DEKAG_HEALTH_FILE cannot be written", error=str(error))
            await asyncio.sleep(2.0)


async def _insist(action: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Result of ``action``, tried until Redis answers: what was distilled must not get lost."""
    while True:
        try:
            return await action(*args, **kwargs)
        except _REDIS_DOWN as error:
            metrics.REDIS_FAILURES.inc()
            _log.warning(f"Redis {why(error)}; trying again", error=str(error))
            await asyncio.sleep(_RETRY_S)


class _ToStructlog(logging.Handler):
    """SAQ's log lines as this service's own; without tracebacks of Redis's errors, of which many come."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _REDIS_DOWN):
            _log.warning(f"Redis {why(error)}", said=record.getMessage(), error=str(error))
            return
        _log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def main() -> None:
    """Reads the settings and works until stopped."""
    with errors_logged("distiller"), contextlib.closing(tracing):
        settings = DistillerSettings.read()
        configure_logging("distiller", settings.log_level)
        saq = logging.getLogger("saq")
        saq.setLevel(logging.ERROR)  # it warns of every shutdown
        saq.addHandler(_ToStructlog())
        if not settings.redis_url:
            raise SettingError("a distiller needs Redis: DEKAG_REDIS_URL is none")
        metrics.serve(settings)
        tracing.configure("distiller", settings.spans_to)
        distiller = Distiller(settings)
        _log.info("ready")
        asyncio.run(distiller.serve())
        _log.info("stopped")


if __name__ == "__main__":
    main()
