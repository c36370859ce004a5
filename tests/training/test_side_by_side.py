"""Parts of a batch in threads of their own."""

from __future__ import annotations

import threading

import pytest
import torch

from dekag.training.side_by_side import side_by_side


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    with side_by_side(threads) as crew:
        assert list(crew.map(lambda item: item * 2, range(7))) == list(range(0, 14, 2))


def test_parts_meet_in_several_threads_of_one_thread_of_pytorch_each() -> None:
    both = threading.Barrier(2, timeout=30)  # passed only if two threads wait at once

    def meet(_: int) -> int:
        both.wait()
        return torch.get_num_threads()

    with side_by_side(2) as crew:
        assert list(crew.map(meet, range(2))) == [1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_pytorch_has_as_many_threads_afterwards_as_before(threads: int) -> None:
    before = torch.get_num_threads()
    later: list[int] = []
    try:
        torch.set_num_threads(3)
        with side_by_side(threads) as crew:
            list(crew.map(str, range(4)))
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert [torch.get_num_threads(), *later] == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_an_error_of_a_part_reaches_the_caller() -> None:
    with side_by_side(2) as crew, pytest.raises(ZeroDivisionError):
        list(crew.map(lambda item: 1 / item, [1, 0, 2]))
