"""Downlink.Provide at its source: a prompt becomes symbols, by latent or by image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch
from grpc import aio

from dekag.errors import InvalidInputError, MismatchError, NotFoundError, UnavailableError
from services.common import clients, converters
from services.common.cache import Cache, latent_key
from services.common.frames import FrameError, Transmission
from services.common.knowledge import Manifest
from services.common.worker import ModelWorker
from services.edge.knowledge import Knowledge
from services.proto.cloud_pb2 import GeneratedImage, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudStub
from services.proto.downlink_pb2 import (
    DELIVERY_CONVENTIONAL,
    DELIVERY_SEMANTIC,
    HopTraffic,
    KnowledgeUse,
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
    from dekag.link.digital import ModulationAndCoding
    from dekag.makd.aligned import AlignedGenerator
    from dekag.makd.update import KnowledgeUpdate
    from services.common.converters import DeliveryRequest
    from services.edge.settings import EdgeSettings


_log = structlog.get_logger()


@dataclass(frozen=True)
class _Drawn:
    """Latents (1, *shape), and how they came about.

    Attributes:
        seconds: that it took to draw them; None if they were cached.
        knowledge: the updates that took part.
        fetched_bytes: sent to fetch updates.
    """

    latents: torch.Tensor
    seconds: float | None
    knowledge: Sequence[Manifest]
    fetched_bytes: int


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
        self._knowledge = Knowledge(settings, self._cache, self._cloud)
        self._generator: AlignedGenerator
        self._codec: JsccCodec
        self._codec_hash: str

    def load(self) -> None:
        """Loads the profile's edge model and codec."""
        from dekag.codec import JsccCodec
        from dekag.generation.models import Generator, folder_hash
        from dekag.generation.profile import load_profile
        from dekag.makd.aligned import AlignedGenerator

        profile = load_profile(self._settings.profile)
        generator = Generator.from_profile(profile.edge)
        self._generator = AlignedGenerator(generator, capacity=self._settings.knowledge_capacity)
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
        drawn = await self._latents(asked, shape)
        symbols, encoding = await self._encoding.run(self._encode, drawn.latents, channel_uses)
        report = TransmissionReport(
            hops=[HopTraffic(hop="cloud-edge", sent_bytes=drawn.fetched_bytes)],
            model_hashes={"edge": self._generator.model_hash, "codec": self._codec_hash},
            cached=drawn.seconds is None,
            knowledge=[
                KnowledgeUse(topic=each.topic, version=each.version, content_hash=each.content_hash)
                for each in drawn.knowledge
            ],
        )
        header = TransmissionHeader(
            channel_uses=channel_uses,
            delivery=DELIVERY_SEMANTIC,
            latent_shape=shape,
            codec_hash=self._codec_hash,
        )
        reference = Reference(latents=_to_bytes(drawn.latents)) if asked.measure else None
        transmission = Transmission(header, symbols, [], reference, report)
        if drawn.seconds is not None:
            transmission.add_stage("edge.generate", drawn.seconds)
        transmission.add_stage("edge.encode", encoding)
        return transmission

    async def _latents(self, asked: DeliveryRequest, shape: tuple[int, int, int]) -> _Drawn:
        """What the edge draws, with the knowledge that is asked for, or takes from the cache."""
        knowledge = await self._knowledge.choose(asked, self._generator.model_hash)
        if (cached := await self._cached(asked, shape, knowledge)) is not None:
            return _Drawn(cached, None, knowledge, 0)
        updates, fetched_bytes = [], 0
        for manifest in knowledge:
            try:
                update, sent_bytes = await self._knowledge.fetch(manifest)
                fetched_bytes += sent_bytes
                await self._generating.run(self._generator.add, update)
                updates.append(update)
            except (MismatchError, NotFoundError, UnavailableError) as error:
                if asked.knowledge is not None:
                    raise
                _log.warning("knowledge left out", topic=manifest.topic, error=str(error))
        had = {update.content_hash for update in updates}
        if len(had) < len(knowledge):  # the prompt asked for it, nobody else: better drawn without
            knowledge = [manifest for manifest in knowledge if manifest.content_hash in had]
            if (cached := await self._cached(asked, shape, knowledge)) is not None:
                return _Drawn(cached, None, knowledge, fetched_bytes)
        latents, seconds = await self._generating.run(self._draw, asked, updates)
        await self._cache.set(self._key(asked, knowledge), _to_bytes(latents), self._settings.cache_ttl_s)
        return _Drawn(latents, seconds, knowledge, fetched_bytes)

    def _draw(self, asked: DeliveryRequest, updates: Sequence[KnowledgeUpdate]) -> torch.Tensor:
        for (
            update
        ) in updates:  # again, in the turn that draws: those of other requests may have pushed it out
            self._generator.add(update)
        hashes = [update.content_hash for update in updates]
        return self._generator.latents(
            asked.prompt, asked.seed, width=asked.width, height=asked.height, updates=hashes
        )

    def _key(self, asked: DeliveryRequest, knowledge: Sequence[Manifest]) -> str:
        hashes = [manifest.content_hash for manifest in knowledge]
        model_hash = self._generator.model_hash
        return latent_key(model_hash, asked.prompt, asked.seed, asked.width, asked.height, hashes)

    async def _cached(
        self, asked: DeliveryRequest, shape: tuple[int, int, int], knowledge: Sequence[Manifest]
    ) -> torch.Tensor | None:
        if (data := await self._cache.get(self._key(asked, knowledge))) is None:
            return None
        try:
            return torch.from_numpy(converters.latents_from_bytes(data, (1, *shape)))
        except InvalidInputError:
            return None  # not what this service wrote: drawn anew and overwritten

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
