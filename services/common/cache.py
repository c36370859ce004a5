"""Redis as a cache of raw bytes. Without Redis the services work as before, only slower.

``redis_mirror``, ``drift``, ``demand`` and ``jobs`` in ``services.cloud`` document the other keys.

====================================  ==========================================================
``dekag:latent:{sha256}``             float32 little-endian latents of one image
``dekag:image:{sha256}``              bytes of one cloud image in one format
``dekag:report:{request_id}``         the report of one delivery as returned by the gateway
====================================  ==========================================================

Each sha256 covers everything that the value depends on, including weights, sampling and number formats of the
model, so no entry is ever stale.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from dekag.generation.request import DEFAULT_SAMPLING, GenerationRequest, Sampling
from services.common import metrics
from services.common.redis_client import open_redis
from services.common.redis_state import REDIS_ERRORS, RedisProbe, explain
from services.common.settings import CommonSettings
from services.common.signing import Seal

_log = structlog.get_logger()
_WARN_EVERY_S = 30.0
_EDITION = 3  # incremented when the same model gives other results for the same arguments


def content_key(kind: str, *parts: str | int) -> str:
    """``dekag:{kind}:{sha256 of the parts}``; equal keys mean equal parts."""
    return f"dekag:{kind}:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def latent_key(
    generator: str,
    prompt: str,
    seed: int,
    width: int,
    height: int,
    updates: Sequence[str] = (),
    sampling: Sampling = DEFAULT_SAMPLING,
) -> str:
    """Key of the latents that the edge model generates for these arguments.

    Args:
        generator: `Generator.identity` of the edge.
        prompt, seed, width, height: as in the request.
        updates: content hashes of the knowledge updates in use, in any order.
        sampling: settings of the denoiser.
    """
    updates = sorted(updates)
    return content_key("latent", _EDITION, generator, prompt, seed, width, height, *updates, *sampling.key)


def image_key(generator: str, request: GenerationRequest, image_format: str) -> str:
    """Key of the encoded image that the cloud with that `Generator.identity` generates for a request."""
    prompt, seed, (width, height) = request.prompt, request.seed, request.size
    sampling = request.sampling.key
    return content_key("image", _EDITION, generator, prompt, seed, width, height, image_format, *sampling)


def report_key(request_id: str) -> str:
    """Key of the report of one delivery."""
    return f"dekag:report:{request_id}"


class Cache:
    """A cache that never raises: without Redis every ``get`` is a miss and every ``set`` is dropped.

    After a failure Redis is not used for ``redis_retry_s``, so that a request waits for a failing Redis at
    most once. A warning is logged at most every 30 s.
    """

    def __init__(self, settings: CommonSettings) -> None:
        self._retry_s = settings.redis_retry_s
        self._seal = Seal(settings.cache_key_file)
        self._asleep_until = self._silent_until = 0.0
        self._redis: Redis | None = None
        self._probe: RedisProbe | None = None
        if settings.redis_url:
            self._redis = open_redis(settings, settings.redis_timeout_s, retry=Retry(NoBackoff(), 0))
            self._probe = RedisProbe(self._redis, report_key(""), deletes=False)

    async def get(self, key: str) -> bytes | None:
        """The value under ``key``; None if it does not exist or Redis is unavailable."""
        value = await self._get(key)
        kind = key.removeprefix("dekag:").partition(":")[0]
        if value is not None and (value := self._seal.open(key, value)) is None:
            metrics.REJECTED.labels(kind).inc()
            _log.warning(
                "a cached value is not used, as it was changed or sealed with another key", kind=kind
            )
        metrics.CACHE_LOOKUPS.labels(kind, "no" if value is None else "yes").inc()
        return value

    async def _get(self, key: str) -> bytes | None:
        if (redis := self._awake()) is None:
            return None
        try:
            value = await redis.get(key)
        except ResponseError as error:
            self._sleep_unless_wrong_type(error)
            return None
        except REDIS_ERRORS as error:
            self._sleep(error)
            return None
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl_s: int) -> None:
        """Stores ``value`` under ``key`` for ``ttl_s`` seconds."""
        if (redis := self._awake()) is None:
            return
        try:
            await redis.set(key, self._seal.seal(key, value), ex=ttl_s)
        except REDIS_ERRORS as error:
            self._sleep(error)

    async def delete(self, key: str) -> None:
        """Deletes ``key``."""
        if (redis := self._awake()) is None:
            return
        try:
            await redis.delete(key)
        except REDIS_ERRORS as error:
            self._sleep(error)

    async def get_hash(self, key: str) -> dict[bytes, bytes]:
        """All fields of the hash under ``key``; empty if it does not exist or Redis is unavailable."""
        if (redis := self._awake()) is None:
            return {}
        try:
            fields: dict[bytes, bytes] = await redis.hgetall(key)  # type: ignore[misc]  # typed for both clients at once
        except ResponseError as error:
            self._sleep_unless_wrong_type(error)
            return {}
        except REDIS_ERRORS as error:
            self._sleep(error)
            return {}
        return fields

    async def problem(self) -> str:
        """Why Redis cannot be used, as a phrase after "Redis"; empty if it works."""
        if self._probe is None:
            return "is turned off (DEKAG_REDIS_URL is none)"
        return await self._probe.problem()

    async def close(self) -> None:
        """Closes the connections."""
        if self._redis is not None:
            await self._redis.aclose()

    def _awake(self) -> Redis | None:
        return self._redis if time.monotonic() >= self._asleep_until else None

    def _sleep_unless_wrong_type(self, error: ResponseError) -> None:
        """A key of the wrong type was not written by this service; Redis itself works."""
        if not str(error).startswith("WRONGTYPE"):
            self._sleep(error)

    def _sleep(self, error: Exception) -> None:
        metrics.REDIS_FAILURES.inc()
        now = time.monotonic()
        self._asleep_until = now + self._retry_s
        if now >= self._silent_until:
            self._silent_until = now + _WARN_EVERY_S
            _log.warning("cache unavailable, continuing without it", redis=explain(error), error=str(error))
