"""One thread per model: order, limits, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from dekag.errors import DeadlineError, ExhaustedError
from services.common.request_context import begin_request, request_id
from services.common.worker import BatchWorker, ModelWorker, ShouldContinue


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


async def test_full_queue_refuses_calls_and_recovers() -> None:
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


async def test_expired_call_never_starts() -> None:
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


def batching(seen: list[list[int]], first: threading.Event, **limits: int) -> BatchWorker[int, int]:
    """Squares numbers, notes its batches, and holds the first one up; numbers of equal parity are alike."""

    def work(items: Sequence[int], _: ShouldContinue) -> list[int]:
        seen.append(list(items))
        if len(seen) == 1:
            first.wait()
        if -1 in items:
            raise ValueError("not -1")
        return [item**2 for item in items]

    return BatchWorker("test", work, batch_key=lambda item: item % 2, **{"max_batch": 4, **limits})


async def test_batches_hold_waiting_calls_of_one_key_oldest_first() -> None:
    seen, release = [], threading.Event()
    worker = batching(seen, release)
    calls = [asyncio.create_task(worker.run(item)) for item in (0, 1, 2, 3, 5, 4, 7, 9, 11, 6)]
    await asyncio.sleep(0.05)
    assert seen == [[0]], "a free worker starts at once, with what is there"
    release.set()
    results = await asyncio.gather(*calls)
    assert [result for result, _ in results] == [0, 1, 4, 9, 25, 16, 49, 81, 121, 36]
    assert seen == [[0], [1, 3, 5, 7], [2, 4, 6], [9, 11]]
    assert len({seconds for _, seconds in results[1:2] + results[3:5]}) == 1, "of their batch"
    assert (await worker.run(3))[0] == 9, "turns without a call do no harm"
    worker.close()


async def test_failure_in_a_batch_spares_the_other_calls() -> None:
    seen, release = [], threading.Event()
    worker = batching(seen, release)
    calls = [asyncio.create_task(worker.run(item)) for item in (0, 1, -1, 3)]
    await asyncio.sleep(0.02)
    release.set()
    _, one, failed, three = await asyncio.gather(*calls, return_exceptions=True)
    assert (one[0], three[0]) == (1, 9)
    assert isinstance(failed, ValueError)
    with pytest.raises(ValueError, match="not -1"):
        await worker.run(-1)
    worker.close()


async def test_cancelled_and_expired_calls_join_no_batch() -> None:
    seen, release = [], threading.Event()
    worker = batching(seen, release)
    first, gone, stays = (asyncio.create_task(worker.run(item)) for item in (0, 1, 3))
    await asyncio.sleep(0.02)
    begin_request("late", 0.02)
    late = asyncio.create_task(worker.run(5))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await asyncio.sleep(0.05)
    release.set()
    with pytest.raises(DeadlineError):
        await late
    await asyncio.gather(first, stays)
    assert seen == [[0], [3]]
    worker.close()


async def test_full_batch_queue_refuses_calls_and_recovers() -> None:
    seen, release = [], threading.Event()
    worker = batching(seen, release, max_queue=3)
    waiting = [asyncio.create_task(worker.run(item)) for item in (0, 2, 4)]
    await asyncio.sleep(0.02)
    with pytest.raises(ExhaustedError, match="3 requests"):
        await worker.run(6)
    waiting.pop().cancel()
    await asyncio.sleep(0)
    more = asyncio.create_task(worker.run(8))
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*waiting, more)
    assert seen == [[0], [2, 8]]
    worker.close()


async def test_closing_drops_waiting_calls() -> None:
    seen, release = [], threading.Event()
    worker = batching(seen, release)
    first, waits = (asyncio.create_task(worker.run(item)) for item in (0, 2))
    await asyncio.sleep(0.02)
    threading.Timer(0.05, release.set).start()
    worker.close()
    assert (await first)[0] == 0
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert seen == [[0]]
