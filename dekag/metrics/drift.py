"""Whether a score that comes in again and again has fallen: its last values beside its first ones."""

from __future__ import annotations

from statistics import fmean
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

RECOVERED = 0.5  # of the fall that flags: so far must it have come back up, so that a flag does not flicker


class RunningScore(BaseModel):
    """A score's first and last values. It never changes; `plus` gives the next one."""

    model_config = ConfigDict(frozen=True)

    samples: int = Field(default=0, ge=0, description="Values so far.")
    first: tuple[float, ...] = Field(default=(), description="The first ones, when it was new.")
    last: tuple[float, ...] = Field(default=(), description="The last ones, the newest last.")
    drifting: bool = Field(default=False, description="Whether it has fallen and not come back.")

    @property
    def fresh(self) -> float:
        """Mean of the first values; ValueError as long as there is none."""
        return fmean(self.first)

    @property
    def recent(self) -> float:
        """Mean of the last values; ValueError as long as there is none."""
        return fmean(self.last)

    def plus(self, value: float, *, window: int, fall: float) -> Self:
        """What is known after one more value.

        It starts to drift when the mean of its last values is more than `fall` below that of its first ones,
        and ends when less than half of that is left. Nothing is said before the two have no value in common.

        Args:
            value: the score.
            window: values that are the first ones, and as many the last ones.
            fall: of the mean, in units of the score.
        """
        # after a window was widened, what comes now does not belong to the first ones
        first = (*self.first, value) if len(self.first) == self.samples else self.first
        last = (*self.last, value)[-window:]
        found = self.model_copy(
            update={"samples": self.samples + 1, "first": first[:window], "last": last, "drifting": False}
        )
        if found.samples < 2 * window or len(last) < window:
            return found
        allowed = fall * RECOVERED if self.drifting else fall
        return found.model_copy(update={"drifting": found.recent < found.fresh - allowed})
