"""The edge service, the source of the downlink: turns a prompt into symbols, via a latent or an image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from grpc import aio

from dekag.errors import InvalidInputError, MismatchError, NotFoundError, UnavailableError
from dekag.generation.request import GenerationRequest
from dekag.link.iq import evenly_spaced, iq_to_bytes
from dekag.pipeline import DigitalSender, Sender
from services.common import clients, converters, tracing
from services.common.cache import Cache, latent_key
from services.common.frames import MAX_CONSTELLATION_SYMBOLS, FrameError, Transmission
from services.common.knowledge import Manifest
from services.common.prompt_states import PromptStates
from services.common.stages import stage_time
from services.common.worker import BatchWorker, ModelWorker, ShouldContinue
from services.edge.knowledge import Knowledge
from services.edge.transmission import EdgeCodecs
from services.proto.cloud_pb2 import GeneratedImage, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import (
    DELIVERY_CONVENTIONAL,
    GetTransmissionKnowledgeRequest,
    HopTraffic,
    KnowledgeUse,
    PromptRead,
    ProvideRequest,
    Reference,
    SymbolFrame,
    TransmissionHeader,
    TransmissionKnowledge,
    TransmissionReport,
)
from services.proto.downlink_pb2_grpc import DownlinkServicer

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.makd.aligned_generator import AlignedGenerator
    from dekag.makd.update import KnowledgeUpdate
    from dekag.profile import Profile
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings


_log = structlog.get_logger()


@dataclass(frozen=True)
class _GenerationResult:
    """Latents (1, *shape) with details of their generation.

    Attributes:
        seconds: time to generate them, s; None if they were cached.
        knowledge: the updates in use.
        fetched_bytes: bytes transferred to fetch updates.
    """

    latents: torch.Tensor
    seconds: float | None
    knowledge: Sequence[Manifest]
    fetched_bytes: int


@dataclass(frozen=True, eq=False)
class _EncodeJob:
    """Latents (1, *shape) to encode with `codec` into that many symbols, beside the prompt's states."""

    codec: AlignedCodec
    latents: torch.Tensor
    channel_uses: int
    request: DeliveryRequest
    text: torch.Tensor | None

    def batch_key(self) -> tuple[object, ...]:
        return self.codec.content_hash, self.latents.shape, self.request.modulation


@dataclass(frozen=True, eq=False)
class _GenerateJob:
    """A request with its updates, in case they are unloaded before it runs."""

    request: GenerationRequest
    updates: Sequence[KnowledgeUpdate]
    guidance_scale: float

    def batch_key(self) -> tuple[object, ...]:
        return self.request.size, self.guidance_scale


