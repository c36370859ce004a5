"""Runs tasks one after another, in processes of this machine, or on the workers of Ray.

What a task does is a function that can be pickled; a worker keeps what it has loaded (`models.model_bank`).
Results come as they are done. What was measured before is not for the runner to know: the function reads it
from the `ResultStore`, or its caller leaves it out.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dekag import plugins
from dekag.errors import InvalidInputError

LOCAL = "local"
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class WorkerDied:
    """In place of a result: the worker of Ray that had the task died.

    Attributes:
        why: in a few words.
    """

    why: str


def machine() -> dict[str, Any]:
    """Where this process runs, and with what."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def run_serially(
    work: Callable[[_Task], _Result], groups: Sequence[Sequence[_Task]]
) -> Iterator[tuple[_Task, _Result]]:
    """Each task and its result, one after another in this process."""
    for group in groups:
        for task in group:
            yield task, work(task)


def run_in_processes(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int
) -> Iterator[tuple[_Task, _Result]]:
    """Each task and its result, by so many processes; what a task raises ends all of them."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(work, task): task for task in tasks}
        for done in as_completed(running):
            yield running[done], done.result()


def run_on_ray(
    work: Callable[[_Task], _Result], groups: Sequence[Sequence[_Task]], address: str, workers: int | None
) -> Iterator[tuple[_Task, _Result | WorkerDied]]:
    """Each task and its result, by workers of Ray.

    Each worker takes the tasks of one group after another, and helps with the longest queue at the end.

    Args:
        work: what a task does.
        groups: tasks; those that need the same models together.
        address: "local": Ray on this machine. Else that of a Ray cluster.
        workers: how many; None: as many as the cluster has CPUs.

    Raises:
        InvalidInputError: Ray is not installed, or cannot be reached.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        allowed = "left out where Ray is not installed (pip install 'dekag[ray]')"
        raise InvalidInputError("ray", allowed, address) from None
    _check_reachable(address)
    try:
        ray.init(
            address=address,
            num_cpus=workers if address == LOCAL else None,
            runtime_env={"env_vars": {plugins.ENVIRONMENT: os.environ.get(plugins.ENVIRONMENT, "")}},
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        allowed = "local, or HOST:PORT of a running cluster; with RAY_AUTH_MODE=token if it asks for a token"
        raise InvalidInputError("ray", allowed, address) from error

    class Worker:
        def __init__(self) -> None:
            plugins.load_from_environment()

        def do(self, task: _Task) -> _Result:
            return work(task)

    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        count = min(workers or cpus, cpus, sum(map(len, groups)))
        if count == 0:
            raise InvalidInputError("ray", "a cluster with free CPUs", address)
        queues = deque(deque(group) for group in groups)
        own: dict[Any, deque[_Task]] = {
            ray.remote(num_cpus=1)(Worker).remote(): deque() for _ in range(count)
        }
        running: dict[Any, tuple[Any, _Task]] = {}

        def give(actor: Any) -> None:
            """The actor's next task: of its own queue, of one that nobody took, or of the longest."""
            if not own[actor]:
                own[actor] = queues.popleft() if queues else max(own.values(), key=len)
            if own[actor]:
                task = own[actor].popleft()
                running[actor.do.remote(task)] = (actor, task)

        for actor in list(own):
            give(actor)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, task = running.pop(done)
            result: _Result | WorkerDied
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                # whoever died takes no more: a new worker goes on with the rest of its queue
                result = WorkerDied(f"the worker died ({type(error).__name__})")
                rest = own.pop(actor)
                actor = ray.remote(num_cpus=1)(Worker).remote()
                own[actor] = rest
            yield task, result
            give(actor)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """InvalidInputError unless something listens there: Ray itself tries for minutes and ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == LOCAL:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError):
        raise InvalidInputError("ray", "local, or HOST:PORT of a running cluster", address) from None
