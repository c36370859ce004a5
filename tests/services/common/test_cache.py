"""The cache with a real Redis, without one, and with one that went away."""

from __future__ import annotations

import time

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from dekag.generation.request import GenerationRequest, Sampling
from services.common.cache import Cache, content_key, image_key, latent_key, report_key
from services.common.settings import CommonSettings


async def test_values_come_back_as_they_were(redis_url: str) -> None:
    cache = Cache(CommonSettings(redis_url=redis_url))
    key = content_key("test", "value", 1)
    assert await cache.get(key) is None
    await cache.set(key, b"\x00\xff\r\n", 60)
    assert await cache.get(key) == b"\x00\xff\r\n"
    assert await cache.problem() == ""
    async with Redis.from_url(redis_url) as redis:
        assert 0 < await redis.ttl(key) <= 60
    await cache.close()


async def test_without_redis_everything_is_a_quick_miss_and_one_warning(closed_port: int) -> None:
    cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{closed_port}/0"))
    start = time.perf_counter()
    with capture_logs() as logs:
        for _ in range(100):
            await cache.set("key", b"value", 60)
            assert await cache.get("key") is None
    assert time.perf_counter() - start < 1
    assert [entry["event"] for entry in logs] == ["cache unavailable, continuing without it"]
    assert await cache.problem() == "cannot be reached"
    await cache.close()


async def test_redis_that_comes_back_is_used_again(redis_url: str, closed_port: int) -> None:
    cache = Cache(CommonSettings(redis_url=f"redis://127.0.0.1:{closed_port}/0", redis_retry_s=0))
    assert await cache.get("key") is None
    working = Redis.from_url(redis_url)
    assert cache._redis is not None
    await cache._redis.aclose()
    cache._redis = working
    await cache.set(content_key("test", "back"), b"1", 60)
    assert await cache.get(content_key("test", "back")) == b"1"
    await cache.close()


async def test_url_none_turns_caching_off() -> None:
    cache = Cache(CommonSettings(redis_url="none"))
    await cache.set("key", b"value", 60)
    assert await cache.get("key") is None
    assert "DEKAG_REDIS_URL is none" in await cache.problem()
    await cache.close()


def test_keys_depend_on_every_part_and_never_run_together() -> None:
    base = ("hash", "a fox", 1, 128, 128)
    keys = {latent_key(*base)} | {
        latent_key(*base[:i], value, *base[i + 1 :])  # type: ignore[call-arg]
        for i, value in enumerate(("other", "a cat", 2, 64, 64))
    }
    assert len(keys) == 6
    requests = [
        GenerationRequest("a fox", 1, 128, 128, sampling=sampling)
        for sampling in (
            Sampling(),
            Sampling(steps=3),
            Sampling(guidance_scale=3),
            Sampling(negative_prompt="3"),
            Sampling(adapter_scale=0.5),
        )
    ]
    made = {image_key("hash", request, name) for request in requests for name in ("png", "webp")}
    made |= {latent_key(*base, sampling=request.sampling) for request in requests}
    assert len(made) == 15
    assert content_key("x", "a", "bc") != content_key("x", "ab", "c")
    assert report_key("abc") == "dekag:report:abc"


@pytest.mark.parametrize("url", ["http://nowhere", "not a url"])
def test_invalid_url_fails_at_start(url: str) -> None:
    with pytest.raises(ValueError, match="must be like redis://"):
        Cache(CommonSettings(redis_url=url))


async def test_key_of_another_type_is_a_miss(redis_url: str) -> None:
    cache = Cache(CommonSettings(redis_url=redis_url))
    async with Redis.from_url(redis_url) as redis:
        await redis.delete("odd-list", "odd-text")
        await redis.rpush("odd-list", b"x")
        await redis.set("odd-text", b"x")
    with capture_logs() as logs:
        assert await cache.get("odd-list") is None
        assert await cache.get_hash("odd-text") == {}
        assert await cache.get("odd-text") == b"x", "Redis is not left alone"
    assert logs == []
    await cache.close()
