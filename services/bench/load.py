"""Load on a service: by users who wait for each answer, or at given times, whoever still waits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import httpx2

from dekag.evaluation.pages import Row

_PATH = "/v1/images/generations"
T = TypeVar("T")
Ask = Callable[[float], Coroutine[Any, Any, T]]
"""Makes one request and tells what became of it; given the time at which the load began, perf_counter, s."""


async def closed_loop(ask: Ask[T], users: int, seconds: float) -> list[T]:
    """What becomes of the requests of so many users, each of whom asks again when the last is answered.

    Requests that have begun when the time is over are waited for.
    """
    begin, answered = time.perf_counter(), list[T]()

    async def user() -> None:
        while time.perf_counter() < begin + seconds:
            answered.append(await ask(begin))

    await asyncio.gather(*(user() for _ in range(users)))
    return answered


async def open_loop(ask: Ask[T], times_s: Iterable[float]) -> list[T]:
    """What becomes of requests that begin at these times, s since the load began."""
    begin, pending = time.perf_counter(), list[asyncio.Task[T]]()
    for at_s in times_s:
        await asyncio.sleep(max(0.0, begin + at_s - time.perf_counter()))
        pending.append(asyncio.create_task(ask(begin)))
    return list(await asyncio.gather(*pending))


def poisson(rate_hz: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Random times of a Poisson process, s, in rising order."""
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(rate_hz)) < seconds:
        yield at_s


def many_connections(url: str) -> httpx2.AsyncClient:
    """A client of the gateway with as many connections as there are requests."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx2.AsyncClient(base_url=url, timeout=90.0, trust_env=False, limits=limits)


async def ask_for_image(client: httpx2.AsyncClient, body: Mapping[str, Any], begin: float) -> Row:
    """What became of a request for an image: `at_s` since `begin`, `status` (0: no answer), `latency_s`."""
    start = time.perf_counter()
    try:
        status = (await client.post(_PATH, json=body)).status_code
    except httpx2.HTTPError:
        status = 0
    return {"at_s": start - begin, "status": status, "latency_s": time.perf_counter() - start}
