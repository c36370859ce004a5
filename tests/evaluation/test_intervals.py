"""Intervals stay within what a quantity can be and hold its value, however few or odd the values are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dekag.evaluation.statistics import (
    bootstrap_ci95,
    bootstrap_mean,
    bootstrap_trainings,
    mean_ci95,
    ratio_of_medians,
)
from dekag.evaluation.sweeps.table import metric_plot, table

ROOT = Path(__file__).resolve().parents[2]
SHARES = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.1]), min_size=2, max_size=20)
_COST = st.floats(0, 1e6).map(lambda cost: round(cost, 6))  # a denominator of 5e-324 has no finite ratio
COSTS = st.lists(st.tuples(_COST, _COST | st.just(0.0)), min_size=2, max_size=12)


@given(SHARES)
def test_the_mean_of_shares_is_a_share_and_so_are_its_limits(values: list[float]) -> None:
    mean, interval = mean_ci95(values, (0, 1))
    assert interval is not None
    low, high = interval
    assert 0 <= low <= mean <= high <= 1


def test_one_value_has_no_interval_and_many_have_the_usual_one() -> None:
    assert mean_ci95([0.7]) == (0.7, None)
    values = np.random.default_rng(0).normal(5, 1, 400).tolist()
    mean, interval = mean_ci95(values)
    half = 1.966 * np.std(values, ddof=1) / 20
    assert interval == pytest.approx([mean - half, mean + half], rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_intervals_hold_the_mean_as_often_as_they_say(count: int) -> None:
    draws = np.random.default_rng(0).normal(5, 1, (2000, count)).tolist()
    intervals = [mean_ci95(values)[1] or [0, 0] for values in draws]
    assert np.mean([low <= 5 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_rows_of_a_group_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 20)
    values = (rng.normal(0, 1, 10)[groups] + rng.normal(0, 0.01, 200)).tolist()
    mean, (low, high) = bootstrap_mean(values)
    same, (wide_low, wide_high) = bootstrap_mean(values, groups=groups.tolist())
    assert mean == same
    # twenty rows say hardly more of a group than one does
    assert (wide_high - wide_low) / (high - low) == pytest.approx(20**0.5, rel=0.25)


@given(COSTS)
@settings(max_examples=20, deadline=None)
def test_a_bootstrapped_ratio_of_sums_holds_its_value(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    if sum(theirs) == 0:
        return
    value, (low, high) = bootstrap_ci95(lambda a, b: float(1 - a.sum() / b.sum()), ours, theirs)
    assert math.isfinite(low)
    assert low <= value <= high <= 1


def test_draws_without_a_denominator_are_left_out() -> None:
    value, interval = bootstrap_ci95(lambda a, b: float(a.sum() / b.sum()), [1.0, 1.0], [0.0, 2.0])
    assert value == 1
    assert interval == pytest.approx([0.5, 1.0])
    ratio, (low, high) = ratio_of_medians([0.0, 0.0, 3.0], [1.0, 1.0, 1.0])
    assert low <= ratio <= high


def cell(snr_db: float, values: list[float]) -> dict[str, Any]:
    link = {"fading": "awgn", "snr_db": snr_db, "tau_rms_s": 1e-6}
    from dekag.link.conditions import LinkConditions

    known = {**LinkConditions().model_dump(), **link}
    return {
        "cell": {"delivery": {"name": "unaligned"}, "topic": "world", "link": known, "cbr": 1 / 96},
        "metrics": {"ssim": values},
        "channel_uses": 512,
    }


def test_a_sweep_shows_bands_that_a_metric_can_have() -> None:
    rows = [
        cell(0, [0.99, 1.0, 1.0, 0.2]),  # a normal interval would go above 1
        cell(5, [0.9]),
        cell(10, [math.nan, 0.95, 1.0]),
        cell(15, [math.nan, math.nan]),
    ]
    (band,) = [part for axis in metric_plot(rows, "ssim").axes for part in axis.collections]
    extents = band.get_paths()[0].get_extents()
    assert extents.y0 <= extents.y1 <= 1
    shown = table(rows)
    assert "nan" not in "".join(shown)
    assert "| - |" in shown[-1]


def test_no_committed_figure_is_impossible() -> None:
    figures = json.loads((ROOT / "results" / "headline.json").read_text())
    shares = {"%": 100.0, "share": 1.0}
    gains = {"gka_gain_percent", "overall_gain_percent"}  # over something, which may more than double
    for key, figure in figures.items():
        value = figure["value"]
        assert math.isfinite(value), key
        if figure["ci95"] is not None:
            low, high = figure["ci95"]
            assert low <= value <= high, key
        limits = [value, *(figure["ci95"] or [])]
        if key not in gains and figure["unit"] in shares:
            assert max(limits) <= shares[figure["unit"]], key
        if figure["unit"] in ("ratio", "s", "B", "images", "GiB"):
            assert min(limits) >= 0, key


def test_intervals_over_trainings_hold_what_both_trainings_and_images_vary() -> None:
    images = np.random.default_rng(0).normal(5, 1, 400)
    one, of_one = bootstrap_trainings(images[None])
    _, of_images = bootstrap_mean(images.tolist())
    assert one == pytest.approx(images.mean())
    assert of_one == pytest.approx(of_images, abs=0.02)
    equal, of_equal = bootstrap_trainings(np.stack([images] * 3))
    assert (equal, of_equal) == (pytest.approx(one), pytest.approx(of_one, abs=0.02))
    mean, (low, high) = bootstrap_trainings(np.stack([images - 1, images, images + 1]))
    assert mean == pytest.approx(one)
    assert low < one - 0.8
    assert high > one + 0.8
