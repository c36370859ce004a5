"""The load that benchmarks make: in turn by users, or at given times."""

from __future__ import annotations

import asyncio
import random

from services.bench.load import ask_for_image, closed_loop, many_connections, open_loop, poisson


async def test_a_user_asks_again_only_when_answered() -> None:
    busy, most = 0, 0

    async def ask(_: float) -> int:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0)
        busy -= 1
        return most

    answered = await closed_loop(ask, 3, 0.05)
    assert len(answered) > 3
    assert most == 3


async def test_requests_come_whoever_still_waits() -> None:
    third = asyncio.Event()
    begun = 0

    async def ask(_: float) -> int:
        nonlocal begun
        begun += 1
        if begun == 3:
            third.set()
        await third.wait()
        return begun

    assert await open_loop(ask, [0.0, 0.0, 0.01]) == [3, 3, 3]


def test_times_are_those_of_a_poisson_process() -> None:
    times = list(poisson(50.0, 100.0, random.Random(0)))
    assert times == sorted(times)
    assert times[-1] < 100
    assert abs(len(times) - 5000) < 4 * 5000**0.5


async def test_a_request_without_an_answer_has_status_0(closed_port: int) -> None:
    async with many_connections(f"http://127.0.0.1:{closed_port}") as client:
        row = await ask_for_image(client, {"prompt": "a fox"}, 0.0)
    assert row["status"] == 0


async def test_the_status_of_an_answer_is_told(gateway_url: str) -> None:
    async with many_connections(gateway_url) as client:
        statuses = [
            (await ask_for_image(client, body, 0.0))["status"]
            for body in ({"prompt": "a fox"}, {"seed": "x"})
        ]
    assert statuses == [200, 422]
