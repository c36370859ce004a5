"""The user service, the receiver: decodes symbols into an image and writes the link report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import structlog
import torch
from grpc import aio

from dekag import plugins
from dekag.api.limits import MAX_PICTURE_PIXELS
from dekag.errors import InvalidInputError, MismatchError, NotFoundError
from dekag.link.channel import Reception, instantaneous_snr_db
from dekag.link.equalizer import equalize
from dekag.link.iq import evenly_spaced, iq_to_bytes
from dekag.pipeline import DigitalReceiver, Receiver, receive, render_tiles, tile_receptions
from services.common import clients, converters, metrics, tracing
from services.common.cache import Cache
from services.common.frames import (
    MAX_BLOCKS,
    MAX_CONSTELLATION_SYMBOLS,
    FrameError,
    FrameReader,
    Transmission,
    channel_states,
)
from services.common.prompt_states import PromptStates
from services.common.stages import MEASURE, stage_time
from services.common.transmission import CodecCache
from services.common.worker import BatchWorker, ModelWorker, ShouldContinue
from services.proto.downlink_pb2 import (
    GetTransmissionKnowledgeRequest,
    HopTraffic,
    LatentPreview,
    ProvideRequest,
    TransmissionKnowledge,
)
from services.proto.downlink_pb2_grpc import DownlinkStub
from services.proto.user_pb2 import (
    Details,
    LinkReport,
    PictureReport,
    PreviewImage,
    ReceivedImage,
    ReceivedPart,
)
from services.proto.user_pb2_grpc import UserServicer as UserBase
from services.user.references import References

if TYPE_CHECKING:
    from dekag.cala.aligned_codec import AlignedCodec
    from dekag.generation.images import Pixels
    from dekag.generation.models import LatentDecoder
    from dekag.generation.restorer import Restorer
    from dekag.pictures import Tiling
    from dekag.pixel_modules import AnyPixelCodec
    from dekag.profile import Profile
    from services.common.converters import DeliveryRequest
    from services.user.settings import UserSettings

_MAX_CHANNELS = 64  # of the latents of a preview
_log = structlog.get_logger()
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class _DecodeJob:
    """Symbols to decode into latents of `shape` with `codec`, beside the prompt's states.

    With a tiling, those of a picture, into latents of its tiles.
    """

    codec: AlignedCodec | AnyPixelCodec
    reception: Reception
    shape: tuple[int, int, int]
    request: DeliveryRequest
    text: torch.Tensor | None
    tiling: Tiling | None = None

    def batch_key(self) -> tuple[object, ...]:
        if self.tiling is not None:  # a batch of its own
            return (id(self),)
        return self.codec.content_hash, self.shape


class UserServicer(UserBase):
    """Requests symbols from the downlink and decodes them with the codec and the edge's autoencoder."""

    def __init__(self, settings: UserSettings) -> None:
        self._settings = settings
        self.downstream = clients.Peer(settings.downlink_address, settings)
        self._downlink = DownlinkStub(self.downstream.channel)
        self._cache = Cache(settings)
        self._demodulating = ModelWorker("digital", threads=settings.threads, max_queue=settings.max_queue)
        # two threads, so that the image does not wait for its reference
        self._rendering, self._comparing = (
            ModelWorker(name, threads=settings.threads, max_queue=settings.max_queue)
            for name in ("decoder", "reference decoder")
        )
        self._references = References()
        self._decoding = BatchWorker(
            "codec",
            _decode,
            batch_key=_DecodeJob.batch_key,
            max_batch=settings.max_batch,
            wait_s=settings.batch_wait_s,
            threads=settings.threads,
            max_queue=settings.max_queue,
        )
        self._codecs = CodecCache(settings, self._cache, self._fetch_adapters)
        self._prompts = PromptStates(settings)
        self._restoring = ModelWorker("restorer", threads=settings.threads, max_queue=settings.max_queue)
        self._restorer: Restorer | None = None  # loaded by the first request that asks for it
        self._decoder: LatentDecoder
        self._profile: Profile

    def load(self) -> None:
        """Loads the profile's codec, its adapters and the edge's autoencoder."""
        from dekag.generation.models import LatentDecoder
        from dekag.link.digital import warm_up
        from dekag.profile import load_profile

        self._profile = profile = load_profile(self._settings.profile, check_models=True)
        self._codecs.load(profile)
        self._prompts.load(profile, self._codecs)
        self._decoder = LatentDecoder.load(profile.edge, self._settings.placement())
        warm_up()

    async def close(self) -> None:
        """Closes channel, cache and the models' threads."""
        for worker in (
            self._demodulating, self._rendering, self._comparing, self._decoding, self._prompts,
            self._restoring,
        ):  # fmt: skip
            worker.close()
        await self.downstream.close()
        await self._cache.close()

    async def Receive(
        self, message: ProvideRequest, context: aio.ServicerContext[ProvideRequest, ReceivedImage]
    ) -> ReceivedImage:
        """The received image with its link report."""
        began = time.perf_counter()
        frames, request = self._request(message, previews=0)
        return await self._received(frames, message, request, began)

    async def ReceiveWithPreviews(
        self, message: ProvideRequest, context: aio.ServicerContext[ProvideRequest, ReceivedPart]
    ) -> AsyncIterator[ReceivedPart]:
        """The previews that the edge sends, then the received image with its link report."""
        began = time.perf_counter()
        frames, request = self._request(message, previews=message.previews)
        async for preview in frames.previews():
            yield ReceivedPart(preview=await self._preview(preview, request))
        yield ReceivedPart(image=await self._received(frames, message, request, began))

    def _request(self, message: ProvideRequest, *, previews: int) -> tuple[FrameReader, DeliveryRequest]:
        """The frames that answer a request, which is validated here."""
        request = converters.request_from_proto(message, self._profile)
        forwarded = ProvideRequest(width=request.width, height=request.height)  # one size for all services
        forwarded.MergeFrom(message)
        forwarded.previews = previews
        return FrameReader(clients.stream(self._downlink.Provide, forwarded, "channel"), previews), request

    async def _preview(self, preview: LatentPreview, request: DeliveryRequest) -> PreviewImage:
        channels, *sides = preview.latent_shape or [0]
        if sides != self._sides(request.width, request.height) or not 0 < channels <= _MAX_CHANNELS:
            raise FrameError(f"a preview of shape {tuple(preview.latent_shape)[:4]}")
        try:
            values = converters.latents_from_bytes(preview.latents, (1, *preview.latent_shape))
        except InvalidInputError as error:
            raise FrameError(f"preview: {error}") from error
        pixels, _ = await self._comparing.run(self._render, torch.from_numpy(values), request.seed)
        png = await asyncio.to_thread(_to_png, pixels)
        return PreviewImage(png=png, step=preview.step, steps=preview.steps)

    async def _received(
        self, frames: FrameReader, message: ProvideRequest, request: DeliveryRequest, began: float
    ) -> ReceivedImage:
        transmission = await frames.transmission()
        request, tiling = self._sized(transmission, request)
        await self._check(transmission, request, tiling)
        tracing.set_link_attributes(request, transmission.header.channel_uses)
        reception = _reception(transmission, request)
        (((pixels, png), adapters_bytes), ready), (reference, comparing_s) = await asyncio.gather(
            _with_end(self._image(transmission, reception, request, tiling)),
            self._reference(transmission, request),
        )
        transmission.report.latency.compute_s = ready - began
        hop, asked = "channel-user" if transmission.states else "edge-user", converters.traffic_bytes(message)
        transmission.report.hops.append(  # missing adapters are transferred over this hop, too
            HopTraffic(hop=hop, sent_bytes=asked + transmission.received_bytes + adapters_bytes)
        )
        report = self._report(transmission, reception, request, pixels is not None)
        if tiling is not None:
            report.picture.CopyFrom(_picture_report(transmission, request, tiling))
        image = ReceivedImage(png=png, report=report)
        if pixels is not None and reference is not None:
            start = time.perf_counter()
            await asyncio.to_thread(self._measure, image.report, pixels, reference)
            seconds = comparing_s + time.perf_counter() - start
            image.report.stages.append(stage_time(MEASURE, seconds))
        details = None
        if request.details and reference is not None:
            details = await asyncio.to_thread(_details, transmission, reception, request, reference)
        own_hop = image.report.hops.add(hop="user-gateway", sent_bytes=asked)
        for _ in range(3):  # the size includes the varint of the size itself, which settles quickly
            own_hop.sent_bytes = asked + image.ByteSize()
        if details is not None:
            image.details.CopyFrom(details)
        metrics.record_delivery(image.report, request.delivery, time.perf_counter() - began)
        return image

    def _sized(
        self, transmission: Transmission, request: DeliveryRequest
    ) -> tuple[DeliveryRequest, Tiling | None]:
        """The request with the size of its picture, and how that is cut; unchanged and None without one."""
        header = transmission.header
        if (request.picture is not None) != header.HasField("picture"):
            raise FrameError(f"a header {'with' if request.picture is None else 'without'} a picture's size")
        if request.picture is None:
            return request, None
        width, height = header.picture.width, header.picture.height
        if not 0 < width * height <= MAX_PICTURE_PIXELS:
            raise FrameError(f"a picture of {width}x{height} pixels")
        sized = replace(request, width=width, height=height)
        return sized, converters.tiling_of(request, width, height, self._profile.size, self._codecs.pixels)

    async def _check(
        self, transmission: Transmission, request: DeliveryRequest, tiling: Tiling | None
    ) -> None:
        header = transmission.header
        if header.delivery != converters.DELIVERIES[request.delivery]:
            raise FrameError(f"requested {request.delivery} delivery, got {header.delivery}")
        if request.delivery == "conventional":
            return
        codec = self._codec_of(request)
        if header.codec_hash != codec.base_hash:
            raise MismatchError(
                f"the sender's codec {header.codec_hash[:12]} is not the receiver's {codec.base_hash[:12]}"
            )
        if header.adapters_hash and request.delivery != "semantic":
            raise FrameError("requested delivery without adapters, got adapters")
        shape = tuple(header.latent_shape)
        width, height, count = request.width, request.height, 1
        if tiling is not None:
            width, height, count = tiling.tile_width, tiling.tile_height, tiling.count
        if request.sends_latents:
            expected = [self._codecs.base.base.config.latent_channels, *self._sides(width, height)]
        else:
            expected = [3, height, width]
        if list(shape) != expected:
            raise MismatchError(f"latents {shape} do not make {width}x{height} pixels here")
        of_tile = (shape[0], shape[1], shape[2])
        if request.sends_latents:
            most = codec.max_channel_uses(of_tile) * count
        else:  # a plug-in may compute for it
            most = (await self._rendering.run(codec.max_channel_uses, of_tile))[0] * count
        if not count <= header.channel_uses <= most:
            raise FrameError(f"{header.channel_uses} symbols, but the codec sends {count} to {most}")

    def _codec_of(self, request: DeliveryRequest) -> AlignedCodec | AnyPixelCodec:
        """The codec of a delivery, without adapters."""
        if request.delivery == "pixels":
            return self._codecs.of_pixels()
        return self._codecs.unaligned if request.delivery == "semantic-unaligned" else self._codecs.base

    def _sides(self, width: int, height: int) -> list[int]:
        """Height and width of the latents of an image."""
        return [height // self._decoder.factor, width // self._decoder.factor]

    async def _fetch_adapters(self, content_hash: str) -> tuple[TransmissionKnowledge, int]:
        request = GetTransmissionKnowledgeRequest(content_hash=content_hash, files=True)
        try:
            response = await clients.call(self._downlink.GetTransmissionKnowledge, request, "channel")
        except NotFoundError as error:
            raise MismatchError(
                f"the sender's adapters {content_hash[:12]} cannot be fetched: {error}"
            ) from error
        return response, request.ByteSize() + response.ByteSize()

    async def _latents(
        self,
        transmission: Transmission,
        reception: Reception,
        request: DeliveryRequest,
        tiling: Tiling | None,
    ) -> tuple[torch.Tensor, int]:
        """Received latents (n, *shape), and the bytes transferred for the adapters of their codec."""
        header = transmission.header
        codec, sent_bytes = self._codec_of(request), 0
        if request.delivery == "semantic":
            codec, sent_bytes = await self._codecs.get(header.adapters_hash)
        channels, height, width = header.latent_shape
        text = await self._prompts.states(request, codec)
        job = _DecodeJob(codec, reception, (channels, height, width), request, text, tiling)
        latents, seconds = await self._decoding.run(job)
        transmission.add_stage("user.decode", seconds)
        if _restores(transmission, request):
            values = request.source_values if tiling is None else tiling.tile_values
            timesteps = [
                Receiver(codec).timestep(each, request.link, source_values=values)
                for each in tile_receptions(reception, 1 if tiling is None else tiling.count)
            ]
            latents, seconds = await self._restoring.run(self._restore, latents, request, timesteps)
            transmission.add_stage("user.restore", seconds)
            if self._restorer is not None:
                transmission.report.model_hashes["restorer"] = self._restorer.model_hash
        return latents, sent_bytes

    async def _image(
        self,
        transmission: Transmission,
        reception: Reception,
        request: DeliveryRequest,
        tiling: Tiling | None,
    ) -> tuple[tuple[Pixels | None, bytes], int]:
        """The image and its PNG, None and empty if it did not decode; and the bytes sent for adapters."""
        pixels: Pixels | None
        adapters_bytes = 0
        if request.jscc:
            latents, adapters_bytes = await self._latents(transmission, reception, request, tiling)
            if tiling is not None and not request.sends_latents:
                pixels, seconds = await self._rendering.run(_joined, latents, tiling)
            else:
                pixels, seconds = await self._rendering.run(self._render, latents, request.seed, tiling)
                transmission.report.model_hashes["decoder"] = self._decoder.model_hash
            transmission.add_stage("user.render", seconds)
        else:
            pixels, _ = await self._demodulating.run(self._decode_digital, transmission, reception, request)
        if pixels is None:
            return (None, b""), adapters_bytes
        start = time.perf_counter()
        png = await asyncio.to_thread(_to_png, pixels)
        transmission.add_stage("user.png", time.perf_counter() - start)
        return (pixels, png), adapters_bytes

    async def _reference(
        self, transmission: Transmission, request: DeliveryRequest
    ) -> tuple[Pixels | None, float]:
        """The image as sent, None without a reference, and the seconds to decode it."""
        if (reference := transmission.reference) is None:
            return None, 0.0
        kind = reference.WhichOneof("content")
        if kind != ("latents" if request.jscc and request.picture is None else "image"):
            raise FrameError(f"a reference of {kind} for {request.delivery} delivery")
        try:
            if kind == "image":
                return await self._comparing.run(
                    _from_png, reference.image, max(request.width, request.height)
                )
            shape = (1, *transmission.header.latent_shape)
            if (kept := self._references.get(reference.latents, shape)) is not None:
                return kept, 0.0
            latents = torch.from_numpy(converters.latents_from_bytes(reference.latents, shape))
            pixels, seconds = await self._comparing.run(self._render, latents, request.seed)
            self._references.keep(reference.latents, shape, pixels)
            return pixels, seconds
        except (InvalidInputError, ValueError) as error:
            raise FrameError(f"reference: {error}") from error

    def _restore(
        self, latents: torch.Tensor, request: DeliveryRequest, timesteps: Sequence[int]
    ) -> torch.Tensor:
        """Latents (n, *shape) after a step of the edge's denoiser, which is loaded if it is not there."""
        from dekag.generation.models import Generator
        from dekag.generation.restorer import Restorer

        if self._restorer is None:
            edge = Generator.from_profile(self._profile, "edge", self._settings.placement())
            self._restorer = Restorer(edge)
        prompt = "" if request.side_information == "none" else request.prompt
        restored = [
            self._restorer.restore(one, prompt, timestep=timestep, seeds=[request.seed])
            for one, timestep in zip(latents.split(1), timesteps, strict=True)
        ]
        return torch.cat(restored)

    def _render(self, latents: torch.Tensor, seed: int, tiling: Tiling | None = None) -> Pixels:
        """Decodes a single image: a batch is hardly faster, and would change the bits of an image."""
        if tiling is not None:
            return render_tiles(self._decoder, latents, tiling, seed)
        pixels: Pixels = self._decoder.decode(latents, [seed])[0]
        return pixels

    def _report(
        self, transmission: Transmission, reception: Reception, request: DeliveryRequest, decoded: bool
    ) -> LinkReport:
        header, sent = transmission.header, transmission.report
        pilot_uses = sum(reception.pilot_uses)
        report = LinkReport(
            seed=request.seed,
            delivery=header.delivery,
            decoded=decoded,
            channel_uses=header.channel_uses,
            pilot_uses=pilot_uses,
            cbr=(header.channel_uses + pilot_uses) / request.source_values,
            link=converters.link_to_proto(request.link),
            no=reception.no.item(),
            gain_mse=None if reception.gain_errors is None else reception.gain_errors.mean().item(),
            latency=sent.latency,
            hops=sent.hops,
            model_hashes=sent.model_hashes,
            cached=sent.cached,
            source=_source(transmission),
            knowledge=sent.knowledge,
            modulation=sent.modulation,
            side_information=sent.side_information,
            target_psnr_db=request.target_psnr_db,
            expected_psnr_db=sent.expected_psnr_db if sent.HasField("expected_psnr_db") else None,
            coding=header.coding if header.HasField("coding") else None,
        )
        if request.jscc:
            done = "denoiser" if _restores(transmission, request) else "none"
            report.restoration = converters.RESTORATIONS[done]
        if header.HasField("coding"):
            report.image_format = converters.FORMATS[request.image_format]
        if transmission.states:
            report.gains = iq_to_bytes(evenly_spaced(reception.gains, MAX_BLOCKS))
            report.instantaneous_snr_db = instantaneous_snr_db(reception.gains, reception.no).item()
        report.stages.extend(sent.stages)
        for side, read in sent.prompt_read.items():
            report.prompt_read[side].CopyFrom(read)
        return report

    def _decode_digital(
        self, transmission: Transmission, reception: Reception, request: DeliveryRequest
    ) -> Pixels | None:
        from dekag.generation.images import from_bytes
        from dekag.link.digital import DecodingError

        message = transmission.header.coding
        start = time.perf_counter()
        try:
            coding = converters.coding_from_proto(message, self._profile.largest_file)
            payload = DigitalReceiver().decode(reception, coding, message.payload_bytes, seed=request.seed)
        except DecodingError:
            transmission.add_stage("user.decode", time.perf_counter() - start)
            return None
        except InvalidInputError as error:
            raise FrameError(str(error)) from error
        decoded = time.perf_counter()
        try:
            pixels = from_bytes(payload, max_side=max(request.width, request.height))
        except InvalidInputError as error:
            raise FrameError(f"payload: {error}") from error
        if pixels.shape[:2] != (request.height, request.width):
            raise FrameError(f"payload: an image of shape {pixels.shape}")
        transmission.add_stage("user.decode", decoded - start)
        transmission.add_stage("user.render", time.perf_counter() - decoded)
        return pixels

    def _measure(self, report: LinkReport, pixels: Pixels, reference: Pixels) -> None:
        from dekag.metrics.image import psnr_db, ssim

        try:
            report.psnr_db = psnr_db(pixels, reference)
        except ValueError as error:
            raise FrameError(f"reference: {error}") from error
        if report.HasField("picture") and (similarity := ssim(pixels, reference)) is not None:
            report.picture.ssim = similarity
        for name, metric in plugins.plugged_in("metric").items():
            if min(reference.shape[:2]) < metric.smallest_side:
                continue
            try:
                # copies, as the code of a plug-in may write to them
                report.scores[name] = float(metric.score(pixels[None].copy(), reference[None].copy())[0])
            except Exception:  # code of a plug-in; the image is complete without it
                _log.exception("a metric failed", metric=name)


def _picture_report(transmission: Transmission, request: DeliveryRequest, tiling: Tiling) -> PictureReport:
    """What is said of a picture: what its file was, and how it was sent."""
    sent = transmission.report.picture
    report = PictureReport(
        width=request.width,
        height=request.height,
        format=sent.format,
        notes=sent.notes,
        autoencoder_psnr_db=sent.autoencoder_psnr_db if sent.HasField("autoencoder_psnr_db") else None,
    )
    if request.jscc:
        report.columns, report.rows = tiling.columns, tiling.rows
        report.tile_width, report.tile_height = tiling.tile_width, tiling.tile_height
    return report


def _joined(pictures: torch.Tensor, tiling: Tiling) -> Pixels:
    """The picture (height, width, 3) of the pixels of its tiles."""
    from dekag.pixel_codec import to_pixels

    return tiling.join(to_pixels(pictures))


async def _with_end(work: Awaitable[_Result]) -> tuple[_Result, float]:
    """The result, and the value of `time.perf_counter` when it was there, s."""
    return await work, time.perf_counter()


def _details(
    transmission: Transmission, reception: Reception, request: DeliveryRequest, reference: Pixels
) -> Details:
    symbols = reception.symbols, equalize(reception, request.link.equalizer).symbols
    received, equalized = (iq_to_bytes(evenly_spaced(row, MAX_CONSTELLATION_SYMBOLS)) for row in symbols)
    sent = transmission.reference.iq if transmission.reference is not None else b""
    if len(sent) != len(received):
        raise FrameError(
            f"reference: {len(sent)} bytes of symbols for the constellation, not {len(received)}"
        )
    return Details(reference=_to_png(reference), sent=sent, received=received, equalized=equalized)


def _reception(transmission: Transmission, request: DeliveryRequest) -> Reception:
    """The reception after all channels that the symbols crossed."""
    states = channel_states(transmission.states, transmission.header.channel_uses)
    try:
        return receive(transmission.symbols, states, request.seed)
    except InvalidInputError as error:  # caused by the channels, not by the request
        raise FrameError(str(error)) from error


def _restores(transmission: Transmission, request: DeliveryRequest) -> bool:
    """Whether the latent is restored: the denoiser would remove what it does not know itself."""
    report = transmission.report
    return request.restoration == "denoiser" and not report.knowledge and _source(transmission) == "edge"


def _source(transmission: Transmission) -> str:
    """Whose model generated the image: the edge's or the cloud's."""
    return "cloud" if "cloud" in transmission.report.model_hashes else "edge"


def _to_png(pixels: Pixels) -> bytes:
    from dekag.generation.images import to_png

    png: bytes = to_png(pixels)
    return png


def _from_png(data: bytes, max_side: int) -> Pixels:
    from dekag.generation.images import from_bytes

    return from_bytes(data, max_side=max_side)


def _decode(jobs: Sequence[_DecodeJob], _: ShouldContinue) -> list[torch.Tensor]:
    """Latents (1, *shape) of each job of one batch key; (n, *shape) of a picture."""
    first = jobs[0]
    if first.tiling is not None:
        return [
            Receiver(first.codec).decode_tiles(
                first.reception,
                first.request.link,
                first.tiling,
                latent_shape=first.shape,
                seed=first.request.seed,
                text=first.text,
            )
        ]
    latents = Receiver(first.codec).decode(
        [job.reception for job in jobs],
        [job.request.link for job in jobs],
        latent_shape=first.shape,
        source_values=first.request.source_values,
        seeds=[job.request.seed for job in jobs],
        text=[job.text for job in jobs],
    )
    return list(latents.split(1))
