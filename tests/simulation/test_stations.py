"""Queues and shared cells against queueing theory, and storage against its rules."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import simpy

from dekag.simulation.policies import (
    CachePolicy,
    KeepFrequent,
    KeepRecent,
    SchedulingPolicy,
    ShareFair,
    ShareFirst,
    ShareShortest,
)
from dekag.simulation.stations import Cell, Station, Storage

JOBS = 40_000
LOAD = 0.6


def times_in_system(
    enter: Callable[[simpy.Environment, float], Any], services_s: np.ndarray[Any, Any], seed: int = 0
) -> np.ndarray[Any, Any]:
    """Times of jobs that arrive as a Poisson process of rate 1/s; `enter` yields until a job is done."""
    env = simpy.Environment()
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0, len(services_s)))
    times = np.zeros(len(services_s))

    def job(index: int) -> Generator[simpy.Event, Any, None]:
        start = env.now
        yield enter(env, float(services_s[index]))
        times[index] = env.now - start

    def source() -> Generator[simpy.Event, Any, None]:
        for index, time_s in enumerate(arrivals.tolist()):
            yield env.timeout(time_s - env.now)
            env.process(job(index))

    env.process(source())
    env.run()
    return times


def station(servers: int) -> Callable[[simpy.Environment, float], simpy.Event]:
    made: list[Station] = []

    def enter(env: simpy.Environment, service_s: float) -> simpy.Event:
        if not made:
            made.append(Station(env, servers))
        return env.timeout(made[0].delay(service_s))

    return enter


def cell(policy: SchedulingPolicy) -> Callable[[simpy.Environment, float], simpy.Event]:
    made: list[Cell] = []

    def enter(env: simpy.Environment, service_s: float) -> simpy.Event:
        if not made:
            made.append(Cell(env, 1_000.0, 0.0, policy))
        return made[0].send(1_000.0 * service_s, 10.0)

    return enter


def exponential(mean_s: float) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).exponential(mean_s, JOBS)


def test_one_server_is_m_m_1() -> None:
    """Mean time in the system: 1 / (mu - lambda)."""
    times = times_in_system(station(1), exponential(LOAD))
    assert times.mean() == pytest.approx(1 / (1 / LOAD - 1), rel=0.06)


def test_one_server_with_fixed_times_is_m_d_1() -> None:
    """Pollaczek and Khinchine: waiting is half of that of M/M/1."""
    times = times_in_system(station(1), np.full(JOBS, LOAD))
    assert times.mean() - LOAD == pytest.approx(LOAD * LOAD / (2 * (1 - LOAD)), rel=0.06)


def test_several_servers_are_m_m_c() -> None:
    """Erlang's C formula for three servers at a load of 0.6 each."""
    mean_s, servers = 3 * LOAD, 3
    offered = mean_s
    last = offered**servers / 6 / (1 - offered / servers)
    waits = last / (1 + offered + offered**2 / 2 + last)
    expected = mean_s + waits / (servers / mean_s - 1)
    assert times_in_system(station(servers), exponential(mean_s)).mean() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("services", ["exponential", "fixed"])
def test_a_fairly_shared_cell_is_processor_sharing(services: str) -> None:
    """M/G/1 processor sharing: the mean time depends on the mean service alone, 1 / (mu - lambda)."""
    drawn = exponential(LOAD) if services == "exponential" else np.full(JOBS, LOAD)
    times = times_in_system(cell(ShareFair()), drawn)
    assert times.mean() == pytest.approx(1 / (1 / LOAD - 1), rel=0.06)


def test_a_cell_that_serves_in_order_is_a_queue() -> None:
    drawn = exponential(LOAD)[:5_000]
    in_order = times_in_system(cell(ShareFirst()), drawn)
    assert in_order == pytest.approx(times_in_system(station(1), drawn), abs=1e-6)


def test_the_shortest_first_is_fastest_on_average() -> None:
    drawn = exponential(LOAD)[:10_000]
    means = [
        times_in_system(cell(policy), drawn).mean() for policy in (ShareShortest(), ShareFair(), ShareFirst())
    ]
    assert means[0] < 0.9 * min(means[1:])


def test_a_cell_carries_what_it_is_given() -> None:
    env = simpy.Environment()
    shared = Cell(env, 100.0, 0.0, ShareFair())
    ends: dict[str, float] = {}

    def send(name: str, start_s: float, uses: float) -> Generator[simpy.Event, Any, None]:
        yield env.timeout(start_s)
        yield shared.send(uses, 0.0)
        ends[name] = env.now

    env.process(send("long", 0, 200))
    env.process(send("short", 1, 50))
    env.run()
    # alone for 1 s (100 uses), then halves: the short one ends at 2 s, the long one has 50 left
    assert ends == {"short": pytest.approx(2.0), "long": pytest.approx(2.5)}
    assert shared.sent_uses == 250


def test_a_transmission_ends_with_its_slot() -> None:
    env = simpy.Environment()
    shared = Cell(env, 1_000.0, 0.01, ShareFair())

    def send() -> Generator[simpy.Event, Any, float]:
        yield shared.send(25, 0.0)
        return float(env.now + shared.until_slot())

    assert env.run(env.process(send())) == pytest.approx(0.03)


@pytest.mark.parametrize(("policy", "dropped"), [(KeepRecent(), "often"), (KeepFrequent(), "new")])
def test_a_full_storage_drops_by_its_policy(policy: CachePolicy, dropped: str) -> None:
    storage = Storage(200.0, policy)
    storage.add("often", 100.0, 0)
    for now_s in (1, 2):
        assert storage.use("often", now_s)
    storage.add("new", 100.0, 3)
    storage.add("newest", 100.0, 4)
    assert dropped not in storage
    assert "newest" in storage
    assert (storage.used, storage.dropped) == (200, 1)


def test_a_storage_never_exceeds_its_capacity() -> None:
    rng = np.random.default_rng(0)
    storage = Storage(1_000.0, KeepRecent())
    kept: dict[int, float] = {}
    for now_s in range(5_000):
        key = int(rng.integers(100))
        if not storage.use(key, now_s):
            storage.add(key, kept.setdefault(key, float(rng.uniform(1, 400))), now_s)
        assert storage.used <= 1_000
        assert storage.used == pytest.approx(sum(size for each, size in kept.items() if each in storage))
    storage.add("giant", 2_000.0, 5_000)
    assert "giant" not in storage
