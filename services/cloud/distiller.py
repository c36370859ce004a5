"""The distiller, a process that makes knowledge updates: ``python -m services.cloud.distiller``.

Any number of distillers may run, each with one job at a time. If a distiller dies, another one, or the same
one after a restart, resumes its job from the last checkpoint. Torch and the models are loaded for the first
job, not at the start; the models are released after each job.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog
from opentelemetry.trace import Span, SpanKind
from redis.exceptions import RedisError
from saq import Job, Worker

from dekag.errors import ConflictError, DeadlineError, DekagError, MismatchError, NotFoundError
from dekag.profile import load_profile
from services.cloud.job_folder import JobFolders
from services.cloud.jobs import (
    FUNCTION,
    DistillQueue,
    DistillSpec,
    redis_probe,
)
from services.cloud.leases import other_cloud
from services.cloud.redis_mirror import sync_knowledge
from services.cloud.settings import DistillerSettings
from services.cloud.version_store import DISK_UNUSABLE, KnowledgeStore, figures, problem
from services.common import metrics, tracing
from services.common.certificates import serve_metrics
from services.common.errors import SettingError, public
from services.common.process import errors_logged
from services.common.redis_client import open_redis
from services.common.redis_state import REDIS_ERRORS, explain
from services.common.request_context import begin_request, configure_logging
from services.common.signing import Signer
from services.common.worker import ModelWorker

if TYPE_CHECKING:
    from dekag.metrics.features import ImageScorer
    from dekag.profile import Profile
    from dekag.training.distill import Progress

HEARTBEAT_S = 0.5
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
        files: by name, the history among them.
        compared_with: the version that was current when this one was scored; 0 if there was none.
    """

    info: Mapping[str, Any]
    scores: Mapping[str, Any]
    content_hash: str
    files: Mapping[str, bytes]
    samples: bytes
    compared_with: int


