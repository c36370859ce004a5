"""The edge service, the source of the downlink: turns a prompt into symbols, via a latent or an image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import structlog
import torch
from grpc import aio

from dekag.api.limits import MAX_PICTURE_PIXELS
from dekag.errors import ExhaustedError, InvalidInputError, MismatchError, NotFoundError, UnavailableError
from dekag.generation.images import from_bytes
from dekag.generation.request import GenerationRequest
from dekag.link.iq import evenly_spaced, iq_to_bytes
from dekag.link.mimo import stream_snr_db
from dekag.pipeline import DigitalSender, Rate, Sender, render_tiles
from services.common import clients, converters, tracing
from services.common.cache import Cache, content_key, latent_key
from services.common.frames import MAX_CONSTELLATION_SYMBOLS, FrameError, Transmission
from services.common.knowledge import Manifest
from services.common.prompt_states import PromptStates
from services.common.stages import stage_time
from services.common.worker import BatchWorker, ModelWorker, ShouldContinue
from services.edge.knowledge import Choice, Knowledge
from services.edge.transmission import EdgeCodecs
from services.proto.cloud_pb2 import GeneratedImage, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import (
    DELIVERY_CONVENTIONAL,
    GetTransmissionKnowledgeRequest,
    HopTraffic,
    KnowledgeUse,
    LatentPreview,
    PictureSize,
    PromptRead,
    ProvideRequest,
    Reference,
    SentPicture,
    StageTime,
    SymbolFrame,
    TransmissionHeader,
    TransmissionKnowledge,
    TransmissionReport,
)
from services.proto.downlink_pb2_grpc import DownlinkServicer

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.generation.models import OnStep
    from dekag.link.digital import ModulationAndCoding
    from dekag.makd.aligned_generator import AlignedGenerator
    from dekag.makd.update import KnowledgeUpdate
    from dekag.pictures import Picture, Tiling
    from dekag.pixel_modules import AnyPixelCodec
    from dekag.profile import Profile
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings


_log = structlog.get_logger()


@dataclass(frozen=True)
class _GenerationResult:
    """Latents (1, *shape) with details of their generation.

    Attributes:
        cached: whether they were.
        knowledge: the updates in use.
        fetched_bytes: bytes transferred to fetch updates, or the cloud's image.
        stages: time to make them, unless they were cached.
        cloud_hash: hash of the cloud's model if it generated the image; empty if the edge's did.
        read: how much of the prompt the model read; None of a cached image of the cloud.
    """

    latents: torch.Tensor
    cached: bool
    knowledge: Sequence[Manifest]
    fetched_bytes: int
    stages: Sequence[StageTime] = ()
    cloud_hash: str = ""
    read: PromptRead | None = None


@dataclass(frozen=True)
class _OpenedPicture:
    """A picture that was read, with its tiles' latents or pixels (n, *shape) where those are sent.

    Attributes:
        picture: as read.
        png: it as a PNG; empty unless measured.
        tiling: how it is cut.
        latents: of the tiles, or their pixels; None for a conventional delivery.
        autoencoder_psnr_db: PSNR of what the autoencoder makes of it, dB; None if not measured.
        rate: of the whole picture; None where it is not sent as pixels.
        rate_note: what to expect of a rate that the codec was not trained for, if it is one.
    """

    picture: Picture
    png: bytes
    tiling: Tiling
    latents: torch.Tensor | None = None
    autoencoder_psnr_db: float | None = None
    rate: Rate | None = None
    rate_note: str | None = None


def _tiles_rate(
    request: DeliveryRequest,
    codec: AlignedCodec | AnyPixelCodec,
    shape: tuple[int, int, int],
    tiling: Tiling,
) -> Rate:
    """The rate of the whole picture; InvalidInputError names the field within the request."""
    try:
        return Sender(codec).tiles_rate(
            request.link, shape, tiling, cbr=request.cbr, target_psnr_db=request.target_psnr_db
        )
    except InvalidInputError as error:
        raise error.within("link") from None


@dataclass(frozen=True, eq=False)
class _EncodeJob:
    """Latents (1, *shape) to encode with `codec` into that many symbols, beside the prompt's states.

    With a tiling, latents (n, *shape) of a picture's tiles.
    """

    codec: AlignedCodec | AnyPixelCodec
    latents: torch.Tensor
    channel_uses: int
    request: DeliveryRequest
    text: torch.Tensor | None
    tiling: Tiling | None = None

    def batch_key(self) -> tuple[object, ...]:
        if self.tiling is not None:  # a batch of its own
            return (id(self),)
        return self.codec.content_hash, self.latents.shape, self.request.modulation


@dataclass(frozen=True, eq=False)
class _GenerateJob:
    """A request with its updates, in case they are unloaded before it runs."""

    request: GenerationRequest
    updates: Sequence[KnowledgeUpdate]
    guidance_scale: float
    on_step: OnStep | None = None

    def batch_key(self) -> tuple[object, ...]:
        watched = None if self.on_step is None else self  # its batch consists of it alone
        return self.request.size, self.guidance_scale, self.request.sampling, watched


class _Previews:
    """The denoiser's predictions of one image, handed from the model's thread to the stream of frames.

    Latents that come from the cache or from the cloud's image have no previews.
    """

    def __init__(self, request: DeliveryRequest) -> None:
        self._count = request.previews
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[LatentPreview] = asyncio.Queue()

    def callback(self, steps: int) -> OnStep | None:
        """To be called after each of `steps` steps; None if no preview is needed."""
        chosen = {(i + 1) * steps // (self._count + 1) for i in range(self._count)} - {0, steps}
        if not chosen:
            return None

        def on_step(step: int, latents: torch.Tensor) -> None:
            if step in chosen:
                preview = LatentPreview(
                    latents=_to_bytes(latents), latent_shape=latents.shape[1:], step=step, steps=steps
                )
                self._loop.call_soon_threadsafe(self._queue.put_nowait, preview)

        return on_step

    async def until(self, done: asyncio.Task[Transmission]) -> AsyncIterator[LatentPreview]:
        """The previews as they come, until `done` has ended."""
        while not done.done():
            waiting = asyncio.ensure_future(self._queue.get())
            try:
                await asyncio.wait({waiting, done}, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    yield waiting.result()
            finally:
                waiting.cancel()
        while not self._queue.empty():
            yield self._queue.get_nowait()


class EdgeServicer(DownlinkServicer):
    """Generates latents with the edge model and encodes them, or sends the cloud's image conventionally."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._cache = Cache(settings)
        self._channel = clients.open_channel(settings.cloud_address, settings)
        self._cloud = CloudStub(self._channel)
        self._modulating, self._autoencoding = (
            ModelWorker(name, threads=settings.threads, max_queue=settings.max_queue)
            for name in ("digital", "autoencoder")
        )
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
        from dekag.makd.topics import read_topics, topic_triggers
        from dekag.profile import load_profile

        self._profile = profile = load_profile(self._settings.profile, check_models=True)
        generator = Generator.from_profile(profile, "edge", self._settings.placement())
        generator.trace()
        self._generator = AlignedGenerator(generator, capacity=self._settings.knowledge_capacity)
        self._codecs.load(profile)
        self._prompts.load(profile, self._codecs)
        self._knowledge.load(topic_triggers(read_topics(profile.topics)), self._generator.fits)
        warm_up()

    async def close(self) -> None:
        """Closes channel, cache and the models' threads."""
        for worker in (
            self._generating, self._modulating, self._autoencoding, self._encoding, self._prompts,
        ):  # fmt: skip
            worker.close()
        await self._channel.close()
        await self._cache.close()

    async def Provide(
        self, message: ProvideRequest, context: aio.ServicerContext[ProvideRequest, SymbolFrame]
    ) -> AsyncIterator[SymbolFrame]:
        """The symbols of the requested image, or of the picture in the request, with a report."""
        request = converters.request_from_proto(message, self._profile)
        if request.picture is not None:
            transmission = await self._picture(request)
        elif request.jscc:
            previews = _Previews(request)
            sending = asyncio.create_task(self._semantic(request, previews))
            try:
                async for preview in previews.until(sending):
                    yield SymbolFrame(preview=preview)
                transmission = await sending
            finally:
                sending.cancel()
        else:
            transmission = await self._conventional(request)
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

    async def _semantic(self, request: DeliveryRequest, previews: _Previews) -> Transmission:
        shape = self._generator.latent_shape(request.width, request.height)
        (codec, adapters_bytes), choice = await asyncio.gather(
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
        drawn = await self._make(request, shape, choice, previews)
        transmission = await self._encoded(request, codec, rate, drawn.latents)
        report = transmission.report
        sent_bytes = drawn.fetched_bytes + adapters_bytes + choice.sent_bytes
        report.hops.add(hop="cloud-edge", sent_bytes=sent_bytes)
        report.model_hashes["edge"] = self._generator.model_hash
        if drawn.cloud_hash:
            report.model_hashes["cloud"] = drawn.cloud_hash
        report.cached = drawn.cached
        report.knowledge.extend(
            KnowledgeUse(topic=each.topic, version=each.version, content_hash=each.content_hash)
            for each in drawn.knowledge
        )
        if drawn.read is not None:
            report.prompt_read["cloud" if drawn.cloud_hash else "edge"].CopyFrom(drawn.read)
        stages = [*drawn.stages, *report.stages]
        del report.stages[:]
        report.stages.extend(stages)
        if request.measure:
            transmission.reference = Reference(
                latents=_to_bytes(drawn.latents), iq=_shown(transmission.symbols, request)
            )
        return transmission

    async def _encoded(
        self,
        request: DeliveryRequest,
        codec: AlignedCodec | AnyPixelCodec,
        rate: Rate,
        latents: torch.Tensor,
        tiling: Tiling | None = None,
    ) -> Transmission:
        """Symbols of latents (1, *shape), or (n, *shape) of a picture's tiles, and what the codec reports."""
        text = await self._prompts.states(request, codec)
        outgoing = _EncodeJob(codec, latents, rate.channel_uses, request, text, tiling)
        symbols, seconds = await self._encoding.run(outgoing)
        hashes = {"codec": codec.base_hash}
        if codec.content_hash:
            hashes["adapters"] = codec.content_hash
        report = TransmissionReport(
            stages=[stage_time("edge.encode", seconds)],
            model_hashes=hashes,
            expected_psnr_db=rate.expected_psnr_db,
            side_information=converters.SIDE_INFORMATION["none" if text is None else "prompt"],
            modulation=converters.MODULATIONS[
                request.modulation
                or codec.modulation_at(stream_snr_db(request.link.sender_snr_db, request.link))
            ],
        )
        header = TransmissionHeader(
            channel_uses=rate.channel_uses,
            delivery=converters.DELIVERIES[request.delivery],
            latent_shape=latents.shape[1:],
            codec_hash=codec.base_hash,
            adapters_hash=codec.content_hash,
        )
        return Transmission(header, symbols, [], None, report)

    async def _codec(self, request: DeliveryRequest) -> tuple[AlignedCodec | AnyPixelCodec, int]:
        """The codec for the requested delivery, and the bytes transferred for its adapters."""
        if request.delivery == "pixels":
            return self._codecs.of_pixels(), 0
        return await self._codecs.current() if request.delivery == "semantic" else (self._codecs.unaligned, 0)

    async def _make(
        self,
        request: DeliveryRequest,
        shape: tuple[int, int, int],
        choice: Choice,
        previews: _Previews,
    ) -> _GenerationResult:
        """Latents of the edge's image, or of the cloud's if the demand policy sends it as a file."""
        if choice.file_topics:
            try:
                return await self._latents_of_file(request, shape, choice)
            except (UnavailableError, ExhaustedError) as error:  # an unaligned image is better than none
                _log.warning("the cloud sends no image now", error=str(error))
        drawn = await self._latents(request, shape, choice.updates, previews)
        return replace(drawn, read=PromptRead(**vars(self._generator.generator.reader.read(request.prompt))))

    async def _latents_of_file(
        self, request: DeliveryRequest, shape: tuple[int, int, int], choice: Choice
    ) -> _GenerationResult:
        """Latents of the cloud's image, which comes as a file, or from the cache."""
        cached = await self._cached(self._file_key(request, choice.model), shape)
        if cached is not None and request.on_long_prompt != "refuse":  # which the cloud checks
            return _GenerationResult(cached, True, (), 0, cloud_hash=choice.model.hex())
        file, _, fetched_bytes = await self._fetch_image(replace(request, measure=False), choice.file_topics)
        from dekag.generation.models import LatentEncoder

        start = time.perf_counter()
        try:
            model = bytes.fromhex(file.model_hash)
            pixels = from_bytes(file.image, max_side=max(request.width, request.height))
            encoder = LatentEncoder(self._generator.decoder)
            latents = await self._generating.run_exclusive(encoder.encode, pixels[None])
        except (InvalidInputError, ValueError) as error:
            raise FrameError(f"the cloud's image: {error}") from error
        if latents.shape[1:] != shape:
            raise FrameError(f"the cloud's image has shape {pixels.shape}")
        stages = [*file.stages, stage_time("edge.embed", time.perf_counter() - start)]
        await self._cache.set(self._file_key(request, model), _to_bytes(latents), self._settings.cache_ttl_s)
        return _GenerationResult(
            latents, file.cached, (), fetched_bytes, stages, file.model_hash, file.prompt_read
        )

    async def _latents(
        self,
        request: DeliveryRequest,
        shape: tuple[int, int, int],
        knowledge: Sequence[Manifest],
        previews: _Previews,
    ) -> _GenerationResult:
        """Latents generated with this knowledge, or from the cache."""
        refusing = request.on_long_prompt == "refuse"  # the updates are needed to check the length
        if not refusing and (cached := await self._cached(self._key(request, knowledge), shape)) is not None:
            return _GenerationResult(cached, True, knowledge, 0)
        updates, fetched_bytes = [], 0
        for manifest in knowledge:
            update: KnowledgeUpdate | None = None
            try:
                update, sent_bytes = await self._knowledge.fetch(manifest)
                fetched_bytes += sent_bytes
                self._generator.check(update)  # not only after it has waited for the model
                if not self._generator.has(update.content_hash):
                    await self._generating.run_exclusive(self._generator.add, update)
                updates.append(update)
            except (MismatchError, NotFoundError, UnavailableError) as error:
                if request.knowledge is not None:
                    raise
                _log.warning("skipping knowledge", topic=manifest.topic, error=str(error))
                update = None  # of no use, and it may be large
        if refusing:
            self._check_length(request.prompt, updates)
        available = {update.content_hash for update in updates}
        # if the prompt selected the knowledge, an image without the unavailable part is better than none
        if refusing or len(available) < len(knowledge):
            knowledge = [manifest for manifest in knowledge if manifest.content_hash in available]
            if (cached := await self._cached(self._key(request, knowledge), shape)) is not None:
                return _GenerationResult(cached, True, knowledge, fetched_bytes)
        hashes = tuple(update.content_hash for update in updates)
        sampling = request.sampling
        guidance_scale = self._generator.guidance_scale(updates, sampling)
        converters.check_guided(sampling, guidance_scale)
        generation = GenerationRequest(
            request.prompt, request.seed, request.width, request.height, hashes, sampling
        )
        on_step = previews.callback(sampling.steps or self._generator.generator.steps)
        job = _GenerateJob(generation, updates, guidance_scale, on_step)
        latents, seconds = await self._generating.run(job)
        await self._cache.set(self._key(request, knowledge), _to_bytes(latents), self._settings.cache_ttl_s)
        stages = [stage_time("edge.generate", seconds)]
        return _GenerationResult(latents, False, knowledge, fetched_bytes, stages)

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
                drawn = self._generator.batch(new, should_continue=should_continue, on_step=jobs[0].on_step)
                latents |= zip(new, drawn.split(1), strict=True)
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
        identity = self._generator.generator.identity
        sides = request.width, request.height
        return latent_key(identity, request.prompt, request.seed, *sides, hashes, request.sampling)

    def _file_key(self, request: DeliveryRequest, model: bytes) -> str:
        """Key of the latents of the cloud's image, in the file format of the request.

        Args:
            request: for the image.
            model: hash of the cloud's model.
        """
        autoencoder, cloud = self._generator.decoder.model_hash, self._profile.cloud
        # of the cloud only the profile's are known; DEKAG_VAE_DTYPE there changes a file by rounding
        edge = self._generator.generator
        formats = f"{cloud.formats} {(*edge.formats, *edge.devices)}"
        return content_key(
            "latent", autoencoder, model.hex(), cloud.steps, str(cloud.guidance_scale), formats,
            request.image_format, request.prompt, request.seed, request.width, request.height,
            *request.sampling.key,
        )  # fmt: skip

    async def _cached(self, key: str, shape: tuple[int, int, int]) -> torch.Tensor | None:
        if (data := await self._cache.get(key)) is None:
            return None
        try:
            return torch.from_numpy(converters.latents_from_bytes(data, (1, *shape)))
        except InvalidInputError:
            return None  # not written by this service: generated again and overwritten

    async def _picture(self, request: DeliveryRequest) -> Transmission:
        """The symbols of the picture in the request."""
        if request.delivery == "pixels":
            self._codecs.of_pixels()  # refused before the picture is decoded
        opened, opening = await self._autoencoding.run(self._open, request)
        picture, tiling = opened.picture, opened.tiling
        if opened.latents is not None:
            codec, adapters_bytes = await self._codec(request)
            _, *shape = opened.latents.shape
            rate = opened.rate or _tiles_rate(request, codec, (shape[0], shape[1], shape[2]), tiling)
            transmission = await self._encoded(request, codec, rate, opened.latents, tiling)
            report = transmission.report
            report.hops.add(hop="cloud-edge", sent_bytes=adapters_bytes)
            if request.sends_latents:
                report.model_hashes["autoencoder"] = self._generator.generator.decoder.model_hash
        else:
            transmission = await self._as_file(request, picture)
            report = transmission.report
        report.stages.insert(0, stage_time("edge.read", opening))
        notes = picture.notes if opened.rate_note is None else (*picture.notes, opened.rate_note)
        report.picture.CopyFrom(
            SentPicture(format=picture.format, notes=notes, autoencoder_psnr_db=opened.autoencoder_psnr_db)
        )
        transmission.header.picture.CopyFrom(PictureSize(width=picture.width, height=picture.height))
        if request.measure:
            transmission.reference = Reference(image=opened.png, iq=_shown(transmission.symbols, request))
        return transmission

    def _open(self, request: DeliveryRequest) -> _OpenedPicture:
        """The picture in the request, and what a codec is to send of its tiles."""
        from dekag.generation.images import to_png
        from dekag.generation.models import LatentEncoder
        from dekag.metrics.image import psnr_db
        from dekag.pictures import read_picture
        from dekag.pixel_codec import from_pixels

        picture = read_picture(request.picture or b"", max_pixels=MAX_PICTURE_PIXELS)
        tiling = converters.tiling_of(
            request, picture.width, picture.height, self._profile.size, self._codecs.pixels
        )
        png = to_png(picture.pixels) if request.measure else b""
        if not request.jscc:
            return _OpenedPicture(picture, png, tiling)
        if not request.sends_latents:
            # here, in the worker, as a plug-in may compute for its numbers of symbols
            shape = (3, tiling.tile_height, tiling.tile_width)
            codec = self._codecs.of_pixels()
            rate = _tiles_rate(request, codec, shape, tiling)
            tiles = from_pixels(tiling.split(picture.pixels))
            note = codec.rate_note(request.cbr)
            return _OpenedPicture(picture, png, tiling, tiles, rate=rate, rate_note=note)
        decoder = self._generator.generator.decoder
        latents = LatentEncoder(decoder).encode(tiling.split(picture.pixels))
        ceiling = None
        if request.measure:
            ceiling = psnr_db(render_tiles(decoder, latents, tiling, request.seed), picture.pixels)
        return _OpenedPicture(picture, png, tiling, latents, ceiling)

    async def _as_file(self, request: DeliveryRequest, picture: Picture) -> Transmission:
        """The symbols of a picture as an image file."""
        from dekag.generation.images import to_format

        def modulate() -> tuple[torch.Tensor, ModulationAndCoding, int]:
            file = to_format(picture.pixels, request.image_format)  # type: ignore[arg-type]
            self._check_file(file, request)
            return *DigitalSender().encode(file, request.link), len(file)

        (symbols, coding, file_bytes), seconds = await self._modulating.run(modulate)
        header = TransmissionHeader(
            channel_uses=symbols.shape[1],
            delivery=DELIVERY_CONVENTIONAL,
            coding=converters.coding_to_proto(coding, file_bytes),
        )
        report = TransmissionReport(stages=[stage_time("edge.modulate", seconds)])
        return Transmission(header, symbols, [], None, report)

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

    async def _fetch_image(
        self, request: DeliveryRequest, topics: Sequence[str] = ()
    ) -> tuple[GeneratedImage, bytes, int]:
        """The cloud's image file, its PNG (empty unless measured), and the bytes transferred for the file.

        Args:
            request: for the image.
            topics: for whose updates the file stands in.
        """
        formats = [request.image_format, "png"] if request.measure else [request.image_format]
        message = GenerateRequest(
            prompt=request.prompt,
            seeds=[request.seed],
            width=request.width,
            height=request.height,
            formats=[converters.FORMATS[name] for name in formats],
            on_long_prompt=converters.LONG_PROMPTS[request.on_long_prompt],
            topics=topics,
            owner=request.owner if topics else None,
            sampling=converters.sampling_to_proto(request.sampling),
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
        self._check_file(file.image, request)
        return file, png[0].image if png else b"", message.ByteSize() + file.ByteSize()

    def _check_file(self, file: bytes, request: DeliveryRequest) -> None:
        """InvalidInputError if an image file is larger than the link takes."""
        if len(file) > (largest := self._profile.largest_file):
            allowed = f"a format, or with a size, whose file has at most {largest} bytes"
            raise InvalidInputError("image_format", allowed, f"{request.image_format}, {len(file)} bytes")


def _encode(jobs: Sequence[_EncodeJob], _: ShouldContinue) -> list[torch.Tensor]:
    """Symbols of each job of one batch key."""
    first = jobs[0]
    if first.tiling is not None:
        request = first.request
        return [
            Sender(first.codec).encode_tiles(
                first.latents,
                request.link,
                first.channel_uses,
                first.tiling,
                seed=request.seed,
                modulation=request.modulation,
                text=first.text,
            )
        ]
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
