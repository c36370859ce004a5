"""A metric of one's own: how well outlines are kept. Link reports have it among their `scores`.

dekag --plugin examples/my_metric.py:Outlines up
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dekag.metrics import Metric


class Outlines(Metric):
    """Correlation of the steps in brightness between neighbouring pixels, -1 to 1."""

    name = "outlines"

    def score(
        self, images: npt.NDArray[np.uint8], references: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float64]:
        """(n,) of pictures (n, height, width, 3); nan where nothing has an outline."""
        ours, theirs = (
            np.diff(each.mean(axis=3), axis=2).reshape(len(each), -1) for each in (images, references)
        )
        with np.errstate(invalid="ignore"):
            return (ours * theirs).sum(1) / np.sqrt((ours**2).sum(1) * (theirs**2).sum(1))