@dataclass(frozen=True)
class _Current:
    """The update of a topic that is current when a job starts, and the file of its history."""

    version: int
    files: Mapping[str, bytes]
    history: Mapping[str, bytes]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: the version that is now current, or why its update was not published."""

    scores: Mapping[str, float]
    version: int | None = None
    kept_aside: str = ""


class Distillation:
    """One attempt at one job; `run` runs in the model thread, the rest is for the event loop."""

    def __init__(
        self, settings: DistillerSettings, spec: DistillSpec, folder: Path, current: _Current | None
    ) -> None:
        self._settings, self._spec, self._folder = settings, spec, folder
        self._current = current
        self._progress: Progress | None = None
        self._stage = "generate"
        self._began = self._noted = 0.0  # start of the stage and its latest progress; perf_counter, s
        self.stop = threading.Event()

    @property
    def progress(self) -> dict[str, Any]:
        """Stage, images or steps done and in total, and loss; empty before the first report."""
        return {} if self._progress is None else vars(self._progress)

    def run(self) -> Distilled | None:
        """Distils, or resumes an earlier attempt; None after ``stop`` was set."""
        from dekag.generation.facts import GeneratorFacts
        from dekag.generation.models import Generator
        from dekag.generation.trajectories import check_teachable
        from dekag.makd.config import DistillConfig
        from dekag.makd.topics import read_topics, topic_prompts
        from dekag.makd.update import KnowledgeUpdate
        from dekag.training.distill import SAMPLES, Stopped, cloud_images, distill, kept_cloud_images

        current = None
        if self._current is not None:
            with contextlib.suppress(MismatchError):  # damaged, so there is nothing to compare with
                current = KnowledgeUpdate.from_files(self._current.files)
            with contextlib.suppress(MismatchError):
                current = KnowledgeUpdate.from_files({**self._current.files, **self._current.history})
        settings = self._settings
        profile = load_profile(settings.profile, check_models=True)  # read anew for each job
        config = DistillConfig(**{**profile.distill.given(), **self._spec.config})
        topic = topic_prompts(
            self._spec.topic,
            prompts=self._spec.prompts,
            triggers=self._spec.triggers,
            topics=read_topics(profile.topics),
            count=config.images,
            held_out=config.held_out,
            seed=config.seed,
        )
        check_teachable(profile, config.objective)
        callbacks: dict[str, Any] = {"on_progress": self._note, "should_stop": self.stop.is_set}
        placed = settings.placement(keep_text_encoder=settings.keep_text_encoder)
        facts = GeneratorFacts.of_profile(profile, "cloud", placed)
        images = kept_cloud_images(facts, topic, config, self._folder)
        self._began = self._noted = time.perf_counter()
        try:
            if images is None:  # it does not go on with a training
                cloud = Generator.from_profile(profile, "cloud", placed)
                self._began = time.perf_counter()
                images = cloud_images(cloud, topic, config, self._folder, **callbacks)
                del cloud  # before the edge is loaded: memory for one of them is enough
            update = distill(
                images,
                Generator.from_profile(profile, "edge", settings.placement(trained=True)),
                topic,
                config,
                self._folder,
                scorer=_scorer(profile),
                current=current,
                previews=settings.previews,
                micro_batch=settings.distill_micro_batch or None,
                gradient_checkpointing=settings.gradient_checkpointing,
                **callbacks,
            )
        except Stopped:
            return None
        self._stage_over(time.perf_counter())
        samples = (self._folder / SAMPLES).read_bytes()
        compared_with = 0 if self._current is None else self._current.version
        return Distilled(
            update.info,
            update.history["scores"],
            update.content_hash,
            update.saved_files(),
            samples,
            compared_with,
        )

    def _note(self, progress: Progress) -> None:
        if progress.stage != self._stage:  # the new stage has already begun
            self._stage_over(self._noted)
            self._stage, self._began = progress.stage, self._noted
        self._progress, self._noted = progress, time.perf_counter()

    def _stage_over(self, end: float) -> None:
        _note_stage(self._stage, end - self._began, time.perf_counter() - end)


def _note_stage(name: str, seconds: float, ago_s: float = 0.0) -> None:
    tracing.record_stage(f"distiller.{name}", seconds, ago_s)
    metrics.DISTILL_SECONDS.labels(name).observe(seconds)


def _reason_not_better(scores: Mapping[str, Any]) -> str:
    from dekag.training.distill import why_no_better

    return why_no_better(scores)


def _scorer(profile: Profile) -> ImageScorer | None:
    from dekag.metrics.features import ImageScorer

    return None if profile.scorer is None else ImageScorer.load(**profile.scorer.encoders)


class Distiller:
    """Processes the queue of distillations."""

    def __init__(self, settings: DistillerSettings) -> None:
        self._settings = settings
        self._store, self._folders = KnowledgeStore(settings.data_dir), JobFolders(settings.data_dir)
        self._signer = Signer(settings.signing_key_file)
        self._redis = open_redis(settings, _DEQUEUE_S + settings.queue_timeout_s)
        self._queue = DistillQueue(self._redis, self._folders)
        self._thread = ModelWorker("distiller", threads=settings.distill_threads)

    async def serve(self) -> None:
        """Processes jobs until SIGTERM or SIGINT; a running job is then stopped and queued again."""
        worker = Worker(
            self._queue,
            [(FUNCTION, self._distill)],
            concurrency=1,
            timers={"schedule": 1, "worker_info": 10, "sweep": self._settings.sweep_every_s, "abort": 1},
            dequeue_timeout=_DEQUEUE_S,
            cancellation_hard_deadline_s=self._settings.grace_s,
        )
        health = asyncio.create_task(self._report_health(worker))
        try:
            await worker.start()
        finally:
            health.cancel()
            self._thread.close()
            with contextlib.suppress(*_REDIS_DOWN):  # nothing to disconnect from
                await self._queue.disconnect()

    async def _distill(self, context: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
        """Called by SAQ for each job; returns the job's result, see ``services.cloud.jobs``."""
        job, spec = context["job"], DistillSpec(**fields)
        begin_request(job.key, None)
        _log.info("job started", topic=spec.topic, attempt=job.attempts)
        attributes = {"dekag.job": job.key, "dekag.topic": spec.topic, "dekag.attempt": job.attempts}
        trace = job.meta.get("trace", {})
        with tracing.server_span("distiller.Distill", trace, attributes, SpanKind.CONSUMER) as span:
            return await self._result(job, spec, span)

    async def _result(self, job: Job, spec: DistillSpec, span: Span) -> dict[str, Any]:
        """The result of the job; while the disk cannot be written, the job waits and keeps what it has."""
        while True:
            try:
                async with self._claim(job):
                    return await self._attempt(job, spec, span)
            except Exception as error:
                if not (reason := await self._disk_problem(error)):
                    raise
                _log.warning(f"the job waits: {reason}", error=str(error)[:200])
            await self._heartbeat(job, {})  # else another distiller would take it up
            await asyncio.sleep(_RETRY_S)

    async def _attempt(self, job: Job, spec: DistillSpec, span: Span) -> dict[str, Any]:
        """Works on a job until it has ended; raises errors of the disk, and leaves the job as it is then."""
        if not await asyncio.to_thread(self._folders.exists, job.key):
            await asyncio.to_thread(self._folders.delete, job.key)
            record = await asyncio.to_thread(self._folders.record, job.key)
            _log.info("the job has ended already", decision=None if record is None else record["decision"])
            return dict({} if record is None else record.get("result", {}))
        if reason := await asyncio.to_thread(problem, self._settings.data_dir):
            raise OSError(errno.ENOSPC, reason)
        try:
            if spec.texts_hash:
                texts = await asyncio.to_thread(self._folders.texts, job.key, spec.texts_hash)
                spec = replace(spec, **texts)
            outcome = await self._publish_once(job, spec)
            result = {} if outcome is None else {name: v for name, v in vars(outcome).items() if v}
            kept_aside = outcome is not None and outcome.kept_aside
        except Exception as error:
            if await self._disk_problem(error):
                raise
            if not isinstance(error, DekagError):
                _log.exception("job failed")
            tracing.mark_failed(span, str(error))
            result, kept_aside = {"error": str(public(error, job.key))}, False
            if not await asyncio.to_thread(self._folders.decide, job.key, "failed"):
                result = {}  # it was cancelled meanwhile
        await asyncio.to_thread(self._folders.end, job.key, result)
        if result:  # otherwise it was cancelled and is counted by the cancellation
            ending = "failed" if "error" in result else "kept_aside" if kept_aside else "finished"
            metrics.DISTILLATIONS.labels(ending).inc()
        return result

    async def _disk_problem(self, error: Exception) -> str:
        """Why ``error`` is one of the disk, which a later attempt may not meet; empty if it is not."""
        if reason := await asyncio.to_thread(problem, self._settings.data_dir):
            return reason
        return str(error) if isinstance(error, OSError) and error.errno in DISK_UNUSABLE else ""

    @contextlib.asynccontextmanager
    async def _claim(self, job: Job) -> AsyncIterator[None]:
        """Waits until no other process has claimed ``job``: SAQ may hand out a job again too early."""
        while True:
            with self._folders.claimed(job.key) as claimed:
                if claimed:
                    yield
                    return
            if not await asyncio.to_thread(self._folders.exists, job.key):
                yield  # it has ended meanwhile
                return
            with contextlib.suppress(*_REDIS_DOWN, RuntimeError):  # RuntimeError: Redis lost the job
                await job.refresh()  # picks up the progress that the other process reports
            await self._heartbeat(job, {})
            await asyncio.sleep(HEARTBEAT_S)

    async def _publish_once(self, job: Job, spec: DistillSpec) -> Outcome | None:
        """Makes and publishes the job's update, exactly once over all attempts; None if it was cancelled.

        An update that is no better than the current one is kept aside, unless the job forces it.
        """
        published, start = (
            await asyncio.to_thread(self._store.made_by, spec.topic, job.key),
            time.perf_counter(),
        )
        while published is None:
            distilled, seconds = await self._train(job, spec)  # what is trained is only scored again
            if distilled is not None and await asyncio.to_thread(self._replaced, spec, distilled):
                continue
            decide = self._folders.decide
            if distilled is None or not await asyncio.to_thread(decide, job.key, "published"):
                _log.info("job cancelled", topic=spec.topic)
                return None
            start = time.perf_counter()
            if not spec.force and (reason := await asyncio.to_thread(_reason_not_better, distilled.scores)):
                folder = await asyncio.to_thread(
                    self._store.keep_aside, job.key, distilled.files, distilled.samples, spec.topic
                )
                _log.warning("knowledge kept aside", topic=spec.topic, why=reason, folder=str(folder))
                return Outcome(figures(distilled.scores), kept_aside=reason)
            with contextlib.suppress(ConflictError):  # another version was published meanwhile
                published = await asyncio.to_thread(
                    self._store.publish,
                    job.key,
                    distilled.info,
                    distilled.content_hash,
                    distilled.files,
                    distilled.samples,
                    after=distilled.compared_with,
                )
                _log.info(
                    "knowledge published",
                    topic=published.topic,
                    version=published.version,
                    seconds=round(seconds, 1),
                )
        await _retry_until_redis_up(self._sync)
        _note_stage("publish", time.perf_counter() - start)
        return Outcome(published.scores, version=published.version)

    async def _sync(self) -> None:
        """Syncs the knowledge to Redis, unless that is another cloud's; then its own does so later."""
        if not await other_cloud(self._redis, self._settings.data_dir):
            await sync_knowledge(self._store, self._redis, self._settings.mirror_mib, self._signer)

    def _replaced(self, spec: DistillSpec, distilled: Distilled) -> bool:
        """Whether the current update was replaced since the new one was compared with it."""
        return self._store.current_version(spec.topic) != distilled.compared_with

    def _current(self, topic: str) -> _Current | None:
        if (manifest := self._store.current(topic)) is None:
            return None
        with contextlib.suppress(NotFoundError):  # deleted meanwhile
            files, history = self._store.files(manifest), self._store.history(manifest)
            return _Current(manifest.version, files, history)
        return None

    async def _train(self, job: Job, spec: DistillSpec) -> tuple[Distilled | None, float]:
        """The update, None if the job was cancelled, and the seconds that it took."""
        current = await asyncio.to_thread(self._current, spec.topic)
        attempt = Distillation(self._settings, spec, self._folders.work(job.key), current)
        working = asyncio.create_task(self._thread.run(attempt.run))
        end, out_of_time = time.monotonic() + self._settings.job_max_s, False
        try:
            while not working.done():
                out_of_time = time.monotonic() >= end
                if out_of_time or await self._is_cancelled(job):
                    attempt.stop.set()
                await self._heartbeat(job, attempt.progress)
                await asyncio.wait({working}, timeout=HEARTBEAT_S)
        except asyncio.CancelledError:  # this process is shutting down: the job is queued again
            attempt.stop.set()
            await asyncio.wait({working})
            raise
        if out_of_time and working.result()[0] is None:
            raise DeadlineError(
                f"the distillation took longer than {self._settings.job_max_s} s, the limit (DEKAG_JOB_MAX_S)"
            )
        return working.result()

    async def _is_cancelled(self, job: Job) -> bool:
        try:
            record = await asyncio.to_thread(self._folders.record, job.key)
        except OSError:  # unknown now
            return False
        return record is not None and record["decision"] == "cancelled"

    async def _heartbeat(self, job: Job, progress: Mapping[str, Any]) -> None:
        """Reports progress. Without Redis the job continues."""
        try:
            await job.update(meta={"started": job.started / 1000, **job.meta, **progress})
        except _REDIS_DOWN as error:
            metrics.REDIS_FAILURES.inc()
            _log.warning(f"Redis {explain(error)}; the job continues", error=str(error))

    async def _no_job_can_run(self) -> str:
        """Why no job can run though Redis answers; empty if jobs can."""
        with contextlib.suppress(*REDIS_ERRORS):
            if reason := await other_cloud(self._redis, self._settings.data_dir):
                return reason
        return await asyncio.to_thread(problem, self._settings.data_dir)

    async def _report_health(self, worker: Worker[Any]) -> None:
        """Touches the health file while jobs can run; logs why they cannot."""
        redis, last = redis_probe(self._redis), ""
        while not worker.event.is_set():  # redis-py sometimes swallows a cancellation
            reason = await redis.problem()
            reason = f"Redis {reason}" if reason else await self._no_job_can_run()
            if reason != last:
                last = reason
                _log.warning(f"no job can run: {reason}") if reason else _log.info("jobs can run again")
            if (file := self._settings.health_file) is not None and not reason:
                try:
                    await asyncio.to_thread(file.touch)
                except OSError as error:
                    _log.warning("DEKAG_HEALTH_FILE cannot be written", error=str(error))
            await asyncio.sleep(2.0)


