"""Distances of sets of features, and metrics beside independent implementations."""

from __future__ import annotations

import numpy as np
import pytest

from dekag.errors import InvalidInputError, NotFoundError
from dekag.evaluation.studies.metrics import CHECKS, TOLERANCE, Check
from dekag.metrics.image import METRICS
from dekag.metrics.sets import frechet_distance, kernel_distance


@pytest.mark.parametrize(
    "check",
    [check for check in CHECKS if check.measure],
    ids=lambda check: f"{check.metric}, {check.reference}",
)
def test_a_metric_equals_its_reference(check: Check) -> None:
    for module in ("skimage", "pytorch_msssim"):
        pytest.importorskip(module)
    assert check.measure is not None
    ours, theirs = check.measure()
    assert np.ptp(ours) > 0 or len(ours) == 1, "the inputs differ"
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_equal_sets_have_no_distance_and_a_shift_is_its_square() -> None:
    features = np.random.default_rng(0).normal(size=(200, 5))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features + 2, features) == pytest.approx(20)
    other = np.random.default_rng(1).normal(size=(200, 5))
    assert abs(kernel_distance(features, other)) < 0.2 < kernel_distance(features + 2, other)


@pytest.mark.parametrize("shapes", [((1, 4), (9, 4)), ((9, 4), (9, 5)), ((9,), (9, 4))])
def test_sets_of_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(InvalidInputError, match="features"):
            distance(*map(np.zeros, shapes))


def test_pictures_too_small_for_a_metric_are_refused() -> None:
    for name, side in (("ssim", 10), ("ms_ssim", 87)):
        small = np.zeros((1, side, 200, 3), np.uint8)
        with pytest.raises(InvalidInputError, match="pixels a side"):
            METRICS[name].score(small, small)
    four = np.full((1, 88, 100, 3), 9, np.uint8)
    assert METRICS["ms_ssim"].score(four, four) == pytest.approx([1])


def test_perceptual_metrics_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from dekag.metrics.perceptual import Dists, Lpips

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    images = np.zeros((1, 64, 64, 3), np.uint8)
    for metric in (Lpips(), Dists()):
        with pytest.raises(NotFoundError, match=r"dekag\[perceptual\]"):
            metric.score(images, images)
