"""Work of a small model on several processor cores: each part in a thread of its own.

Operations of a small model take microseconds, so that PyTorch's own threads wait for each other most of the
time, and much longer if another process needs a core. Parts of a batch meet only once in a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class SideBySide:
    """Calls a function for several items at a time.

    Args:
        threads: largest number of calls at a time; each computes with one thread of PyTorch. With one, the
            caller's thread makes all calls, one after another, as PyTorch is set.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = (
            ThreadPoolExecutor(threads, "part", initializer=torch.set_num_threads, initargs=(1,))
            if threads > 1
            else None
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results, in the order of the items; contexts of the caller, such as no_grad, do not count."""
        return map(function, items) if self._pool is None else self._pool.map(function, items)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def side_by_side(threads: int) -> Iterator[SideBySide]:
    """A `SideBySide` whose threads end with the context.

    Inside, other threads that use PyTorch for the first time compute with one thread.
    """
    before = torch.get_num_threads()
    crew = SideBySide(threads)
    try:
        yield crew
    finally:
        crew.close()
        if threads > 1:
            torch.set_num_threads(before)  # a thread that sets its own number also sets that of later ones
