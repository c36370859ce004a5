"""The runner, in turn and in processes; test_sweeps.py runs it on Ray."""

from __future__ import annotations

import os

import pytest

from dekag.errors import InvalidInputError
from dekag.evaluation.runner import run_in_processes, run_serially

GROUPS = [[1, 2, 3], [4], [5, 6]]
SQUARES = {1: 1, 2: 4, 3: 9, 4: 16, 5: 25, 6: 36}


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise InvalidInputError("number", "anything but this", number)


def process_id(_: int) -> int:
    return os.getpid()


def test_serial_work_is_done_group_by_group() -> None:
    assert list(run_serially(square, GROUPS)) == list(SQUARES.items())


def test_processes_return_each_task_with_its_result() -> None:
    tasks = [task for group in GROUPS for task in group]
    assert dict(run_in_processes(square, tasks, 2)) == SQUARES
    assert {pid for _, pid in run_in_processes(process_id, [1], 1)} != {os.getpid()}


def test_what_a_task_raises_in_a_process_reaches_the_caller() -> None:
    with pytest.raises(InvalidInputError, match="anything but this"):
        list(run_in_processes(refuse, [1], 1))
