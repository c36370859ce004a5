"""The small city that runs on real services and is simulated: both get the same requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from dekag import plugins
from dekag.simulation import policies
from dekag.simulation.simulator import CACHED_FILE, FILE, LATENT, World, simulate
from services.bench.agreement import (
    KNOWN_TOPICS,
    SITES,
    Calibration,
    Images,
    Published,
    calibrated,
    settings_of,
    simulated_rows,
    small_city,
)
from services.channel.settings import ChannelSettings
from services.edge.settings import EdgeSettings

NAMES = ("crown", "neon", "rocket", "snail")


@pytest.fixture
def world() -> Iterator[World]:
    drawn = World.draw(small_city(120, 1.0, len(NAMES)), 0)
    sizes = dict.fromkeys(drawn.requests.image.tolist(), 1_000)
    measured = Calibration({**drawn.table.seconds, "distil": 0.0}, sizes, request_bytes=200.0)
    yield replace(calibrated(drawn, measured, {}), update_bytes=np.full(len(NAMES), 50_000.0))
    del policies.POLICIES[Published.name], plugins._plugged_in["policy"][Published.name]


def test_what_has_an_update_is_semantic_and_what_has_none_a_file(world: World) -> None:
    images, requests = Images.of(NAMES), world.requests
    result = simulate(world, world.city.strategies[0])
    for number, (topic, image) in enumerate(
        zip(requests.topic.tolist(), requests.image.tolist(), strict=True)
    ):
        body = images.body(topic, image, 10.0)
        conventional = result.path[number] in (FILE, CACHED_FILE)
        assert conventional == (body["delivery"] == "conventional")
    assert {FILE, LATENT} <= set(result.path.tolist())
    assert set(result.edge.tolist()) == set(range(SITES))


def test_equal_images_are_equal_requests(world: World) -> None:
    images, requests = Images.of(NAMES), world.requests
    asked = [
        images.body(*each, 10.0)
        for each in zip(requests.topic.tolist(), requests.image.tolist(), strict=True)
    ]
    pairs = {(body["prompt"], body["seed"]) for body in asked}
    assert len(pairs) == len(set(requests.image.tolist()))
    assert all(
        "neon" in body["prompt"]
        for body, topic in zip(asked, requests.topic.tolist(), strict=True)
        if topic == KNOWN_TOPICS + NAMES.index("neon")
    )


def test_updates_count_once_for_each_edge_that_needs_them(world: World) -> None:
    result = simulate(world, world.city.strategies[0])
    rows = simulated_rows(result)
    files = sum(row["path"] == "file" for row in rows)
    taught = {
        (edge, topic)
        for edge, topic in zip(result.edge.tolist(), world.requests.topic.tolist(), strict=True)
        if KNOWN_TOPICS <= topic < KNOWN_TOPICS + len(NAMES) // 2
    }
    assert files
    assert taught
    assert sum(row["backhaul_bytes"] for row in rows) == 1_200 * files + 50_000 * len(taught)


def test_the_services_get_the_citys_air_and_backhaul(world: World) -> None:
    env = settings_of(world.city)
    edge, channel = EdgeSettings.read(env), ChannelSettings.read(env)
    assert edge.backhaul() == world.city.backhaul.hop
    assert edge.generate_batch == world.city.edges.servers == 1
    assert channel.air().bandwidth_hz == world.city.radio.bandwidth_hz
    assert channel.air().uses_per_s == pytest.approx(800_000)