async def _retry_until_redis_up(
    action: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Result of ``action``, retried until Redis answers: a finished distillation must not be lost."""
    while True:
        try:
            return await action(*args, **kwargs)
        except _REDIS_DOWN as error:
            metrics.REDIS_FAILURES.inc()
            _log.warning(f"Redis {explain(error)}; retrying", error=str(error))
            await asyncio.sleep(_RETRY_S)


class _StructlogHandler(logging.Handler):
    """Forwards SAQ's log lines to structlog; without tracebacks of Redis errors, which are frequent."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _REDIS_DOWN):
            _log.warning(f"Redis {explain(error)}", message=record.getMessage(), error=str(error))
            return
        _log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def main() -> None:
    """Reads the settings and works until stopped."""
    with errors_logged("distiller"), contextlib.closing(tracing):
        settings = DistillerSettings.read()
        configure_logging("distiller", settings.log_level)
        saq = logging.getLogger("saq")
        saq.setLevel(logging.ERROR)  # it logs a warning at every shutdown
        saq.addHandler(_StructlogHandler())
        saq.propagate = False
        if not settings.redis_url:
            raise SettingError("a distiller needs Redis: DEKAG_REDIS_URL is none")
        serve_metrics(settings)
        tracing.configure("distiller", settings.spans_to)
        load_profile(settings.profile, check_models=True)  # rather than find damage in the first job
        distiller = Distiller(settings)
        _log.info("ready")
        asyncio.run(distiller.serve())
        _log.info("stopped")


if __name__ == "__main__":
    main()
