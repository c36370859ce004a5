"""Consistency of pictures with the cloud's, and its intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dekag.metrics.features import ImageScorer
from dekag.metrics.probe import AttributeProbe
from dekag.world import Scene

RESAMPLES = 2000


def judged(
    images: npt.NDArray[np.uint8],
    references: npt.NDArray[np.uint8],
    scenes: Sequence[Scene],
    scorer: ImageScorer,
    probe: AttributeProbe,
) -> list[dict[str, float]]:
    """Each picture's scores against its reference, and the share of visible attributes that the probe finds.

    Args:
        images, references: (batch, h, w, 3) uint8.
        scenes: what each picture should show.
        scorer, probe: the judges.

    Returns:
        For each picture "clip", "dino", their mean "consistency", and "probe", a share.
    """
    scores = scorer.scores(images, references)
    verdicts = probe.correct(images, scenes)
    return [
        {
            "clip": round(float(clip), 4),
            "dino": round(float(dino), 4),
            "consistency": round((float(clip) + float(dino)) / 2, 4),
            "probe": round(sum(verdict.values()) / len(verdict), 4),
        }
        for clip, dino, verdict in zip(scores["clip"], scores["dino"], verdicts, strict=True)
    ]


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


def mean_of(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a column."""
    return float(sum(row[name] for row in rows) / len(rows))
