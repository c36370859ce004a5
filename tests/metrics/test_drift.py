"""When a score is said to have fallen, with scores made up and with those that were measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from dekag.metrics.drift import RunningScore
from dekag.stickers import TOPICS
from services.cloud.settings import CloudSettings
from services.gateway.settings import GatewaySettings


def after(values: Iterable[float], start: RunningScore | None = None, window: int = 3) -> RunningScore:
    found = start or RunningScore()
    for value in values:
        found = found.plus(value, window=window, fall=0.2)
    return found


def test_the_means_are_those_of_the_first_and_of_the_last() -> None:
    one = after([0.5])
    assert (one.samples, one.fresh, one.recent, one.drifting) == (1, 0.5, 0.5, False)
    found = after([0.9, 0.8, 0.7, 0.1, 0.6, 0.7, 0.8])
    assert found.samples == 7
    assert found.fresh == pytest.approx(0.8)
    assert found.recent == pytest.approx(0.7)
    assert RunningScore.model_validate_json(found.model_dump_json()) == found


def test_nothing_is_said_before_first_and_last_have_nothing_in_common() -> None:
    found = after([0.9, 0.9, 0.9, 0.0, 0.0])
    assert not found.drifting
    assert after([0.0], found).drifting


def test_flag_is_set_after_the_full_fall_and_cleared_at_half() -> None:
    fresh = after([0.9] * 6)
    assert not after([0.71] * 3, fresh).drifting
    fallen = after([0.69] * 3, fresh)
    assert fallen.drifting
    assert after([0.79] * 3, fallen).drifting
    assert not after([0.81] * 3, fallen).drifting
    assert not after([0.71] * 3, after([0.81] * 3, fallen)).drifting


def test_baseline_survives_another_window() -> None:
    found = after([0.9] * 3 + [0.8] * 9)
    wider = after([0.4], found, window=5)
    assert wider.first == (0.9,) * 3
    assert not wider.drifting, "too few of the last ones were kept"
    assert after([0.4], wider, window=5).drifting
    assert after([0.8], found, window=2).first == (0.9,) * 2


def measured() -> dict[str, list[float]]:
    """Consistency of the pictures of `dekag experiment overall` that the gateway would have compared."""
    enough = GatewaySettings.model_fields["watch_min_psnr_db"].default
    found = defaultdict(list)
    for row in map(json.loads, Path("results/overall/cells.jsonl").read_text().splitlines()):
        if row["cell"]["delivery"]["name"] == "deka-g":
            scores = row["metrics"]
            found[row["cell"]["topic"]] += [
                consistency
                for psnr_db, consistency in zip(scores["psnr_db"], scores["consistency"], strict=True)
                if psnr_db >= enough
            ]
    return found


def test_the_defaults_tell_a_fall_from_chance() -> None:
    fields = CloudSettings.model_fields
    window, fall = fields["drift_window"].default, fields["drift_fall"].default
    rng, topics = np.random.default_rng(0), measured()
    assert len(topics) == len(TOPICS)
    for scores in topics.values():
        for _ in range(5):
            found = RunningScore()
            for value in rng.choice(scores, 500):
                found = found.plus(value, window=window, fall=fall)
                assert not found.drifting
            for value in rng.choice(scores, window) - 2 * fall:
                found = found.plus(value, window=window, fall=fall)
            assert found.drifting
