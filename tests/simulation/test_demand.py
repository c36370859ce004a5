"""Demand: what is drawn has the rates, popularities and places that the city asks for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dekag.simulation.city import City, Demand
from dekag.simulation.demand import draw_places, draw_requests, hourly_rates, popularity

Make = Callable[..., City]
BUSY = {"users": 100, "requests": 40_000, "known_topics": 10, "new_topics": 20}


def test_requests_follow_the_daily_curve(make_city: Make) -> None:
    hours = [0] * 6 + [1] * 12 + [3] * 6
    city = make_city(days=2, demand={**BUSY, "hours": hours})
    requests = draw_requests(city, np.random.default_rng(0))
    assert len(requests.time_s) == pytest.approx(40_000, abs=4 * 200)  # Poisson: deviation 200
    assert (np.diff(requests.time_s) >= 0).all()
    by_hour = np.bincount((requests.time_s / 3600).astype(int) % 24, minlength=24)
    assert by_hour[:6].sum() == 0
    assert by_hour[18:].mean() / by_hour[6:18].mean() == pytest.approx(3, rel=0.05)


def test_arrivals_are_poisson(make_city: Make) -> None:
    """With a flat curve, gaps are exponential: their deviation equals their mean."""
    city = make_city(days=1, demand={**BUSY, "hours": [1] * 24})
    gaps = np.diff(draw_requests(city, np.random.default_rng(0)).time_s)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)


def test_a_partial_hour_gets_its_part() -> None:
    rates = hourly_rates(Demand(hours=[1] * 24), 1.5 * 3600)
    assert rates.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert hourly_rates(Demand(hours=[0] * 23 + [1]), 3600.0).tolist() == [1.0]  # no rate at all: even


def test_known_topics_are_zipf(make_city: Make) -> None:
    city = make_city(demand={**BUSY, "zipf": 1.0})
    topic = draw_requests(city, np.random.default_rng(0)).topic
    counts = np.bincount(topic[topic < 10], minlength=10)
    assert counts[0] / counts[4] == pytest.approx(5, rel=0.1)
    assert (topic >= 10).mean() == pytest.approx(0.5, abs=0.02)
    assert topic.max() < 30


def test_new_topics_rise_and_fall() -> None:
    assert popularity(np.array([-1.0, 0.0]), 0.5).tolist() == [0, 0]
    assert popularity(np.array([0.5]), 0.5)[0] == pytest.approx(1)
    rising, falling = popularity(np.array([0.25, 1.5]), 0.5)
    assert 0 < falling < rising < 1


def test_fresh_images_are_requested_once(make_city: Make) -> None:
    city = make_city(demand={**BUSY, "fresh_fraction": 0.7, "popular_images": 5})
    image = draw_requests(city, np.random.default_rng(0)).image
    _, counts = np.unique(image[image >= 30 * 5], return_counts=True)
    assert counts.max() == 1
    assert len(counts) / len(image) == pytest.approx(0.7, abs=0.02)


def test_users_stay_in_the_city_and_move_no_faster_than_they_can(make_city: Make) -> None:
    mobility = {"walking_fraction": 0, "driving_m_s": 10, "stay_hours": 0.2}
    city = make_city(demand={**BUSY, "users": 20}, mobility=mobility)
    rng = np.random.default_rng(0)
    requests = draw_requests(city, rng)
    low, high = np.array([0.0, 0.0]), np.array([3_000.0, 2_000.0])
    places = draw_places(city.mobility, 20, city.duration_s, low, high, requests, rng)
    assert (places >= low).all()
    assert (places <= high).all()
    moved = 0
    for user in range(20):
        own = requests.user == user
        steps = np.linalg.norm(np.diff(places[own], axis=0), axis=1)
        assert (steps <= 10 * np.diff(requests.time_s[own]) + 1e-6).all()
        moved += int((steps > 0).sum())
    assert moved > 1_000
