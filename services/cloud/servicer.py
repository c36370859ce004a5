"""Cloud.Generate: prompt and seeds to images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from grpc import aio

from services.common import converters
from services.common.cache import Cache, image_key
from services.common.worker import ModelWorker
from services.proto.cloud_pb2 import GeneratedImage, GenerateRequest
from services.proto.cloud_pb2_grpc import CloudServicer as CloudBase
from services.proto.downlink_pb2 import StageTime

if TYPE_CHECKING:
    from dekag.generation.images import Pixels
    from dekag.generation.models import Generator
    from services.cloud.settings import CloudSettings


class CloudServicer(CloudBase):
    """Draws with the cloud-GAI; images are cached by everything they depend on."""

    def __init__(self, settings: CloudSettings) -> None:
        self._settings = settings
        self._cache = Cache(settings)
        self._worker = ModelWorker("cloud", threads=settings.threads, max_queue=settings.max_queue)
        self._generator: Generator

    def load(self) -> None:
        """Loads the profile's cloud model."""
        from dekag.generation.models import Generator
        from dekag.generation.profile import load_profile

        model = load_profile(self._settings.profile).cloud
        self._generator = Generator.load(model.path, steps=model.steps, guidance_scale=model.guidance_scale)

    async def close(self) -> None:
        """Closes the cache and the model's thread."""
        self._worker.close()
        await self._cache.close()

    async def Generate(
        self, request: GenerateRequest, context: aio.ServicerContext[GenerateRequest, GeneratedImage]
    ) -> AsyncIterator[GeneratedImage]:
        """One image for each seed and format, seeds first."""
        prompt, seeds = converters.prompt(request.prompt), converters.seeds(request)
        width, height = converters.size(request.width, request.height)
        formats = converters.image_formats(request)
        for seed in seeds:
            async for image in self._draw(prompt, seed, width, height, formats):
                yield image

    async def _draw(
        self, prompt: str, seed: int, width: int, height: int, formats: list[str]
    ) -> AsyncIterator[GeneratedImage]:
        generator = self._generator
        keys = {name: image_key(generator.model_hash, prompt, seed, width, height, name) for name in formats}
        images = {name: await self._cache.get(key) for name, key in keys.items()}
        missing = [name for name, image in images.items() if not image]
        stages: list[StageTime] = []
        if missing:
            pixels, seconds = await self._worker.run(
                generator.image, prompt, seed, width=width, height=height
            )
            encoded, encoding = await self._worker.run(_encode, pixels, missing)
            images |= encoded
            stages = [
                StageTime(stage="cloud.generate", seconds=seconds),
                StageTime(stage="cloud.encode", seconds=encoding),
            ]
            for name, data in encoded.items():
                await self._cache.set(keys[name], data, self._settings.cache_ttl_s)
        for name, image in images.items():
            yield GeneratedImage(
                seed=seed,
                image=image or b"",
                model_hash=generator.model_hash,
                cached=not missing,
                stages=stages,
                format=converters.FORMATS[name],
            )
            stages = []


def _encode(pixels: Pixels, formats: list[str]) -> dict[str, bytes]:
    from dekag.generation.images import to_png, to_webp

    encoders = {"png": to_png, "webp": to_webp}
    return {name: encoders[name](pixels) for name in formats}
