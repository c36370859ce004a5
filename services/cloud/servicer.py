"""The cloud service: generates images and manages knowledge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
from grpc import aio
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from dekag.api.limits import check_job_id, check_knowledge, check_prompt, check_seed, check_topic
from dekag.errors import InvalidInputError, UnavailableError
from dekag.generation.request import GenerationRequest
from dekag.makd.topics import check_triggers
from services.cloud import distill_request
from services.cloud.demand import ACTIONS, BY_FILE, DemandLedger
from services.cloud.drift import DriftWatch
from services.cloud.housekeeping import Housekeeping, check_quotas, waiting_topics
from services.cloud.image_scoring import ScoringQueue, received_pixels
from services.cloud.job_folder import JobFolders
from services.cloud.jobs import Jobs, JobState
from services.cloud.leases import FolderLease, RedisLease
from services.cloud.redis_mirror import sync_adapters, sync_knowledge
from services.cloud.repair import Repair
from services.cloud.version_store import KnowledgeStore, TransmissionStore, disk_errors, problem
from services.common import converters, metrics
from services.common.addresses import listed
from services.common.cache import Cache, image_key
from services.common.errors import SettingError
from services.common.redis_client import open_redis
from services.common.redis_state import REDIS_ERRORS
from services.common.signing import Signer
from services.common.stages import stage_time
from services.common.worker import BatchWorker, ShouldContinue
from services.proto.cloud_pb2 import (
    CompareRequest,
    Consistency,
    DecideRequest,
    Decisions,
    DeleteKnowledgeRequest,
    DeleteKnowledgeResponse,
    DemandList,
    DistillRequest,
    GeneratedImage,
    GenerateRequest,
    GetKnowledgeRequest,
    Job,
    JobId,
    Knowledge,
    KnowledgeList,
    ListDemandRequest,
    ListJobsRequest,
    ListKnowledgeRequest,
    Preview,
    PublishKnowledgeRequest,
    PublishTransmissionKnowledgeRequest,
    ShareKnowledgeRequest,
)
from services.proto.cloud_pb2 import Jobs as JobsMessage
from services.proto.cloud_pb2_grpc import CloudServicer as CloudBase
from services.proto.downlink_pb2 import (
    IMAGE_FORMAT_PNG,
    GetTransmissionKnowledgeRequest,
    PromptRead,
    StageTime,
    TransmissionKnowledge,
)

if TYPE_CHECKING:
    from dekag.generation.images import Pixels
    from dekag.generation.models import Generator
    from dekag.profile import Profile
    from services.cloud.settings import CloudSettings

_MAX_CLIENT_CHARS = 64
_LEASE_S, _LEASE_TIMEOUT_S = 15.0, 2.0  # a cloud starts, and stops, without Redis too
_log = structlog.get_logger()
_Response = TypeVar("_Response", Knowledge, TransmissionKnowledge)


def _check_client(field: str, name: str) -> None:
    """Raises InvalidInputError for what is no name of a client or an API key."""
    if len(name) > _MAX_CLIENT_CHARS or not name.isprintable():
        raise InvalidInputError(field, f"at most {_MAX_CLIENT_CHARS} printable characters", name)


def _owner(request: DecideRequest | GenerateRequest) -> str | None:
    """The API key that a request is for; None if the edge, of an earlier release, does not say."""
    _check_client("owner", request.owner)
    return request.owner if request.HasField("owner") else None


class CloudServicer(CloudBase):
    """Generates images with the cloud model, stores all knowledge and starts distillation jobs.

    Images are cached by everything that they depend on. Distillers run the jobs. Received images are compared
    with the cloud's own to detect knowledge drift.
    """

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings
        self._store, self._jobs = KnowledgeStore(settings.data_dir), Jobs(settings)
        self._transmission = TransmissionStore(settings.data_dir)
        self._job_folders, self._housekeeping = JobFolders(settings.data_dir), Housekeeping(settings)
        self._folder_lease: FolderLease | None = None
        self._signer = Signer(settings.signing_key_file)
        self._redis = open_redis(settings, settings.queue_timeout_s) if settings.redis_url else None
        self._redis_lease: RedisLease | None = None
        self._other_cloud = ""  # why this cloud may not write to Redis
        self._repair = Repair(self._store, self._transmission, self._redis, self._signer)
        self._closing, self._shipped, self._claiming = False, False, asyncio.Lock()
        self._loop, self._loaded = asyncio.get_running_loop(), asyncio.Event()
        self._cache = Cache(settings)
        self._scoring_queue = ScoringQueue(settings)
        self._drift = DriftWatch(settings, self._store, self._redis, self._cache)
        self._demand = DemandLedger(settings, self._store, self._jobs, self._redis)
        self._generating = BatchWorker(
            "cloud",
            self._generate_batch,
            batch_key=lambda request: (request.size, request.sampling),
            max_batch=settings.generate_batch,
            wait_s=settings.batch_wait_s,
            threads=settings.threads,
            max_queue=settings.max_queue,
        )
        self._tasks = [asyncio.create_task(work) for work in (self._sync(), self._keep_redis())]
        self._generator: Generator
        self._profile: Profile
        self._codec: str
        self._codec_hash: str

    def load(self) -> None:
        """Loads the profile's cloud model and encoders; publishes its adapters, if new, and start topics."""
        from dekag.generation.loading import folder_hash, pipeline_hash
        from dekag.generation.models import Generator
        from dekag.profile import load_profile

        with disk_errors(self._settings.data_dir):
            self._folder_lease = FolderLease(self._settings.data_dir)
        if self._redis is not None:
            name, folder = self._folder_lease.name, self._settings.data_dir
            self._redis_lease = RedisLease(self._redis, name, folder, _LEASE_S)
        if reason := asyncio.run_coroutine_threadsafe(self._take_redis(), self._loop).result():
            raise SettingError(reason)
        self._tidy()  # makes room, perhaps
        if reason := problem(self._settings.data_dir):  # images are delivered and topics deleted all the same
            _log.warning(f"nothing can be stored: {reason}")
        self._profile = profile = load_profile(self._settings.profile, check_models=True)
        placed = self._settings.placement(keep_text_encoder=self._settings.keep_text_encoder)
        self._generator = Generator.from_profile(profile, "cloud", placed)
        self._generator.trace()
        self._codec, self._codec_hash = profile.codec, folder_hash(profile.codec)
        self._scoring_queue.load(profile.scorer)
        self._drift.edge_hash = self._demand.edge_hash = pipeline_hash(profile.edge)
        self._demand.load(profile)
        self._publish_shipped()
        self._loop.call_soon_threadsafe(self._loaded.set)

    def _publish_shipped(self) -> None:
        """Publishes the profile's adapters, if new, and start topics; if the disk fails, a later call may."""
        from services.cloud.publish import adapters_of, publish_adapters, publish_start_topics

        profile, topics = self._profile, listed(self._settings.start_topics)
        try:
            if profile.adapters is not None:
                adapters = adapters_of(Path(profile.adapters))
                publish_adapters(adapters, self._transmission, self._codec_hash, if_new=True)
            publish_start_topics(topics, profile, self._store, self._drift.edge_hash)
            self._shipped = True
        except OSError as error:
            _log.warning("what comes with the profile is not published yet", error=str(error))

    async def parts(self) -> dict[str, str]:
        """Parts of this service that can fail on their own, and why they fail now; empty if they work."""
        return {"distillation": self._other_cloud or await self._jobs.problem()}

    async def close(self) -> None:
        """Closes the connections to Redis and the models' threads."""
        self._closing = True  # as well, since redis-py sometimes swallows a cancellation
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._jobs.close()
        if self._redis_lease is not None:
            with contextlib.suppress(*REDIS_ERRORS):
                async with asyncio.timeout(_LEASE_TIMEOUT_S):
                    await self._redis_lease.give_back()
        if self._redis is not None:
            await self._redis.aclose()
        self._generating.close()
        self._scoring_queue.close()
        await self._cache.close()
        if self._folder_lease is not None:
            self._folder_lease.close()

    async def Generate(
        self, request: GenerateRequest, context: aio.ServicerContext[GenerateRequest, GeneratedImage]
    ) -> AsyncIterator[GeneratedImage]:
        """One image for each seed and format, in the order of the seeds."""
        prompt, seeds = check_prompt(request.prompt), converters.seeds(request)
        width, height = converters.size_from_proto(request, self._profile)
        formats = converters.image_formats(request)
        topics = check_knowledge(request.topics) or ()
        read = self._generator.reader.read(prompt)
        refusing = converters.long_prompt(request.on_long_prompt) == "refuse"
        if refusing and read.tokens > read.tokens_at_once:
            raise converters.too_long(read.tokens, read.tokens_at_once, "cloud")
        sampling = converters.sampling_from_proto(request.sampling, "conventional")
        guidance_scale = sampling.guidance_scale
        own = self._generator.guidance_scale
        converters.check_guided(sampling, own if guidance_scale is None else guidance_scale)
        files = len(seeds) * sum(name != "png" for name in formats)
        async with self._demand.sending(topics, files, _owner(request)) as add_file:
            for seed in seeds:
                generation = GenerationRequest(prompt, seed, width, height, sampling=sampling)
                async for image in self._images(generation, formats):
                    if image.format != IMAGE_FORMAT_PNG:
                        await add_file(image.ByteSize())
                    yield image

    async def Compare(
        self, request: CompareRequest, context: aio.ServicerContext[CompareRequest, Consistency]
    ) -> Consistency:
        """Consistency of a received image with the cloud's own, which is generated unless it is cached."""
        prompt, seed = check_prompt(request.prompt), check_seed(request.seed)
        width, height = converters.size_from_proto(request, self._profile)
        check_knowledge([use.topic for use in request.knowledge])
        received = await asyncio.to_thread(received_pixels, request.image, width, height)
        async with self._scoring_queue.slot() as score:
            generation = GenerationRequest(prompt, seed, width, height)
            (own,) = [image async for image in self._images(generation, ["png"])]
            result = await score(received, own.image)
        result.prompt_read.CopyFrom(own.prompt_read)
        if request.sampled:
            await self._drift.add_sample(request.knowledge, result.consistency)
        return result

    async def Distill(
        self, request: DistillRequest, context: aio.ServicerContext[DistillRequest, Job]
    ) -> Job:
        """Starts a distillation job."""
        spec = await asyncio.to_thread(distill_request.from_proto, request, self._profile)
        if self._other_cloud:
            raise UnavailableError(self._other_cloud)
        for name in ("client", "owner"):
            _check_client(name, getattr(request, name))
        async with self._claimed(spec.topic, request.owner, admin=request.admin):
            job_id = check_job_id(request.job_id)
            limited = not request.admin
            started = await self._jobs.start(spec, job_id, request.client, request.owner, limited=limited)
        return self._job(started)

    @contextlib.asynccontextmanager
    async def _claimed(self, topic: str, owner: str, *, admin: bool) -> AsyncIterator[None]:
        """Makes a new topic the owner's, unless what is done inside the context fails.

        After a failure or a cancellation, the update may still be published, or a job be queued: then the
        topic stays the owner's. What is claimed for nothing is given up by housekeeping.

        Raises:
            ConflictError: it is somebody else's.
        """
        owners = self._store.owners
        async with self._claiming:
            with disk_errors(self._settings.data_dir):
                is_own = await asyncio.to_thread(owners.renew, topic, owner)
            if is_own:
                yield
                return
            exists = await asyncio.to_thread(self._is_used, topic)
            with disk_errors(self._settings.data_dir):
                await asyncio.to_thread(partial(owners.claim, topic, owner, admin=admin, exists=exists))
            try:
                yield
            except Exception:
                if not (exists or await asyncio.to_thread(self._is_used, topic)):
                    owners.share(topic)
                raise

    def _is_used(self, topic: str) -> bool:
        """Whether there is a version of the topic, or an unfinished job that may publish one."""
        # first the jobs: a job that ends in between has published its version already
        return topic in waiting_topics(self._job_folders) or self._store.current(topic) is not None

    def _job(self, state: JobState) -> Job:
        message = state.to_proto()
        message.owner = self._owner_of_job(state.topic, state.owner)
        return message

    def _owner_of_job(self, topic: str, owner: str | None) -> str:
        """Who may see and cancel a job; a job of an earlier release belongs to the owner of its topic."""
        return self._store.owners.of(topic) if owner is None else owner

    async def GetJob(self, request: JobId, context: aio.ServicerContext[JobId, Job]) -> Job:
        """The current state of a job."""
        return self._job(await self._jobs.get(request.id))

    async def ListJobs(
        self, request: ListJobsRequest, context: aio.ServicerContext[ListJobsRequest, JobsMessage]
    ) -> JobsMessage:
        """The latest 100 jobs, newest first; with an owner, those that this API key may see."""
        _check_client("owner", request.owner)

        def is_seen(topic: str, owner: str | None) -> bool:
            return not request.HasField("owner") or self._owner_of_job(topic, owner) in ("", request.owner)

        return JobsMessage(jobs=[self._job(state) for state in await self._jobs.recent(is_seen)])

    async def WatchJob(self, request: JobId, context: aio.ServicerContext[JobId, Job]) -> AsyncIterator[Job]:
        """The current state of a job, then each change."""
        async for state in self._jobs.watch(request.id):
            yield self._job(state)

    async def CancelJob(self, request: JobId, context: aio.ServicerContext[JobId, Job]) -> Job:
        """Cancels a job that has not ended."""
        return self._job(await self._jobs.cancel(request.id))

    async def GetPreview(self, request: JobId, context: aio.ServicerContext[JobId, Preview]) -> Preview:
        """The latest preview images of a job."""
        state = await self._jobs.get(request.id)  # only ids of existing jobs reach the disk
        png = await asyncio.to_thread(self._store.aside_samples, state.id)
        if png is None:
            png = await asyncio.to_thread(self._job_folders.preview, state.id)
        return Preview(png=png)

    async def ListKnowledge(
        self,
        request: ListKnowledgeRequest,
        context: aio.ServicerContext[ListKnowledgeRequest, KnowledgeList],
    ) -> KnowledgeList:
        """The current version of each topic."""
        topics = await asyncio.to_thread(self._store.topics)
        running = await self._drift.running() if request.consistency else {}
        return KnowledgeList(
            knowledge=[self._signer.signed(manifest).to_proto() for manifest in topics.values()],
            consistency={topic: score.to_proto() for topic, score in running.items()},
        )

    async def GetKnowledge(
        self, request: GetKnowledgeRequest, context: aio.ServicerContext[GetKnowledgeRequest, Knowledge]
    ) -> Knowledge:
        """One version of one topic, with the parts that the request names."""
        response = await asyncio.to_thread(self._knowledge, request)
        score = (await self._drift.running()).get(request.topic) if request.consistency else None
        if score is not None and score.content_hash == response.manifest.content_hash:
            response.consistency.CopyFrom(score.to_proto())
        return response

    def _knowledge(self, request: GetKnowledgeRequest) -> Knowledge:
        manifest = self._store.find(check_topic(request.topic), request.content_hash)
        whole = request.files or request.samples
        return Knowledge(
            manifest=self._signer.signed(manifest).to_proto(),
            files=self._store.files(manifest) if request.files else {},
            samples=self._store.samples(manifest) if request.samples else b"",
            versions=[] if whole else self._store.versions(request.topic),
        )

    async def ShareKnowledge(
        self, request: ShareKnowledgeRequest, context: aio.ServicerContext[ShareKnowledgeRequest, Knowledge]
    ) -> Knowledge:
        """Shares a topic with all API keys; edges use it for them from the next request on."""
        topic = check_topic(request.topic)

        def share() -> Knowledge:
            self._store.find(topic)  # NotFoundError
            self._store.owners.share(topic)
            return self._knowledge(GetKnowledgeRequest(topic=topic))

        return await self._published(share)

    async def DeleteKnowledge(
        self,
        request: DeleteKnowledgeRequest,
        context: aio.ServicerContext[DeleteKnowledgeRequest, DeleteKnowledgeResponse],
    ) -> DeleteKnowledgeResponse:
        """Deletes all versions of a topic; edges stop using it with their next request."""
        topic = check_topic(request.topic)
        with disk_errors(self._settings.data_dir):
            await asyncio.to_thread(self._store.delete, topic)
        await self._sync_once()
        return DeleteKnowledgeResponse()

    async def Decide(
        self, request: DecideRequest, context: aio.ServicerContext[DecideRequest, Decisions]
    ) -> Decisions:
        """Counts a request for topics, and decides what it gets."""
        topics = check_knowledge(request.topics) or ()
        decisions = await self._demand.decide(topics, _owner(request))
        actions = [ACTIONS[decision.action] for decision in decisions]
        names_model = request.model or BY_FILE.intersection(actions)
        return Decisions(
            actions=actions, model=bytes.fromhex(self._generator.model_hash) if names_model else b""
        )

    async def ListDemand(
        self, request: ListDemandRequest, context: aio.ServicerContext[ListDemandRequest, DemandList]
    ) -> DemandList:
        """The demand for each topic that exists and was requested so far, and what its next request gets."""
        return await self._demand.messages()

    async def GetTransmissionKnowledge(
        self,
        request: GetTransmissionKnowledgeRequest,
        context: aio.ServicerContext[GetTransmissionKnowledgeRequest, TransmissionKnowledge],
    ) -> TransmissionKnowledge:
        """One version of a codec's adapters, with the parts that the request names."""
        return await asyncio.to_thread(self._adapters, request)

    def _adapters(self, request: GetTransmissionKnowledgeRequest) -> TransmissionKnowledge:
        base_hash = request.base_hash or self._codec_hash
        manifest = self._transmission.find(base_hash, request.content_hash)
        return TransmissionKnowledge(
            manifest=self._signer.signed(manifest).to_proto(),
            files=self._transmission.files(manifest) if request.files else {},
            versions=[] if request.files else self._transmission.versions(base_hash),
        )

    async def PublishKnowledge(
        self,
        request: PublishKnowledgeRequest,
        context: aio.ServicerContext[PublishKnowledgeRequest, Knowledge],
    ) -> Knowledge:
        """Publishes an update as the current version of its topic; edges use it from the next request on."""
        topic, edge_hash = check_topic(request.topic), self._drift.edge_hash

        def publish() -> Knowledge:
            from services.cloud.publish import publish_update, update_in

            update = update_in(dict(request.files), edge_hash)
            if update.topic != topic:
                raise InvalidInputError("topic", f"that of the update, {update.topic}", topic)
            owner = "" if request.admin else request.owner
            check_quotas(self._settings, topic, waiting_topics(self._job_folders), owner)
            if not request.admin:  # who may publish what ships, with triggers such as "and a"
                check_triggers(update.info["triggers"])
            manifest = publish_update(update, self._store, edge_hash)
            versions = self._store.versions(topic)
            return Knowledge(
                manifest=self._signer.signed(versions[manifest.version]).to_proto(), versions=list(versions)
            )

        async with self._claimed(topic, request.owner, admin=request.admin):
            return await self._published(publish)

    async def PublishTransmissionKnowledge(
        self,
        request: PublishTransmissionKnowledgeRequest,
        context: aio.ServicerContext[PublishTransmissionKnowledgeRequest, TransmissionKnowledge],
    ) -> TransmissionKnowledge:
        """Publishes adapters; edges use them from the next request on."""

        def publish() -> TransmissionKnowledge:
            from services.cloud.publish import adapters_in, publish_adapters, try_out

            knowledge = adapters_in(dict(request.files), self._codec_hash)
            try_out(knowledge, self._codec, self._codec_hash)
            check_quotas(self._settings, None)
            manifest = publish_adapters(knowledge, self._transmission, self._codec_hash)
            versions = self._transmission.versions(self._codec_hash)
            return TransmissionKnowledge(
                manifest=self._signer.signed(manifest).to_proto(), versions=list(versions)
            )

        return await self._published(publish)

    async def _published(self, publish: Callable[[], _Response]) -> _Response:
        with disk_errors(self._settings.data_dir):
            response = await asyncio.to_thread(publish)
        await self._sync_once()
        return response

    async def _sync(self) -> None:
        """Repairs the disk and syncs it to Redis, again and again until the service closes."""
        await self._loaded.wait()  # large libraries must not be imported by two threads at once
        verified = time.monotonic()
        while not self._closing:
            try:
                if time.monotonic() - verified > self._settings.verify_every_s:
                    verified = time.monotonic()
                    await self._verify()
                    await asyncio.to_thread(self._look_after)
                else:
                    await self._repair.check()
                await self._sync_once()
                if not self._other_cloud:
                    await self._demand.start_jobs()
            except Exception:  # unexpected; the next attempt may succeed
                _log.exception("repair or sync of the knowledge failed")
            if not self._closing:
                await asyncio.sleep(self._settings.mirror_every_s)

    def _look_after(self) -> None:
        """Tidies the data folder, and makes up for what a full disk has prevented at the start."""
        self._tidy()
        if self._folder_lease is not None:
            self._folder_lease.keep_name()
        if not self._shipped:
            self._publish_shipped()

    def _tidy(self) -> None:
        try:
            self._housekeeping.tidy()
        except OSError as error:  # leftovers do no harm
            _log.warning("the data folder was not tidied", error=str(error))

    async def _verify(self) -> None:
        try:
            await self._repair.verify()
        except REDIS_ERRORS as error:
            metrics.REDIS_FAILURES.inc()
            _log.debug("knowledge not fully verified", error=str(error))

    async def _take_redis(self) -> str:
        """Takes the lease of Redis; returns why another cloud has it, empty if none has or Redis is away."""
        if self._redis_lease is None:
            return ""
        try:
            async with asyncio.timeout(_LEASE_TIMEOUT_S):
                reason = await self._redis_lease.take()
        except REDIS_ERRORS:
            return self._other_cloud  # what needs Redis reports it
        if reason and reason != self._other_cloud:
            _log.error("this cloud does not write to Redis", reason=reason)
        self._other_cloud = self._demand.other_cloud = self._drift.other_cloud = reason
        return reason

    async def _keep_redis(self) -> None:
        """Prolongs the lease, also while models load and while knowledge is verified."""
        while not self._closing:
            await asyncio.sleep(_LEASE_S / 5)
            await self._take_redis()

    async def _sync_once(self) -> None:
        if self._redis is None:
            with contextlib.suppress(OSError):  # from the disk; the next attempt may succeed
                await self._drift.refresh()
            return
        if await self._take_redis():
            return
        try:
            if changed := await sync_knowledge(
                self._store, self._redis, self._settings.mirror_mib, self._signer
            ):
                _log.info("knowledge synced to Redis", topics=changed)
            if codecs := await sync_adapters(self._transmission, self._redis, self._signer):
                _log.info("transmission knowledge synced to Redis", codecs=codecs)
            if restored := await self._jobs.restore():
                _log.warning("Redis had lost jobs", jobs=restored)
            for status, jobs in (await self._jobs.unfinished()).items():
                metrics.JOBS.labels(status).set(jobs)
            await self._measure_redis(self._redis)
            await self._drift.refresh()
        except (*REDIS_ERRORS, UnavailableError) as error:
            metrics.REDIS_FAILURES.inc()
            metrics.JOBS.clear()  # the last values are outdated
            _log.debug("knowledge not synced to Redis", error=str(error))

    @staticmethod
    async def _measure_redis(redis: Redis) -> None:
        try:
            memory = await redis.info("memory")
        except ResponseError:  # its user may not ask
            return
        metrics.REDIS_MEMORY.labels("used").set(memory["used_memory"])
        metrics.REDIS_MEMORY.labels("limit").set(memory.get("maxmemory", 0))

    async def _images(self, request: GenerationRequest, formats: list[str]) -> AsyncIterator[GeneratedImage]:
        """The image in each format, from the cache or generated."""
        generator, (width, height) = self._generator, request.size
        read = PromptRead(**vars(generator.reader.read(request.prompt)))
        keys = {name: image_key(generator.identity, request, name) for name in formats}
        images = {name: await self._cached(key, width, height) for name, key in keys.items()}
        missing = [name for name, image in images.items() if image is None]
        stages: list[StageTime] = []
        if missing:
            pixels, seconds = await self._generating.run(request)
            stages.append(stage_time("cloud.generate", seconds))
            start = time.perf_counter()
            encoded = await asyncio.to_thread(_encode, pixels, missing)
            images |= encoded
            stages.append(stage_time("cloud.encode", time.perf_counter() - start))
            for name, data in encoded.items():
                await self._cache.set(keys[name], data, self._settings.cache_ttl_s)
        for name, image in images.items():
            yield GeneratedImage(
                seed=request.seed,
                image=image or b"",
                model_hash=generator.model_hash,
                cached=not missing,
                stages=stages,
                format=converters.FORMATS[name],
                prompt_read=read,
            )
            stages = []

    async def _cached(self, key: str, width: int, height: int) -> bytes | None:
        """The cached image under ``key``; None if it is missing or damaged."""
        if (data := await self._cache.get(key)) is None:
            return None
        return data if await asyncio.to_thread(_is_image, data, width, height) else None

    def _generate_batch(
        self, requests: Sequence[GenerationRequest], should_continue: ShouldContinue
    ) -> list[Pixels]:
        """Images of requests of one size; equal requests are generated once."""
        from dekag.generation.models import PIXELS_AT_ONCE

        (width, height), sampling = requests[0].size, requests[0].sampling
        new, most = list(dict.fromkeys(requests)), max(1, PIXELS_AT_ONCE // (width * height))
        images: dict[GenerationRequest, Pixels] = {}
        for start in range(0, len(new), most):
            part = new[start : start + most]
            seeds = [request.seed for request in part]
            latents = self._generator.batch(
                [request.prompt for request in part],
                seeds,
                width=width,
                height=height,
                steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                negative_prompt=sampling.negative_prompt,
                should_continue=should_continue,
            )
            images |= zip(part, self._generator.decoder.decode(latents, seeds), strict=True)
        return [images[request] for request in requests]


def _is_image(data: bytes, width: int, height: int) -> bool:
    from dekag.generation.images import from_bytes

    try:
        return from_bytes(data, max_side=max(width, height)).shape == (height, width, 3)
    except InvalidInputError:
        return False


def _encode(pixels: Pixels, formats: list[str]) -> dict[str, bytes]:
    from dekag.generation.images import IMAGE_FORMATS, to_format, to_png

    files: dict[str, bytes] = {name: to_format(pixels, name) for name in IMAGE_FORMATS if name in formats}
    return files | {"png": to_png(pixels)} if "png" in formats else files
