"""Runs each model in its own thread, with a bounded queue, request by request or in batches."""

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
"""Whether any request still needs the result."""

_POLL_INTERVAL_S = 0.001
_SMOOTHING = 0.8  # weight of the previous estimate of the time per call


class _WaitQueue:
    """The requests that wait for a model, and an estimate of the time that each of them takes.

    A request whose expected wait exceeds its deadline is rejected immediately: it would only delay requests
    that can still be served.
    """

    def __init__(self, name: str, max_queue: int) -> None:
        self.name, self._max_queue = name, max_queue
        self._waiting, self._seconds_each = 0, 0.0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Holds a slot in the queue inside the context.

        Raises:
            ExhaustedError: the queue is full, or the expected wait exceeds the request's deadline.
            DeadlineError: the deadline has passed.
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
        left, wait_s = time_remaining(), self._waiting * self._seconds_each
        if self._waiting >= self._max_queue:
            raise ExhaustedError(f"{self._waiting} requests wait for the {self.name} model; try again later")
        if left is not None and wait_s > left:
            raise ExhaustedError(
                f"the expected wait for the {self.name} model is {wait_s:.1f} s, but the request's deadline "
                f"is in {left:.1f} s; try again later"
            )

    def record(self, seconds: float, calls: int) -> None:
        """Updates the estimate: this many calls took that time in all."""
        estimate = self._seconds_each or seconds / calls
        self._seconds_each = _SMOOTHING * estimate + (1 - _SMOOTHING) * seconds / calls


def _set_threads(threads: int) -> None:
    if not threads:
        return
    import torch  # not at the top: the gateway imports this module and starts without torch

    torch.set_num_threads(threads)


class ModelWorker:
    """Runs the CPU work of one model in its own thread, one call after another, in order of arrival.

    A call that is cancelled before it starts never runs; a running call always finishes before the next one
    starts, so that two calls never share the state of a model.
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
            self._queue.record(seconds, 1)
            return result, seconds

        with self._queue.slot():
            return await asyncio.get_running_loop().run_in_executor(self._thread, context.run, timed)

    def close(self) -> None:
        """Lets the running call finish and cancels the waiting ones."""
        self._thread.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class _Call(Generic[_Item, _Result]):
    """An item that waits for its batch, with the context of its request."""

    item: _Item
    context: contextvars.Context
    result: Future[tuple[_Result, float]] = field(default_factory=Future)
    abandoned: bool = False

    def should_continue(self) -> bool:
        """Whether its request still needs the result."""
        if self.abandoned:
            return False
        try:
            self.context.run(time_remaining)
        except DeadlineError:
            return False
        return True


class BatchWorker(Generic[_Item, _Result]):
    """Runs the CPU work of one model in its own thread, in batches of waiting calls.

    A free worker starts immediately with the waiting calls, unless `wait_s` makes it wait for more. Every
    batch starts with the call that has waited longest, followed by calls with the same batch key in order of
    arrival, so that no call waits for more batches than there were calls before it. A call that is cancelled
    before it starts never runs; the work of a batch can check whether any of its calls is still needed. If a
    batch fails, its calls are run one by one, so that none fails because of another.

    Args:
        name: name of the model, for messages.
        work: returns the results for items with the same batch key, in order; may stop early if it should
            not continue.
        batch_key: items with equal keys may share a batch.
        max_batch: largest number of items in a batch.
        wait_s: how long a free worker waits for more calls to share a batch, s.
        threads: CPU threads of the model; 0 uses torch's default.
        max_queue: largest number of waiting calls.
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
            # one submission per call; some find the queue empty, as their call was in an earlier batch
            self._thread.submit(self._run_batch)
            try:
                return await asyncio.wrap_future(call.result)
            except asyncio.CancelledError:
                call.abandoned = True
                raise

    async def run_exclusive(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Result of ``work(*args, **kwargs)``, run between two batches in the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Lets the running batch finish and cancels the waiting calls."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for call in self._calls:
            call.result.cancel()

    def _run_batch(self) -> None:
        """Runs one batch if any call waits."""
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
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                batch[0].result.set_exception(error)
                return
            for call in batch:
                self._run_single(call)
            return
        seconds = time.perf_counter() - start
        self._queue.record(seconds, len(batch))
        for call, result in pairs:
            call.result.set_result((result, seconds))

    def _wait_for_more(self) -> None:
        end = time.monotonic() + self._wait_s
        while 0 < len(self._calls) < self._max_batch and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_INTERVAL_S))

    def _run_single(self, call: _Call[_Item, _Result]) -> None:
        start = time.perf_counter()
        try:
            (result,) = self._work([call.item], call.should_continue)
        except Exception as error:
            call.result.set_exception(error)
        else:
            call.result.set_result((result, time.perf_counter() - start))

    def _next(self) -> list[_Call[_Item, _Result]]:
        """Takes the first call and those with the same batch key from the queue."""
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
    """Whether ``call`` should run: it is not cancelled, and its deadline has not passed."""
    if not call.result.set_running_or_notify_cancel():
        return False
    try:
        call.context.run(time_remaining)
    except DeadlineError as error:
        call.result.set_exception(error)
        return False
    return True
