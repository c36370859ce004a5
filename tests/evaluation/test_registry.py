"""Figures are recorded with their interval, count and origin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dekag.evaluation.registry import FIGURES, record
from dekag.evaluation.statistics import mean_ci95


def test_interval_of_known_values() -> None:
    mean, interval = mean_ci95([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval is not None
    low, high = interval
    assert mean_ci95([7.0]) == (7.0, None)
    assert mean == 3
    assert high - mean == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=1e-3)  # Student's t, 4 degrees
    assert mean - low == pytest.approx(high - mean)


def test_a_second_run_replaces_its_own_figure_only(tmp_path: Path) -> None:
    record("a", 1.0, "dB", command="one", count=5, results=tmp_path)
    record("b", 2.0, "%", command="two", count=6, ci95=[1.5, 2.5], results=tmp_path)
    record("a", 3.0, "dB", command="one", count=7, results=tmp_path)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["a"]["value"] == 3.0
    assert figures["a"]["n"] == 7
    assert figures["b"]["ci95"] == [1.5, 2.5]
    assert set(figures["a"]) == {"value", "unit", "ci95", "n", "edition", "command", "commit", "date"}


@pytest.mark.parametrize(
    ("key", "bound", "target"),
    [
        ("distill_seconds", "most", 60),
        ("auto_rate_hit_share", "least", 85),
        ("picture_time_ratio", "most", 0.9),
        ("bench_litserve_ratio", "least", 3),
        ("bench_fastapi_ratio", "least", 4),
        ("bench_cached_ratio", "most", 1.15),
        ("bench_channel_ratio", "least", 0.6),
        ("counters_gap_percent", "most", 2),
    ],
)
def test_targets_are_the_strictest_that_were_set(key: str, bound: str, target: float) -> None:
    assert (FIGURES[key].bound, FIGURES[key].target) == (bound, target)
