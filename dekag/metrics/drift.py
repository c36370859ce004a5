"""Detects a fall of a running score, by comparing its last values with its first ones."""

from __future__ import annotations

from statistics import fmean
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

RECOVERED = 0.5  # hysteresis: fraction of the threshold to which the fall must shrink to clear the flag


class RunningScore(BaseModel):
    """The first and last values of a score. Immutable; `plus` returns a new one."""

    model_config = ConfigDict(frozen=True)

    samples: int = Field(default=0, ge=0, description="Values so far.")
    first: tuple[float, ...] = Field(default=(), description="The first values.")
    last: tuple[float, ...] = Field(default=(), description="The last values, newest last.")
    drifting: bool = Field(default=False, description="Whether it has fallen and not recovered.")

    @property
    def fresh(self) -> float:
        """Mean of the first values; ValueError as long as there is none."""
        return fmean(self.first)

    @property
    def recent(self) -> float:
        """Mean of the last values; ValueError as long as there is none."""
        return fmean(self.last)

    def plus(self, value: float, *, window: int, fall: float) -> Self:
        """The running score after one more value.

        It drifts when the mean of its last values is more than `fall` below that of its first values, until
        the difference is less than half of that. It is not judged until the two windows are disjoint.

        Args:
            value: the score.
            window: number of first values, and of last values.
            fall: threshold for the fall of the mean, in units of the score.
        """
        # if the window was widened later, new values do not belong to the first ones
        first = (*self.first, value) if len(self.first) == self.samples else self.first
        last = (*self.last, value)[-window:]
        score = self.model_copy(
            update={"samples": self.samples + 1, "first": first[:window], "last": last, "drifting": False}
        )
        if score.samples < 2 * window or len(last) < window:
            return score
        allowed = fall * RECOVERED if self.drifting else fall
        return score.model_copy(update={"drifting": score.recent < score.fresh - allowed})
