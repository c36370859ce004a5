"""The runner: the same results in turn, in processes and on Ray, as they are done."""

from __future__ import annotations

import os

import pytest

from dekag.errors import InvalidInputError
from dekag.evaluation.runner import WorkerDied, run_in_processes, run_on_ray, run_serially

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


def test_ray_returns_each_task_with_its_result() -> None:
    pytest.importorskip("ray")
    assert dict(run_on_ray(square, GROUPS, "local", 2)) == SQUARES


def test_a_task_that_ends_its_worker_on_ray_costs_no_other_task() -> None:
    pytest.importorskip("ray")

    def fail_at_two(number: int) -> int:
        if number == 2:
            os._exit(1)
        return number * number

    results = dict(run_on_ray(fail_at_two, GROUPS, "local", 1))
    died = results.pop(2)
    assert isinstance(died, WorkerDied)
    assert "the worker died" in died.why
    assert results == {task: result for task, result in SQUARES.items() if task != 2}
