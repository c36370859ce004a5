"""The simulation as a whole: nothing is lost, a seed repeats, cost is linear, policies do what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import simpy

from dekag import plugins
from dekag.evaluation.cities.summary import break_even, by_hour, by_topic, summarise
from dekag.simulation import policies, simulator
from dekag.simulation.city import City, Strategy
from dekag.simulation.policies import DemandPolicy
from dekag.simulation.simulator import (
    CACHED_FILE,
    CACHED_LATENT,
    FILE,
    LATENT,
    LOST,
    Result,
    World,
    bound_bytes,
    simulate,
)

Make = Callable[..., City]
STRATEGIES: Sequence[dict[str, Any]] = (
    {"name": "files", "delivery": "files"},
    {"name": "no-cache", "delivery": "files", "file_cache": False},
    {"name": "never", "distil": "distil-never"},
    {"name": "always", "distil": "distil-always"},
    {"name": "push", "distil": {"name": "distil-threshold", "requests": 5}, "fetch": "fetch-push"},
    {"name": "break-even", "distil": "distil-break-even", "fetch": "fetch-break-even"},
    {"name": "untaught", "distil": "distil-never", "untaught": "generate"},
    {"name": "target", "rate": {"name": "rate-target", "psnr_db": 12}, "share": "share-shortest"},
    {"name": "oracle", "distil": "distil-oracle", "fetch": "fetch-oracle"},
)


@pytest.fixture(scope="module")
def world(make_city: Make) -> World:
    return World.draw(make_city(), 0)


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, Result]:
    return {each["name"]: simulate(world, Strategy.model_validate(each)) for each in STRATEGIES}


def test_no_request_and_no_byte_is_lost(results: dict[str, Result], world: World) -> None:
    count = len(world.requests.time_s)
    for result in results.values():
        updates = sum(size for *_, size in result.updates)
        assert result.carried_bytes == pytest.approx(result.backhaul_bytes.sum() + updates)
        assert result.carried_uses == pytest.approx(result.channel_uses.sum())
        assert (result.latency_s > 0).all()
        assert (result.channel_uses > 0).all()
        parts = result.compute_s + result.air_s + result.backhaul_s
        assert result.latency_s == pytest.approx(parts)
        row = summarise(result)
        assert sum(row["paths"].values()) == row["requests"] == count
        hours = by_hour(result)
        for name in ("file_bytes", "update_bytes", "channel_uses"):
            assert sum(hour[name] for hour in hours) == pytest.approx(row[name], abs=0.1 * len(hours))
        # what crosses the backhaul comes from the cloud, once for each file
        crossed = result.backhaul_bytes > 0
        assert result.busy_s["cloud"] == pytest.approx(crossed.sum() * world.table.seconds["cloud.generate"])
        assert (crossed == np.isin(result.path, (FILE, LOST))).mean() > 0.99  # a lost file may be cached


def test_the_same_seed_gives_the_same_result(world: World, make_city: Make) -> None:
    again = World.draw(make_city(), 0)
    other = World.draw(make_city(), 1)
    strategy = Strategy.model_validate(STRATEGIES[5])
    first, second, third = (simulate(each, strategy) for each in (world, again, other))
    for field in fields(Result):
        if isinstance(value := getattr(first, field.name), np.ndarray):
            np.testing.assert_array_equal(value, getattr(second, field.name))
    assert first.updates == second.updates
    assert len(third.latency_s) != len(first.latency_s) or (third.latency_s != first.latency_s).any()


def test_events_are_linear_in_requests(make_city: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    class Counting(simpy.Environment):
        def step(self) -> None:
            nonlocal steps
            steps += 1
            super().step()

    monkeypatch.setattr(simulator.simpy, "Environment", Counting)
    per_request = []
    for requests in (500, 4_000):
        demand = {"users": 50, "requests": requests, "new_topics": 6, "known_topics": 6}
        steps, drawn = 0, World.draw(make_city(demand=demand), 0)
        result = simulate(drawn, Strategy(name="a"))
        per_request.append(steps / len(result.path))
    assert per_request[1] == pytest.approx(per_request[0], rel=0.1)
    assert per_request[1] < 12


def test_a_cache_saves_backhaul_and_nothing_else(results: dict[str, Result]) -> None:
    cached, without = results["files"], results["no-cache"]
    assert cached.backhaul_bytes.sum() < without.backhaul_bytes.sum()
    assert (without.path != CACHED_FILE).all()
    assert cached.channel_uses == pytest.approx(without.channel_uses)


def test_edges_generate_what_they_know(results: dict[str, Result], world: World) -> None:
    known = world.requests.topic < world.city.demand.known_topics
    latent = np.isin(results["never"].path, (LATENT, CACHED_LATENT))
    assert (latent == known).all()
    assert not results["never"].distilled
    assert np.isin(results["untaught"].path, (LATENT, CACHED_LATENT)).all()
    assert results["untaught"].carried_bytes == 0
    assert results["untaught"].consistency.mean() < results["never"].consistency.mean()


def test_updates_are_used_only_once_they_are_there(results: dict[str, Result], world: World) -> None:
    result = results["always"]
    published = {topic: end_s for _, end_s, topic in result.distilled}
    new = np.flatnonzero(world.requests.topic >= world.city.demand.known_topics)
    for index in new.tolist():
        topic = int(world.requests.topic[index]) - world.city.demand.known_topics
        if result.path[index] in (LATENT, CACHED_LATENT):
            assert world.requests.time_s[index] >= published[topic]
    assert len({(topic, edge) for _, edge, topic, _ in result.updates}) == len(result.updates)


def test_distillers_are_a_limited_resource(make_city: Make) -> None:
    city = make_city(cloud={"distillers": 1, "distil_speed": 0.1})  # 1,000 s each
    result = simulate(World.draw(city, 0), Strategy(name="a", distil={"name": "distil-always"}))  # type: ignore[arg-type]
    spans = sorted((start, end) for start, end, _ in result.distilled)
    assert len(spans) == 6
    assert all(end - start == pytest.approx(1_000) for start, end in spans)
    assert all(after[0] >= before[1] - 1e-6 for before, after in itertools.pairwise(spans))


def test_pushed_updates_reach_all_edges(results: dict[str, Result]) -> None:
    edges = {topic: set() for _, _, topic in results["push"].distilled}
    for _, edge, topic, _ in results["push"].updates:
        edges[topic].add(edge)
    assert edges
    assert all(each == {0, 1} for each in edges.values())


def test_no_policy_beats_the_bound(results: dict[str, Result], world: World) -> None:
    for name, result in results.items():
        new = world.requests.topic >= world.city.demand.known_topics
        spent = result.backhaul_bytes[new].sum() + sum(size for *_, size in result.updates)
        if name != "untaught":  # which gives up quality instead
            assert spent >= bound_bytes(world, result.edge) * (1 - 1e-9)
    oracle, always = results["oracle"], results["always"]
    assert oracle.carried_bytes <= min(always.carried_bytes, results["never"].carried_bytes)


def test_break_even_is_counted_by_hand(results: dict[str, Result]) -> None:
    result = results["always"]
    found = break_even(result)
    topics = by_topic(result)
    assert found["pairs"] == len(result.updates)
    assert sum(row["spent_bytes"] for row in topics) == pytest.approx(sum(s for *_, s in result.updates))
    assert 0 <= found["paid"] <= found["pairs"]
    if found["images"] is not None:  # files of 4 or 6 kB, updates of 40 or 60 kB
        assert 40_000 / 6_000 <= found["images"] <= 60_000 / 4_000 + 1


def test_a_target_takes_the_smallest_rate_that_reaches_it(results: dict[str, Result], world: World) -> None:
    """At the lower rate the PSNR is 10 dB + SNR / 2: 12 dB from 4 dB on."""
    result = results["target"]
    latent = np.isin(result.path, (LATENT, CACHED_LATENT))
    assert set(result.channel_uses[latent & (world.snr_db > 4.01)]) <= {256.0}
    assert set(result.channel_uses[latent & (world.snr_db < 3.99)]) <= {2048.0}


def test_files_are_lost_only_where_they_do_not_decode(results: dict[str, Result], world: World) -> None:
    lost = results["no-cache"].path == LOST
    assert (world.snr_db[lost] < 5).all()
    assert np.isnan(results["no-cache"].psnr_db[lost]).all()


def test_a_policy_can_be_a_plug_in(world: World) -> None:
    class Mornings(DemandPolicy):
        name = "distil-mornings"

        def requested(
            self, topic: int, edge: int, now_s: float, file_bytes: float, update_bytes: float
        ) -> bool:
            return now_s > 7_200

    plugins.register(Mornings)
    try:
        strategy = Strategy.model_validate({"name": "a", "distil": "distil-mornings"})
        result = simulate(world, strategy)
        assert result.distilled
        assert min(start for start, *_ in result.distilled) >= 7_200
    finally:
        del policies.POLICIES["distil-mornings"], plugins._plugged_in["policy"]["distil-mornings"]


def test_load_makes_requests_wait(make_city: Make) -> None:
    """With one cloud server and 1 s per image, a city that requests an image per second waits."""
    demand = {"users": 50, "requests": 3_000, "hours": [1] * 24, "fresh_fraction": 1}
    demand |= {"known_topics": 6, "new_topics": 6}
    few, many = (
        simulate(
            World.draw(make_city(days=1 / 24, demand=demand, cloud={"servers": servers}), 0),
            Strategy(name="files", delivery="files"),
        )
        for servers in (1, 16)
    )
    assert np.median(few.latency_s) > 2 * np.median(many.latency_s)
    assert few.carried_bytes == many.carried_bytes
