"""Means and 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from scipy.stats import t as student_t

RESAMPLES = 2000
POSITIVE = (0.0, math.inf)
"""What times, bytes and their ratios can be."""
PERCENT = (0.0, 100.0)


def mean_ci95(
    values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, list[float] | None]:
    """Mean of independent `values` and its 95 % confidence interval, Student's t.

    There is none of fewer than two values, which tell nothing of it.

    Args:
        values: at least one.
        within: what the quantity can be, such as 0 to 1; the interval goes no further.

    Example:
        >>> from dekag.evaluation.statistics import mean_ci95
        >>> mean, (low, high) = mean_ci95([2.0, 4.0])
        >>> mean, round(low, 2), round(high, 2)
        (3.0, -9.71, 15.71)
    """
    count = len(values)
    mean = min(max(math.fsum(values) / count, min(values)), max(values))  # whatever rounding does
    if count < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(student_t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
    return mean, [max(mean - half, within[0]), min(mean + half, within[1])]


def bootstrap_ci95(
    statistic: Callable[..., float],
    *columns: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, list[float]]:
    """`statistic` of paired columns (n,) and its 95 % interval over resampled rows (percentile bootstrap).

    The interval holds the value. Draws of which the statistic is not finite, as of a ratio whose denominator
    is 0, are left out.

    Args:
        statistic: of the columns.
        columns: numbers of each row.
        groups: of each row, in place of which groups are resampled: rows of a group, such as the requests
            for one image or the prompts of one topic, are not independent of each other.
        seed: of the resampling.
    """
    table = np.asarray(columns, dtype=float)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(range(table.shape[1]) if groups is None else groups):
        members.setdefault(group, []).append(row)
    rows = [np.array(each) for each in members.values()]
    rng = np.random.default_rng(seed)

    def resampled() -> npt.NDArray[np.int64]:
        drawn = rng.integers(len(rows), size=len(rows))
        return drawn if groups is None else np.concatenate([rows[each] for each in drawn])

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(statistic(*table))
        draws = np.array([statistic(*table[:, resampled()]) for _ in range(RESAMPLES)])
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (value, value)
    return value, [min(float(low), value), max(float(high), value)]


def bootstrap_mean(
    values: Sequence[float], groups: Sequence[Hashable] | None = None
) -> tuple[float, list[float]]:
    """Mean and its bootstrapped 95 % interval, over resampled `groups` of values if they are given."""
    return bootstrap_ci95(lambda each: float(each.mean()), values, groups=groups)


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