class EdgeServicer(DownlinkServicer):
    """Generates latents with the edge model and encodes them, or sends the cloud's image conventionally."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._cache = Cache(settings)
        self._channel = clients.open_channel(settings.cloud_address, settings)
        self._cloud = CloudStub(self._channel)
        self._modulating = ModelWorker("digital", threads=settings.threads, max_queue=settings.max_queue)
        self._generating = BatchWorker(
            "edge",
            self._generate_batch,
            batch_key=_GenerateJob.batch_key,
            max_batch=settings.generate_batch,
            wait_s=settings.batch_wait_s,
            threads=settings.threads,
            max_queue=settings.max_queue,
        )
        self._encoding = BatchWorker(
            "codec",
            _encode,
            batch_key=_EncodeJob.batch_key,
            max_batch=settings.max_batch,
            wait_s=settings.batch_wait_s,
            threads=settings.threads,
            max_queue=settings.max_queue,
        )
        self._knowledge = Knowledge(settings, self._cache, self._cloud)
        self._codecs = EdgeCodecs(settings, self._cache, self._cloud)
        self._prompts = PromptStates(settings)
        self._backhaul = settings.backhaul()
        self._generator: AlignedGenerator
        self._profile: Profile

    def load(self) -> None:
        """Loads the profile's edge model, codec and adapters."""
        from dekag.generation.models import Generator
        from dekag.link.digital import warm_up
        from dekag.makd.aligned_generator import AlignedGenerator
        from dekag.profile import load_profile

        self._profile = profile = load_profile(self._settings.profile)
        generator = Generator.from_profile(profile, "edge", self._settings.placement())
        self._generator = AlignedGenerator(generator, capacity=self._settings.knowledge_capacity)
        self._codecs.load(profile.codec, profile.adapters)
        self._prompts.load(profile, self._codecs)
        warm_up()

    async def close(self) -> None:
        """Closes channel, cache and the models' threads."""
        for worker in (self._generating, self._modulating, self._encoding, self._prompts):
            worker.close()
        await self._channel.close()
        await self._cache.close()

    async def Provide(
        self, message: ProvideRequest, context: aio.ServicerContext[ProvideRequest, SymbolFrame]
    ) -> AsyncIterator[SymbolFrame]:
        """The symbols of the requested image, with a report."""
        request = converters.request_from_proto(message, self._profile)
        send = self._semantic if request.jscc else self._conventional
        transmission = await send(request)
        sent_bytes = sum(hop.sent_bytes for hop in transmission.report.hops)
        transmission.report.latency.backhaul_s = self._backhaul.exchange_s(
            sent_bytes, np.random.default_rng(request.seed)
        )
        tracing.set_link_attributes(request, transmission.header.channel_uses)
        for frame in transmission.frames():
            yield frame

    async def GetTransmissionKnowledge(
        self,
        request: GetTransmissionKnowledgeRequest,
        context: aio.ServicerContext[GetTransmissionKnowledgeRequest, TransmissionKnowledge],
    ) -> TransmissionKnowledge:
        """The files of the adapters with that hash, from memory or from the cloud."""
        own = self._codecs.base.base_hash
        if request.base_hash not in ("", own):
            raise NotFoundError(
                f"there is no transmission knowledge for the codec {request.base_hash[:12]!r} here:"
                f" this edge encodes with {own[:12]!r}"
            )
        held = self._codecs.held(request.content_hash)
        if held is None or held.knowledge is None:
            response, _ = await self._codecs.fetch_from_cloud(request.content_hash)
            return response
        return TransmissionKnowledge(files=held.knowledge.to_files())

    async def _semantic(self, request: DeliveryRequest) -> Transmission:
        shape = self._generator.latent_shape(request.width, request.height)
        (codec, adapters_bytes), knowledge = await asyncio.gather(
            self._codec(request), self._knowledge.choose(request, self._generator.model_hash)
        )
        try:
            rate = Sender(codec).rate(
                request.link,
                shape,
                source_values=request.source_values,
                cbr=request.cbr,
                target_psnr_db=request.target_psnr_db,
            )
        except InvalidInputError as error:
            raise error.within("link") from None
        drawn = await self._latents(request, shape, knowledge)
        text = await self._prompts.states(request, codec)
        outgoing = _EncodeJob(codec, drawn.latents, rate.channel_uses, request, text)
        symbols, encoding = await self._encoding.run(outgoing)
        hashes = {"edge": self._generator.model_hash, "codec": codec.base_hash}
        if codec.content_hash:
            hashes["adapters"] = codec.content_hash
        report = TransmissionReport(
            hops=[HopTraffic(hop="cloud-edge", sent_bytes=drawn.fetched_bytes + adapters_bytes)],
            model_hashes=hashes,
            expected_psnr_db=rate.expected_psnr_db,
            side_information=converters.SIDE_INFORMATION["none" if text is None else "prompt"],
            modulation=converters.MODULATIONS[
                request.modulation or codec.modulation_at(request.link.sender_snr_db)
            ],
            cached=drawn.seconds is None,
            knowledge=[
                KnowledgeUse(topic=each.topic, version=each.version, content_hash=each.content_hash)
                for each in drawn.knowledge
            ],
        )
        report.prompt_read["edge"].CopyFrom(
            PromptRead(**vars(self._generator.generator.reader.read(request.prompt)))
        )
        header = TransmissionHeader(
            channel_uses=rate.channel_uses,
            delivery=converters.DELIVERIES[request.delivery],
            latent_shape=shape,
            codec_hash=codec.base_hash,
            adapters_hash=codec.content_hash,
        )
        reference = None
        if request.measure:
            reference = Reference(latents=_to_bytes(drawn.latents), iq=_shown(symbols, request))
        transmission = Transmission(header, symbols, [], reference, report)
        if drawn.seconds is not None:
            transmission.add_stage("edge.generate", drawn.seconds)
        transmission.add_stage("edge.encode", encoding)
        return transmission

    async def _codec(self, request: DeliveryRequest) -> tuple[AlignedCodec, int]:
        """The codec for the requested delivery, and the bytes transferred for its adapters."""
        return await self._codecs.current() if request.delivery == "semantic" else (self._codecs.base, 0)

    async def _latents(
        self, request: DeliveryRequest, shape: tuple[int, int, int], knowledge: Sequence[Manifest]
    ) -> _GenerationResult:
        """Latents generated with this knowledge, or from the cache."""
        refusing = request.on_long_prompt == "refuse"  # the updates are needed to check the length
        if not refusing and (cached := await self._cached(request, shape, knowledge)) is not None:
            return _GenerationResult(cached, None, knowledge, 0)
        updates, fetched_bytes = [], 0
        for manifest in knowledge:
            try:
                update, sent_bytes = await self._knowledge.fetch(manifest)
                fetched_bytes += sent_bytes
                if not self._generator.has(update.content_hash):
                    await self._generating.run_exclusive(self._generator.add, update)
                updates.append(update)
            except (MismatchError, NotFoundError, UnavailableError) as error:
                if request.knowledge is not None:
                    raise
                _log.warning("skipping knowledge", topic=manifest.topic, error=str(error))
        if refusing:
            self._check_length(request.prompt, updates)
        available = {update.content_hash for update in updates}
        # if the prompt selected the knowledge, an image without the unavailable part is better than none
        if refusing or len(available) < len(knowledge):
            knowledge = [manifest for manifest in knowledge if manifest.content_hash in available]
            if (cached := await self._cached(request, shape, knowledge)) is not None:
                return _GenerationResult(cached, None, knowledge, fetched_bytes)
        hashes = tuple(update.content_hash for update in updates)
        generation = GenerationRequest(request.prompt, request.seed, request.width, request.height, hashes)
        job = _GenerateJob(generation, updates, self._generator.guidance_scale(updates))
        latents, seconds = await self._generating.run(job)
        await self._cache.set(self._key(request, knowledge), _to_bytes(latents), self._settings.cache_ttl_s)
        return _GenerationResult(latents, seconds, knowledge, fetched_bytes)

    def _check_length(self, prompt: str, updates: Sequence[KnowledgeUpdate]) -> None:
        """Raises InvalidInputError unless the prompt fits in one window with these updates."""
        if len(self._generator.windows(prompt, updates)) > 1:
            read = self._generator.generator.reader.read(prompt)
            vectors = sum(len(update.token_rows(prompt)) for update in updates)
            raise converters.too_long(read.tokens, max(0, read.tokens_at_once - vectors), "edge")

    def _generate_batch(
        self, jobs: Sequence[_GenerateJob], should_continue: ShouldContinue
    ) -> list[torch.Tensor]:
        """Latents (1, *shape) of each job of one batch key; equal requests are generated once."""
        latents: dict[GenerationRequest, torch.Tensor] = {}
        for part in self._parts(jobs):
            # again, right before generating: other requests may have evicted them
            for update in {u.content_hash: u for job in part for u in job.updates}.values():
                self._generator.add(update)
            new = [
                request for request in dict.fromkeys(job.request for job in part) if request not in latents
            ]
            if new:
                latents |= zip(
                    new, self._generator.batch(new, should_continue=should_continue).split(1), strict=True
                )
        return [latents[job.request] for job in jobs]

    def _parts(self, jobs: Sequence[_GenerateJob]) -> Iterator[list[_GenerateJob]]:
        """Splits the jobs into batches within the limits of memory and of loaded updates."""
        from dekag.generation.models import PIXELS_AT_ONCE

        width, height = jobs[0].request.size
        max_jobs = max(1, PIXELS_AT_ONCE // (width * height))
        part: list[_GenerateJob] = []
        hashes: set[str] = set()
        for job in jobs:
            with_job = hashes | set(job.request.updates)
            if part and (len(part) == max_jobs or len(with_job) > self._settings.knowledge_capacity):
                yield part
                part, with_job = [], set(job.request.updates)
            part.append(job)
            hashes = with_job
        yield part

    def _key(self, request: DeliveryRequest, knowledge: Sequence[Manifest]) -> str:
        hashes = [manifest.content_hash for manifest in knowledge]
        model_hash = self._generator.model_hash
        return latent_key(model_hash, request.prompt, request.seed, request.width, request.height, hashes)

    async def _cached(
        self, request: DeliveryRequest, shape: tuple[int, int, int], knowledge: Sequence[Manifest]
    ) -> torch.Tensor | None:
        if (data := await self._cache.get(self._key(request, knowledge))) is None:
            return None
        try:
            return torch.from_numpy(converters.latents_from_bytes(data, (1, *shape)))
        except InvalidInputError:
            return None  # not written by this service: generated again and overwritten

    async def _conventional(self, request: DeliveryRequest) -> Transmission:
        file, png, traffic = await self._fetch_image(request)
        (symbols, coding), modulating = await self._modulating.run(
            DigitalSender().encode, file.image, request.link
        )
        report = TransmissionReport(
            stages=[*file.stages, stage_time("edge.modulate", modulating)],
            hops=[HopTraffic(hop="cloud-edge", sent_bytes=traffic)],
            model_hashes={"cloud": file.model_hash},
            cached=file.cached,
        )
        report.prompt_read["cloud"].CopyFrom(file.prompt_read)
        header = TransmissionHeader(
            channel_uses=symbols.shape[1],
            delivery=DELIVERY_CONVENTIONAL,
            coding=converters.coding_to_proto(coding, len(file.image)),
        )
        reference = Reference(image=png, iq=_shown(symbols, request)) if request.measure else None
        return Transmission(header, symbols, [], reference, report)

    async def _fetch_image(self, request: DeliveryRequest) -> tuple[GeneratedImage, bytes, int]:
        """The cloud's image file, its PNG (empty unless measured), and the bytes transferred for the file."""
        formats = [request.image_format, "png"] if request.measure else [request.image_format]
        message = GenerateRequest(
            prompt=request.prompt,
            seeds=[request.seed],
            width=request.width,
            height=request.height,
            formats=[converters.FORMATS[name] for name in formats],
            on_long_prompt=converters.LONG_PROMPTS[request.on_long_prompt],
        )
        images: dict[int, GeneratedImage] = {}
        async with aclosing(clients.stream(self._cloud.Generate, message, "cloud")) as responses:
            async for image in responses:
                images[image.format] = image
                if len(images) > len(formats):
                    raise FrameError("the cloud sent more images than requested")
        try:
            file, *png = (images[converters.FORMATS[name]] for name in formats)
        except KeyError as error:
            raise FrameError(f"the cloud did not send format {error}") from error
        if not file.image:
            raise FrameError("the cloud sent an empty image")
        if len(file.image) > (largest := self._profile.largest_file):
            allowed = f"a format, or with a size, whose file has at most {largest} bytes"
            raise InvalidInputError(
                "image_format", allowed, f"{request.image_format}, {len(file.image)} bytes"
            )
        return file, png[0].image if png else b"", message.ByteSize() + file.ByteSize()


def _encode(jobs: Sequence[_EncodeJob], _: ShouldContinue) -> list[torch.Tensor]:
    """Symbols of each job of one batch key."""
    first = jobs[0]
    return Sender(first.codec).encode(
        torch.cat([job.latents for job in jobs]),
        [job.request.link for job in jobs],
        [job.channel_uses for job in jobs],
        source_values=first.request.source_values,
        seeds=[job.request.seed for job in jobs],
        modulation=first.request.modulation,
        text=[job.text for job in jobs],
    )


def _to_bytes(latents: torch.Tensor) -> bytes:
    return converters.latents_to_bytes(latents.numpy())


def _shown(symbols: torch.Tensor, request: DeliveryRequest) -> bytes:
    return iq_to_bytes(evenly_spaced(symbols, MAX_CONSTELLATION_SYMBOLS)) if request.details else b""
