"""Admission of requests for images: some are processed, some wait, the rest are refused at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dekag.errors import DeadlineError, ExhaustedError
from services.common import metrics
from services.common.request_context import time_remaining

_KEEPS = 0.9  # weight of the old mean time in a slot when a request ends


class Admission:
    """A fixed number of slots, shared fairly among clients.

    Free slots go round robin to the clients that wait, so one client with many requests does not hold up the
    others. When the queue is full, only clients below their fair share are admitted, up to twice its length.

    Args:
        slots: requests processed at a time.
        max_waiting: requests that may wait for a slot.
    """

    def __init__(self, *, slots: int, max_waiting: int) -> None:
        self._free, self._slots, self._max_waiting = slots, slots, max_waiting
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = (
            OrderedDict()
        )  # by client, the next one first
        self._requests: Counter[str] = Counter()  # by client, in flight or waiting
        self._slot_s = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return sum(map(len, self._queues.values()))

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """A slot while inside, after a wait if none is free.

        Raises:
            ExhaustedError: the queue is full, or the expected wait exceeds the request's deadline.
            DeadlineError: the wait exceeded it.
        """
        with metrics.REFUSED.labels("gateway").count_exceptions(ExhaustedError):
            self._check(client)
        self._requests[client] += 1
        try:
            await self._wait_for_slot(client)
            start = time.monotonic()
            try:
                yield
            finally:
                self._note(time.monotonic() - start)
                self._release()
        finally:
            self._requests[client] -= 1
            if not self._requests[client]:
                del self._requests[client]

    def _check(self, client: str) -> None:
        if self._free:
            return
        waiting, left = self.waiting, time_remaining()
        wait_s = (waiting + 1) * self._slot_s / self._slots
        share = (self._slots + self._max_waiting) / len({*self._requests, client})
        full = waiting >= self._max_waiting
        if (full and self._requests[client] >= share) or waiting >= 2 * self._max_waiting:
            raise ExhaustedError(
                f"{waiting} requests are waiting already; try again in {_later(wait_s)} s",
                retry_after_s=_later(wait_s),
            )
        if left is not None and wait_s > left:
            raise ExhaustedError(
                f"the expected wait is {wait_s:.0f} s, but this request must end within {left:.0f} s",
                retry_after_s=_later(wait_s - left),
            )

    async def _wait_for_slot(self, client: str) -> None:
        if self._free:
            self._free -= 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(time_remaining()):
                await self._wait(client, waiter)
        except TimeoutError:
            raise DeadlineError("the request exceeded its deadline while it waited for others") from None

    async def _wait(self, client: str, waiter: asyncio.Future[None]) -> None:
        self._queues.setdefault(client, deque()).append(waiter)
        try:
            with metrics.WAITING.labels("gateway").track_inprogress():
                await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()  # it got its slot at the moment it left
            else:
                self._leave(client, waiter)
            raise

    def _leave(self, client: str, waiter: asyncio.Future[None]) -> None:
        if (queue := self._queues.get(client)) is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[client]

    def _release(self) -> None:
        """Passes a slot to the next client, or frees it."""
        while self._queues:
            client, queue = self._queues.popitem(last=False)
            waiter = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            if not waiter.done():  # otherwise its request has just been cancelled
                waiter.set_result(None)
                return
        self._free += 1

    def _note(self, seconds: float) -> None:
        mean_s = self._slot_s or seconds
        self._slot_s = _KEEPS * mean_s + (1 - _KEEPS) * seconds


def _later(seconds: float) -> int:
    return max(1, math.ceil(seconds))
