"""One thread for each model: requests queue for it, so results never depend on what else is asked."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from dekag.errors import ExhaustedError
from services.common.requests import time_remaining

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
        self._name, self._max_queue, self._waiting = name, max_queue, 0
        self._thread = ThreadPoolExecutor(1, f"model-{name}", initializer=partial(_set_threads, threads))

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> tuple[_T, float]:
        """Result of ``work(*args, **kwargs)`` and the seconds it took, without its time in the queue.

        Raises:
            ExhaustedError: too many calls are waiting.
            DeadlineError: the request's time was over before its turn came.
        """
        if self._waiting >= self._max_queue:
            raise ExhaustedError(f"{self._waiting} requests wait for the {self._name} model; try again later")
        context = contextvars.copy_context()

        def timed() -> tuple[_T, float]:
            time_remaining()
            start = time.perf_counter()
            result = work(*args, **kwargs)
            return result, time.perf_counter() - start

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, context.run, timed)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Lets the call that runs finish and drops the others."""
        self._thread.shutdown(wait=True, cancel_futures=True)
