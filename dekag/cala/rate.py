"""Rate control: chooses the smallest rate expected to meet a target, from a calibrated table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dekag.cala.conditions import delay_spread_s, los_power_fraction
from dekag.errors import MismatchError
from dekag.link.conditions import LinkConditions
from dekag.link.mimo import stream_snr_db

CONFIDENCE = 0.8
"""Fraction of images that should meet the target at the chosen rate, if the spread is Gaussian."""

RATE_STEPS = 96
"""Number of candidate rates in the calibrated range."""


@dataclass(frozen=True)
class QualityModel:
    """Mean and spread of the PSNR over rate, SNR and fading, measured with perfect CSI and MMSE.

    It is interpolated linearly over log2 of the rate, dB, the line-of-sight power fraction and log10 of the
    delay spread, and constant outside the grid. A channel is characterised by its line-of-sight power
    fraction and its delay spread, so that the table also covers TDL profiles.

    Attributes:
        cbrs: rates, ascending.
        snrs_db: mean SNRs, ascending, dB.
        directs: line-of-sight power fractions, ascending: 0 is Rayleigh, 1 AWGN.
        taus_s: RMS delay spreads, ascending, above 0, s.
        mean_db: [direct][tau][snr][cbr] mean PSNR over images and fades, dB.
        spread_db: the same shape, standard deviation, dB.
    """

    cbrs: tuple[float, ...]
    snrs_db: tuple[float, ...]
    directs: tuple[float, ...]
    taus_s: tuple[float, ...]
    mean_db: Sequence[Any]
    spread_db: Sequence[Any]

    def __post_init__(self) -> None:
        shape = (len(self.directs), len(self.taus_s), len(self.snrs_db), len(self.cbrs))
        for table in (self.mean_db, self.spread_db):
            values = np.asarray(table, dtype=np.float64)
            if values.shape != shape or not np.isfinite(values).all():
                raise MismatchError("the quality table does not match its grid")
        for axis in (self.cbrs, self.snrs_db, self.directs, self.taus_s):
            if not axis or any(a >= b for a, b in pairwise(axis)):
                raise MismatchError("the grid of the quality table is not ascending")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; MismatchError if the content is invalid."""
        try:
            axes = {name: tuple(map(float, raw[name])) for name in ("cbrs", "snrs_db", "directs", "taus_s")}
            return cls(**axes, mean_db=raw["mean_db"], spread_db=raw["spread_db"])
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError("the quality table cannot be read") from error

    def to_json(self) -> dict[str, Any]:
        """The content for knowledge.json."""
        return asdict(self)

    def expected_psnr_db(self, cbr: float, conditions: LinkConditions) -> float:
        """Mean PSNR, dB, at that rate over the channel as the sender knows it."""
        return float(self._at(self.mean_db, np.array([cbr]), conditions)[0])

    def smallest_cbr(
        self, target_psnr_db: float, conditions: LinkConditions, *, confidence: float = CONFIDENCE
    ) -> float:
        """The smallest rate expected to meet the target with that confidence; the best rate if none does.

        The margin is the spread times the normal quantile of `confidence`: without it, every other image
        would miss the target.

        Args:
            target_psnr_db: requested PSNR, dB.
            conditions: the channel; the sender knows `reported_snr_db`, not `snr_db`.
            confidence: fraction of images that should meet the target, above 0 and below 1.
        """
        rates = np.exp2(np.linspace(math.log2(self.cbrs[0]), math.log2(self.cbrs[-1]), RATE_STEPS))
        reached = self._expected_at_least(rates, conditions, confidence)
        enough = np.nonzero(reached >= target_psnr_db)[0]
        return float(rates[enough[0]] if len(enough) else rates[int(reached.argmax())])

    def promises(
        self, target_psnr_db: float, cbr: float, conditions: LinkConditions, *, confidence: float = CONFIDENCE
    ) -> bool:
        """Whether that rate is expected to meet the target with that confidence."""
        return bool(self._expected_at_least(np.array([cbr]), conditions, confidence)[0] >= target_psnr_db)

    def _expected_at_least(
        self, cbrs: npt.NDArray[np.float64], conditions: LinkConditions, confidence: float
    ) -> npt.NDArray[np.float64]:
        """PSNR, dB, that a fraction `confidence` of images should reach at each rate."""
        margin = NormalDist().inv_cdf(confidence)
        spread: npt.NDArray[np.float64] = self._at(self.spread_db, cbrs, conditions)
        return self._at(self.mean_db, cbrs, conditions) - margin * spread

    def _at(
        self, table: Sequence[Any], cbrs: npt.NDArray[np.float64], conditions: LinkConditions
    ) -> npt.NDArray[np.float64]:
        """The table interpolated at each rate."""
        values = np.asarray(table, dtype=np.float64)
        values = _along(values, self.directs, los_power_fraction(conditions))
        tau_s = max(delay_spread_s(conditions), self.taus_s[0])
        values = _along(values, [math.log10(tau) for tau in self.taus_s], math.log10(tau_s))
        values = _along(values, self.snrs_db, stream_snr_db(conditions.sender_snr_db, conditions))
        return np.interp(np.log2(cbrs), np.log2(self.cbrs), values)


def _along(values: npt.NDArray[np.float64], points: Sequence[float], place: float) -> npt.NDArray[np.float64]:
    """Linear interpolation over the first axis, constant outside its range."""
    position = float(np.interp(place, points, np.arange(len(points))))
    low = min(int(position), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    result: npt.NDArray[np.float64] = values[low] + (position - low) * (values[high] - values[low])
    return result
