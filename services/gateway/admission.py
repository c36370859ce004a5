"""Who may ask for a picture now: so many at a time, some wait, the others are told at once to come later."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dekag.errors import ExhaustedError
from services.common import metrics
from services.common.request_context import time_remaining

_KEEPS = 0.9  # of the mean time in a slot, with each request that ends


class Admission:
    """Slots that clients take turns in.

    A client that asks for much waits behind the others' first requests, not the others behind all of its own:
    free slots go round the clients that wait. When as many wait as may, only those with less than their fair
    share of all places still get in, up to twice as many.

    Args:
        slots: requests in flight at a time.
        max_waiting: requests that may wait for a slot.
    """

    def __init__(self, *, slots: int, max_waiting: int) -> None:
        self._free, self._slots, self._max_waiting = slots, slots, max_waiting
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # whose turn it is first
        self._places: Counter[str] = Counter()  # each client's, in flight or waiting
        self._slot_s = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return sum(map(len, self._lines.values()))

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """A slot while inside, after a wait if none is free.

        Raises:
            ExhaustedError: too many wait, or it would wait longer than its request has time.
        """
        with metrics.REFUSED.labels("gateway").count_exceptions(ExhaustedError):
            self._check(client)
        self._places[client] += 1
        try:
            await self._turn(client)
            start = time.monotonic()
            try:
                yield
            finally:
                self._note(time.monotonic() - start)
                self._give_back()
        finally:
            self._places[client] -= 1
            if not self._places[client]:
                del self._places[client]

    def _check(self, client: str) -> None:
        if self._free:
            return
        waiting, left = self.waiting, time_remaining()
        wait_s = (waiting + 1) * self._slot_s / self._slots
        share = (self._slots + self._max_waiting) / len({*self._places, client})
        full = waiting >= self._max_waiting
        if (full and self._places[client] >= share) or waiting >= 2 * self._max_waiting:
            raise ExhaustedError(
                f"{waiting} requests wait already; try again in {_later(wait_s)} s",
                retry_after_s=_later(wait_s),
            )
        if left is not None and wait_s > left:
            raise ExhaustedError(
                f"it would be about {wait_s:.0f} s until the turn of this request, which allows {left:.0f} s",
                retry_after_s=_later(wait_s - left),
            )

    async def _turn(self, client: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, deque()).append(turn)
        try:
            with metrics.WAITING.labels("gateway").track_inprogress():
                await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()  # its slot came in the very moment in which it left
            else:
                self._leave(client, turn)
            raise

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        if (line := self._lines.get(client)) is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[client]

    def _give_back(self) -> None:
        """Hands a slot to the client whose turn it is."""
        while self._lines:
            client, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[client] = line  # behind the others
            if not turn.done():  # else its request was cancelled just now
                turn.set_result(None)
                return
        self._free += 1

    def _note(self, seconds: float) -> None:
        known = self._slot_s or seconds
        self._slot_s = _KEEPS * known + (1 - _KEEPS) * seconds


def _later(seconds: float) -> int:
    return max(1, math.ceil(seconds))
