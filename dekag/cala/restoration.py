"""Which timestep of the denoiser fits a received latent: it follows from the PSNR to expect of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from dekag.errors import MismatchError

MAX_TIMESTEPS = 1000
"""Timesteps of the training of the denoisers that are used."""


@dataclass(frozen=True)
class RestorationTable:
    """Timesteps of the denoiser that remove most of a latent's error, measured on the codec's own errors.

    They are interpolated linearly over the expected PSNR, and constant outside the measured range.

    Example:
        >>> from dekag.cala.restoration import RestorationTable
        >>> RestorationTable(psnrs_db=(16.0, 20.0, 30.0), timesteps=(600, 300, 0)).timestep(18.0)
        450

    Attributes:
        psnrs_db: PSNR of images without restoration, ascending, dB.
        timesteps: the best timestep at each; 0: the latent is better left alone.
    """

    psnrs_db: tuple[float, ...]
    timesteps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.psnrs_db or len(self.psnrs_db) != len(self.timesteps):
            raise MismatchError("the restoration table needs a timestep for each PSNR")
        if any(a >= b for a, b in pairwise(self.psnrs_db)) or not np.isfinite(self.psnrs_db).all():
            raise MismatchError("the PSNRs of the restoration table are not ascending")
        if min(self.timesteps) < 0 or max(self.timesteps) >= MAX_TIMESTEPS:
            raise MismatchError(
                f"the timesteps of the restoration table are not within 0 to {MAX_TIMESTEPS - 1}"
            )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; MismatchError if the content is invalid."""
        try:
            return cls(tuple(map(float, raw["psnrs_db"])), tuple(map(int, raw["timesteps"])))
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError("the restoration table cannot be read") from error

    @classmethod
    def fitted(cls, psnrs_db: Sequence[float], timesteps: Sequence[int]) -> Self:
        """The table of measured pairs in any order: the timestep falls, or stays, as the PSNR rises.

        Neighbours that contradict this are averaged (isotonic regression).
        """
        order = np.argsort(psnrs_db, kind="stable")
        means: list[list[float]] = []  # PSNR, timestep and number of pairs of each level
        for psnr, timestep in ((psnrs_db[i], timesteps[i]) for i in order):
            means.append([psnr, timestep, 1])
            while len(means) > 1 and means[-2][1] < means[-1][1]:
                (p, t, n), (q, u, m) = means[-2:]
                means[-2:] = [[(p * n + q * m) / (n + m), (t * n + u * m) / (n + m), n + m]]
        return cls(tuple(p for p, *_ in means), tuple(round(t) for _, t, _ in means))

    def to_json(self) -> dict[str, Any]:
        """The content for knowledge.json."""
        return asdict(self)

    def timestep(self, psnr_db: float) -> int:
        """The timestep for a latent whose image is expected to have that PSNR, dB."""
        return round(float(np.interp(psnr_db, self.psnrs_db, self.timesteps)))
