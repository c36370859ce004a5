"""Downlink.Provide at its source: a prompt becomes symbols, by latent or by image."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import torch
from grpc import aio

from dekag.errors import InvalidInputError
from services.common import clients, converters
from services.common.cache import Cache, latent_key
from services.common.frames import FrameError, Transmission
from services.common.worker import ModelWorker
from services.proto.cloud_pb2 import GeneratedImage, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import (
    DELIVERY_CONVENTIONAL,
    DELIVERY_SEMANTIC,
    HopTraffic,
    ProvideRequest,
    Reference,
    StageTime,
    SymbolFrame,
    TransmissionHeader,
    TransmissionReport,
)
from services.proto.downlink_pb2_grpc import DownlinkServicer

if TYPE_CHECKING:
    from dekag.codec import JsccCodec
    from dekag.generation.models import Generator
    from dekag.link.digital import ModulationAndCoding
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings


class EdgeServicer(DownlinkServicer):
    """Draws latents with the edge-GAI and sends them as symbols; conventionally, sends the cloud's image."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._cache = Cache(settings)
        self._channel = clients.open_channel(settings.cloud_address, settings)
        self._cloud = CloudStub(self._channel)
        workers = (
            ModelWorker(name, threads=settings.threads, max_queue=settings.max_queue)
            for name in ("edge", "codec", "digital")
        )
        self._generating, self._encoding, self._modulating = workers
        self._generator: Generator
        self._codec: JsccCodec
        self._codec_hash: str

    def load(self) -> None:
        """Loads the profile's edge model and codec."""
        from dekag.codec import JsccCodec
        from dekag.generation.models import Generator, folder_hash
        from dekag.generation.profile import load_profile

        profile = load_profile(self._settings.profile)
        model = profile.edge
        self._generator = Generator.load(model.path, steps=model.steps, guidance_scale=model.guidance_scale)
        self._codec = JsccCodec.load(profile.codec)
        self._codec_hash = folder_hash(profile.codec)

    async def close(self) -> None:
        """Closes channel, cache and the models' threads."""
        for worker in (self._generating, self._encoding, self._modulating):
            worker.close()
        await self._channel.close()
        await self._cache.close()

    async def Provide(
        self, request: ProvideRequest, context: aio.ServicerContext[ProvideRequest, SymbolFrame]
    ) -> AsyncIterator[SymbolFrame]:
        """The symbols of what was asked for, with the report of how they came about."""
        asked = converters.request_from_proto(request)
        send = self._semantic if asked.delivery == "semantic" else self._conventional
        for frame in (await send(asked)).frames():
            yield frame

    async def _semantic(self, asked: DeliveryRequest) -> Transmission:
        shape = self._generator.latent_shape(asked.width, asked.height)
        channel_uses, most = round(asked.cbr * asked.source_values), self._codec.max_channel_uses(shape)
        if not 1 <= channel_uses <= most:
            lowest, highest = 1 / asked.source_values, most / asked.source_values
            raise InvalidInputError(
                "link.cbr", f"between {lowest:.3g} and {highest:.6g} for this size and codec", asked.cbr
            )
        latents, generating = await self._latents(asked, shape)
        symbols, encoding = await self._encoding.run(self._encode, latents, channel_uses)
        report = TransmissionReport(
            hops=[HopTraffic(hop="cloud-edge", sent_bytes=0)],
            model_hashes={"edge": self._generator.model_hash, "codec": self._codec_hash},
            cached=generating is None,
        )
        header = TransmissionHeader(
            channel_uses=channel_uses,
            delivery=DELIVERY_SEMANTIC,
            latent_shape=shape,
            codec_hash=self._codec_hash,
        )
        reference = Reference(latents=_to_bytes(latents)) if asked.measure else None
        transmission = Transmission(header, symbols, [], reference, report)
        if generating is not None:
            transmission.add_stage("edge.generate", generating)
        transmission.add_stage("edge.encode", encoding)
        return transmission

    async def _latents(
        self, asked: DeliveryRequest, shape: tuple[int, int, int]
    ) -> tuple[torch.Tensor, float | None]:
        """Latents (1, *shape) and the seconds it took to draw them, None if they were cached."""
        key = latent_key(self._generator.model_hash, asked.prompt, asked.seed, asked.width, asked.height)
        if (cached := await self._cache.get(key)) is not None:
            try:
                return torch.from_numpy(converters.latents_from_bytes(cached, (1, *shape))), None
            except InvalidInputError:
                pass  # not what this service wrote: drawn anew and overwritten
        latents, seconds = await self._generating.run(
            self._generator.latents, asked.prompt, asked.seed, width=asked.width, height=asked.height
        )
        await self._cache.set(key, _to_bytes(latents), self._settings.cache_ttl_s)
        return latents, seconds

    @torch.inference_mode()
    def _encode(self, latents: torch.Tensor, channel_uses: int) -> torch.Tensor:
        return self._codec.encode(latents, channel_uses)

    async def _conventional(self, asked: DeliveryRequest) -> Transmission:
        webp, png, traffic = await self._fetch_image(asked)
        (symbols, coding), modulating = await self._modulating.run(_modulate, webp.image, asked)
        report = TransmissionReport(
            stages=[*webp.stages, StageTime(stage="edge.modulate", seconds=modulating)],
            hops=[HopTraffic(hop="cloud-edge", sent_bytes=traffic)],
            model_hashes={"cloud": webp.model_hash},
            cached=webp.cached,
        )
        header = TransmissionHeader(
            channel_uses=symbols.shape[1],
            delivery=DELIVERY_CONVENTIONAL,
            coding=converters.coding_to_proto(coding, len(webp.image)),
        )
        return Transmission(header, symbols, [], Reference(image=png) if asked.measure else None, report)

    async def _fetch_image(self, asked: DeliveryRequest) -> tuple[GeneratedImage, bytes, int]:
        """The cloud's WebP, its PNG (empty unless measured) and the traffic without that PNG, bytes."""
        formats = ["webp", "png"] if asked.measure else ["webp"]
        request = GenerateRequest(
            prompt=asked.prompt,
            seeds=[asked.seed],
            width=asked.width,
            height=asked.height,
            formats=[converters.FORMATS[name] for name in formats],
        )
        images = {
            image.format: image async for image in clients.stream(self._cloud.Generate, request, "cloud")
        }
        try:
            webp, *png = (images[converters.FORMATS[name]] for name in formats)
        except KeyError as error:
            raise FrameError(f"the cloud left out format {error}") from error
        return webp, png[0].image if png else b"", request.ByteSize() + webp.ByteSize()


def _to_bytes(latents: torch.Tensor) -> bytes:
    return converters.latents_to_bytes(latents.numpy())


def _modulate(payload: bytes, asked: DeliveryRequest) -> tuple[torch.Tensor, ModulationAndCoding]:
    from dekag.link.digital import DigitalLink

    digital = DigitalLink()
    coding = digital.choose(asked.link)
    return digital.modulate(payload, coding), coding
