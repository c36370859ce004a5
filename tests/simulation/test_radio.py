"""The radio map against the formulas of TR 38.901, worked out by hand, and against statistics."""

from __future__ import annotations

import numpy as np
import pytest

from dekag.simulation.city import Radio
from dekag.simulation.radio import (
    CorrelatedFields,
    RadioMap,
    hexagons,
    los_probability,
    path_loss_db,
)

YES, NO = np.array([True]), np.array([False])


def loss(scenario: str, distance_m: float, *, los: bool, carrier_hz: float) -> float:
    return float(path_loss_db(scenario, np.array([distance_m]), YES if los else NO, carrier_hz=carrier_hz)[0])


def test_uma_with_a_line_of_sight() -> None:
    """28 + 22 log10(d) + 20 log10(f): d = hypot(100, 23.5) = 102.72 m, f = 2 GHz."""
    expected = 28 + 22 * np.log10(102.724) + 20 * np.log10(2)
    assert loss("uma", 100, los=True, carrier_hz=2e9) == pytest.approx(expected, abs=1e-3)
    assert loss("uma", 100, los=True, carrier_hz=2e9) == pytest.approx(78.277, abs=2e-3)


def test_uma_beyond_the_break_point() -> None:
    """The break point is 4 * 24 * 0.5 * 2e9 / c = 320.2 m; at 1 km the exponent is 4."""
    expected = 28 + 40 * np.log10(1000.276) + 20 * np.log10(2) - 9 * np.log10(320.22**2 + 23.5**2)
    assert loss("uma", 1000, los=True, carrier_hz=2e9) == pytest.approx(expected, abs=5e-3)
    near, far = (loss("uma", each, los=True, carrier_hz=2e9) for each in (320.2, 320.25))
    assert near == pytest.approx(far, abs=0.05)  # both formulas meet there


def test_uma_and_umi_without_a_line_of_sight() -> None:
    d3 = np.hypot(500, 23.5)
    expected = 13.54 + 39.08 * np.log10(d3) + 20 * np.log10(3.5)
    assert loss("uma", 500, los=False, carrier_hz=3.5e9) == pytest.approx(expected)
    d3 = np.hypot(200, 8.5)
    expected = 22.4 + 35.3 * np.log10(d3) + 21.3 * np.log10(3.5)
    assert loss("umi", 200, los=False, carrier_hz=3.5e9) == pytest.approx(expected)
    assert loss("umi", 50, los=True, carrier_hz=3.5e9) == pytest.approx(
        32.4 + 21 * np.log10(np.hypot(50, 8.5)) + 20 * np.log10(3.5)
    )


@pytest.mark.parametrize("scenario", ["uma", "umi"])
def test_loss_grows_with_distance_and_without_a_line_of_sight(scenario: str) -> None:
    distance = np.linspace(10, 3000, 500)
    with_los = path_loss_db(scenario, distance, np.full(500, True), carrier_hz=3.5e9)
    without = path_loss_db(scenario, distance, np.full(500, False), carrier_hz=3.5e9)
    assert (np.diff(with_los) > 0).all()
    assert (np.diff(without) > 0).all()
    assert (without >= with_los).all()


def test_lines_of_sight_become_rare() -> None:
    """Table 7.4.2-1: certain up to 18 m; UMa at 100 m: 0.18 + exp(-100/63) * 0.82."""
    chance = los_probability("uma", np.array([1.0, 18.0, 100.0]))
    assert chance[:2].tolist() == [1, 1]
    assert chance[2] == pytest.approx(0.18 + np.exp(-100 / 63) * 0.82)
    assert los_probability("umi", np.array([100.0]))[0] == pytest.approx(0.18 + np.exp(-100 / 36) * 0.82)


def test_fields_have_their_variance_and_correlation() -> None:
    fields = CorrelatedFields((100, 120), 10.0, 50.0)
    rng = np.random.default_rng(0)
    drawn = np.array([field for _ in range(60) for field in fields.draw(rng)])
    assert drawn.mean() == pytest.approx(0, abs=0.05)
    assert drawn.var() == pytest.approx(1, rel=0.08)
    apart = (drawn[:, :, 5:] * drawn[:, :, :-5]).mean()  # 50 m
    assert apart == pytest.approx(np.exp(-1), abs=0.05)
    assert (drawn[::2] * drawn[1::2]).mean() == pytest.approx(0, abs=0.03)  # pairs are independent


def test_hexagons_have_their_distance() -> None:
    places = hexagons(19, 500.0)
    between = np.linalg.norm(places[:, None] - places[None], axis=2)
    assert np.sort(between[0])[1:7] == pytest.approx(np.full(6, 500.0))
    assert between[~np.eye(19, dtype=bool)].min() == pytest.approx(500.0)


def test_users_near_a_site_are_served_by_it_and_well() -> None:
    radio = Radio(cells=7)
    radio_map = RadioMap.draw(radio, np.random.default_rng(0))
    cell, near_db = radio_map.at(radio_map.sites)
    assert (cell == np.arange(7)).mean() > 0.8  # a neighbour can be stronger only where there is no sight
    middle = (radio_map.sites[0] + radio_map.sites[1]) / 2
    _, edge_db = radio_map.at(np.array([middle]))
    assert near_db.mean() > edge_db.mean() + 5


def test_interference_costs_snr() -> None:
    quiet, loud = (
        RadioMap.draw(Radio(cells=7, interference=load), np.random.default_rng(1)) for load in (0.0, 1.0)
    )
    assert (loud.snr_db < quiet.snr_db).all()
    assert (loud.cell == quiet.cell).all()
