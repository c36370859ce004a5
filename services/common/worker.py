"""One thread for each model: requests queue for it, one by one or in batches, while their time allows."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from dekag.errors import DeadlineError, ExhaustedError
from services.common import metrics
from services.common.request_context import time_remaining

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


ShouldContinue = Callable[[], bool]
"""Whether anybody still waits for what is being worked at."""

_LOOK_EVERY_S = 0.001
_PACE_KEEPS = 0.8  # of what was known, with each turn


class _WaitQueue:
    """Those who wait for a model, and how long each of them takes it.

    Whoever would wait longer than its request has time is turned away at once: it would only be in the way
    of those that can still be served.
    """

    def __init__(self, name: str, max_queue: int) -> None:
        self.name, self._max_queue = name, max_queue
        self._waiting, self._seconds_each = 0, 0.0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """A place in the line while inside.

        Raises:
            ExhaustedError: the line is full, or longer than the request's time.
            DeadlineError: the request's time is over.
        """
        with metrics.REFUSED.labels(self.name).count_exceptions(ExhaustedError):
            self._check()
        self._waiting += 1
        try:
            with metrics.WAITING.labels(self.name).track_inprogress():
                yield
        finally:
            self._waiting -= 1

    def _check(self) -> None:
        left, waits_s = time_remaining(), self._waiting * self._seconds_each
        if self._waiting >= self._max_queue:
            raise ExhaustedError(f"{self._waiting} requests wait for the {self.name} model; try again later")
        if left is not None and waits_s > left:
            raise ExhaustedError(
                f"it would be about {waits_s:.1f} s until the {self.name} model gets to this request, which "
                f"allows {left:.1f} s; try again later"
            )

    def note(self, seconds: float, served: int) -> None:
        """So many were served in that time."""
        known = self._seconds_each or seconds / served
        self._seconds_each = _PACE_KEEPS * known + (1 - _PACE_KEEPS) * seconds / served


def _set_threads(threads: int) -> None:
    if not threads:
        return
    import torch  # here, since the gateway shares this package and starts without torch

    torch.set_num_threads(threads)


class ModelWorker:
    """Runs the CPU work of one model in its own thread, one call after another, first come first served.

    A cancelled call that has not started never starts; one that has started is finished before the next, so
    that two calls never share the state of a model.
    """

    def __init__(self, name: str, *, threads: int = 0, max_queue: int = 64) -> None:
        self._queue = _WaitQueue(name, max_queue)
        self._thread = ThreadPoolExecutor(1, f"model-{name}", initializer=partial(_set_threads, threads))

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> tuple[_T, float]:
        """Result of ``work(*args, **kwargs)`` and the seconds it took, without its time in the queue.

        Raises:
            ExhaustedError: too many calls are waiting, or the request has not the time to wait for them.
            DeadlineError: the request's time was over before its turn came.
        """
        context = contextvars.copy_context()

        def timed() -> tuple[_T, float]:
            time_remaining()
            start = time.perf_counter()
            result = work(*args, **kwargs)
            seconds = time.perf_counter() - start
            self._queue.note(seconds, 1)
            return result, seconds

        with self._queue.slot():
            return await asyncio.get_running_loop().run_in_executor(self._thread, context.run, timed)

    def close(self) -> None:
        """Lets the call that runs finish and drops the others."""
        self._thread.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class _Call(Generic[_Item, _Result]):
    """An item that waits for its batch, with the context of its request."""

    item: _Item
    context: contextvars.Context
    answer: Future[tuple[_Result, float]] = field(default_factory=Future)
    abandoned: bool = False

    def should_continue(self) -> bool:
        """Whether its request still waits for it."""
        if self.abandoned:
            return False
        try:
            self.context.run(time_remaining)
        except DeadlineError:
            return False
        return True


class BatchWorker(Generic[_Item, _Result]):
    """Runs the CPU work of one model in its own thread, for all that waits for it at once.

    A free worker starts at once, with what is there, unless it is told to wait a little for more. The call
    that has waited longest is in every batch, and those behind it that are like it ride along in their order,
    so that nobody waits for more batches than there were calls before. A cancelled call that has not started
    never starts; the work of a batch can ask whether any of its calls is still wanted. If a batch fails, its
    calls are tried one by one, so that none fails for another.

    Args:
        name: of the model, for messages.
        work: results for items that are all alike, in their order; it may give up when nobody wants them.
        alike: items that give the same value may share a batch.
        max_batch: most items in one batch.
        wait_s: how long a call that finds the worker free waits for others to share its batch, s.
        threads: CPU threads of the model; 0 leaves it to torch.
        max_queue: calls that may wait.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[_Item], ShouldContinue], Sequence[_Result]],
        *,
        batch_key: Callable[[_Item], Hashable],
        max_batch: int,
        wait_s: float = 0.0,
        threads: int = 0,
        max_queue: int = 64,
    ) -> None:
        self._work, self._batch_key, self._max_batch, self._wait_s = work, batch_key, max_batch, wait_s
        self._queue = _WaitQueue(name, max_queue)
        self._calls: deque[_Call[_Item, _Result]] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, f"model-{name}", initializer=partial(_set_threads, threads))

    async def run(self, item: _Item) -> tuple[_Result, float]:
        """Result for ``item`` and the seconds its batch took, without its time in the queue.

        Raises:
            ExhaustedError: too many calls are waiting, or the request has not the time to wait for them.
            DeadlineError: the request's time was over before its turn came.
        """
        call: _Call[_Item, _Result] = _Call(item, contextvars.copy_context())
        with self._queue.slot():
            with self._lock:
                self._calls.append(call)
            # one turn for each call; those of calls that rode along find less
            self._thread.submit(self._turn)
            try:
                return await asyncio.wrap_future(call.answer)
            except asyncio.CancelledError:
                call.abandoned = True
                raise

    async def run_exclusive(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Result of ``work(*args, **kwargs)``, run between two batches in the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Lets the batch that runs finish and drops the other calls."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for call in self._calls:
            call.answer.cancel()

    def _turn(self) -> None:
        """One batch, if anything waits."""
        if self._wait_s:
            self._wait_for_more()
        if not (batch := self._next()):
            return
        metrics.BATCH_SIZE.labels(self._queue.name).observe(len(batch))
        start = time.perf_counter()
        try:
            results = self._work(
                [call.item for call in batch], lambda: any(call.should_continue() for call in batch)
            )
            answered = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for call in batch:
                self._alone(call)
            return
        seconds = time.perf_counter() - start
        self._queue.note(seconds, len(batch))
        for call, result in answered:
            call.answer.set_result((result, seconds))

    def _wait_for_more(self) -> None:
        end = time.monotonic() + self._wait_s
        while 0 < len(self._calls) < self._max_batch and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_EVERY_S))

    def _alone(self, call: _Call[_Item, _Result]) -> None:
        start = time.perf_counter()
        try:
            (result,) = self._work([call.item], call.should_continue)
        except Exception as error:
            call.answer.set_exception(error)
        else:
            call.answer.set_result((result, time.perf_counter() - start))

    def _next(self) -> list[_Call[_Item, _Result]]:
        """Takes the first call off the queue, and those like it."""
        batch: list[_Call[_Item, _Result]] = []
        with self._lock:
            others: list[_Call[_Item, _Result]] = []
            while self._calls and len(batch) < self._max_batch:
                call = self._calls.popleft()
                if batch and self._batch_key(call.item) != self._batch_key(batch[0].item):
                    others.append(call)
                elif _starts(call):
                    batch.append(call)
            self._calls.extendleft(reversed(others))
        return batch


def _starts(call: _Call[_Item, _Result]) -> bool:
    """Whether ``call`` is to be worked: nobody has cancelled it, and its request has time left."""
    if not call.answer.set_running_or_notify_cancel():
        return False
    try:
        call.context.run(time_remaining)
    except DeadlineError as error:
        call.answer.set_exception(error)
        return False
    return True
