"""One thread per model: order, limits, cancellation."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dekag.errors import DeadlineError, ExhaustedError
from services.common.requests import begin_request, request_id
from services.common.worker import ModelWorker


async def test_calls_run_one_by_one_in_order_with_the_context_of_the_request() -> None:
    worker, seen, running = ModelWorker("test"), [], 0

    def work(i: int) -> str:
        nonlocal running
        running += 1
        assert running == 1
        seen.append(i)
        running -= 1
        return request_id.get()

    async def ask(i: int) -> str:
        begin_request(f"r{i}", None)
        result, seconds = await worker.run(work, i)
        assert seconds >= 0
        return result

    assert await asyncio.gather(*map(ask, range(20))) == [f"r{i}" for i in range(20)]
    assert seen == list(range(20))
    worker.close()


async def test_a_full_queue_turns_away_and_recovers() -> None:
    worker, release = ModelWorker("test", max_queue=2), threading.Event()
    waiting = [asyncio.create_task(worker.run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ExhaustedError, match="2 requests"):
        await worker.run(int)
    release.set()
    await asyncio.gather(*waiting)
    assert (await worker.run(int))[0] == 0
    worker.close()


async def test_a_cancelled_call_that_waits_never_starts() -> None:
    worker, release, started = ModelWorker("test"), threading.Event(), []
    first = asyncio.create_task(worker.run(release.wait))
    second = asyncio.create_task(worker.run(started.append, 1))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    release.set()
    await first
    await worker.run(int)
    assert not started
    worker.close()


async def test_a_call_whose_time_is_over_never_starts() -> None:
    worker, release, started = ModelWorker("test"), threading.Event(), []
    first = asyncio.create_task(worker.run(release.wait))
    begin_request("late", 0.02)
    second = asyncio.create_task(worker.run(started.append, 1))
    await asyncio.sleep(0.05)
    release.set()
    with pytest.raises(DeadlineError):
        await second
    await first
    assert not started
    worker.close()
