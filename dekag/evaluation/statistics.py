"""Means and 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

RESAMPLES = 2000


def mean_ci95(values: Sequence[float]) -> tuple[float, list[float] | None]:
    """Mean of independent `values` and its 95 % confidence interval (normal approximation).

    The interval goes no further than the values do, so that it stays within what the quantity can be: a share
    never comes out above 1, a time never below 0. None of fewer than two values, which tell nothing of it.
    """
    count = len(values)
    mean = min(max(math.fsum(values) / count, min(values)), max(values))  # whatever rounding does
    if count < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = 1.96 * math.sqrt(variance / count)
    return mean, [max(mean - half, min(values)), min(mean + half, max(values))]


def bootstrap_ci95(
    statistic: Callable[..., float], *columns: Sequence[float], seed: int = 0
) -> tuple[float, list[float]]:
    """`statistic` of paired columns (n,) and its 95 % interval over resampled rows (percentile bootstrap).

    The interval holds the value. Draws of which the statistic is not finite, as of a ratio whose denominator
    is 0, are left out.
    """
    table = np.asarray(columns, dtype=float)
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value, count = float(statistic(*table)), table.shape[1]
        draws = np.array([statistic(*table[:, rng.integers(count, size=count)]) for _ in range(RESAMPLES)])
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    return value, [min(float(low), value), max(float(high), value)]


def bootstrap_mean(values: Sequence[float]) -> tuple[float, list[float]]:
    """Mean and its bootstrapped 95 % interval."""
    return bootstrap_ci95(lambda each: float(each.mean()), values)


def bootstrap_trainings(values: npt.NDArray[np.float64]) -> tuple[float, list[float]]:
    """Mean of values (trainings, n) and its 95 % interval over resampled trainings and resampled columns.

    All trainings share the columns, such as images, so both are resampled independently of each other. With
    one training it is `bootstrap_mean`. The interval holds the mean.
    """
    trainings, count = values.shape
    rng = np.random.default_rng(0)
    rows = rng.integers(trainings, size=(RESAMPLES, trainings, 1))
    columns = rng.integers(count, size=(RESAMPLES, 1, count))
    draws = values[rows, columns].mean(axis=(1, 2))
    mean, (low, high) = float(values.mean()), np.percentile(draws, [2.5, 97.5])
    return mean, [min(float(low), mean), max(float(high), mean)]


def proportion_ci95(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion, Wilson's: `right` of `count` -> its ends, 0..1.

    Example:
        >>> from dekag.evaluation.statistics import proportion_ci95
        >>> [round(end, 3) for end in proportion_ci95(57, 60)]
        [0.863, 0.983]
    """
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def percent_gain(before: Any, after: Any) -> float:
    """Gain of the mean of arrays, percent."""
    return float(100 * (after.mean() / before.mean() - 1))


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, list[float]]:
    """Ratio of the medians of paired times, and its 95 % interval over resampled pairs."""
    return bootstrap_ci95(lambda a, b: float(np.median(a) / np.median(b)), ours, theirs)


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean of a column."""
    return float(sum(row[name] for row in rows) / len(rows))
