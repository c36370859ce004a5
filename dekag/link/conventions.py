"""Conventions of other projects' channels, by name, so that their curves can be met on their own terms.

Papers agree on "SNR" and "Rayleigh" less than it seems. Three differences move a curve by decibels:

* *Power*: here every image is sent with mean power 1. Some normalise the mean power of a whole batch, so that
  an image with large features is sent with more power than its neighbours, at the same nominal SNR.
* *SNR*: here Es/N0 per complex channel use. Where it is the power of a complex symbol over the noise variance
  of one real dimension, the same number means an Es/N0 that is 3.01 dB lower.
* *Rayleigh*: here complex gains, equalised with what the receiver knows of them. A real gain, the magnitude
  |h| of each symbol drawn anew ("rayleigh-magnitude"), leaves the phase intact: a receiver without any
  channel state information still decides QPSK as well as one that knows the gains.

`Convention.transmit` sends symbols as such a project does; the `Reception` is in this project's terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dekag.errors import InvalidInputError
from dekag.link.channel import Reception, transmit
from dekag.link.conditions import Csi, LinkConditions

REAL_DIMENSION_DB = 10 * math.log10(2)
"""By how much an SNR per real dimension exceeds Es/N0 of the same channel, dB."""


@dataclass(frozen=True)
class Convention:
    """How a project normalises power, counts SNR and fades.

    Attributes:
        name: its name in CONVENTIONS.
        power: over what the mean power is 1: each image, or all images of a batch together.
        snr: what its SNR is: Es/N0 per complex channel use, or the power of a complex symbol over the noise
            variance of one real dimension.
        rayleigh: the kind of fading that it calls Rayleigh.
        csi: what its receiver knows of the gains.
        seen_in: where it is used.
    """

    name: str
    power: Literal["image", "batch"]
    snr: Literal["channel-use", "real-dimension"]
    rayleigh: Literal["rayleigh", "rayleigh-magnitude"]
    csi: Csi
    seen_in: str

    def es_n0_db(self, snr_db: float) -> float:
        """Es/N0 per complex channel use, dB, for an SNR of this convention, dB."""
        return snr_db - REAL_DIMENSION_DB if self.snr == "real-dimension" else snr_db

    def conditions(self, snr_db: float, *, fading: Literal["awgn", "rayleigh"] = "awgn") -> LinkConditions:
        """The link's conditions at an SNR of this convention, dB.

        Example:
            >>> from dekag.link.conventions import CONVENTIONS
            >>> CONVENTIONS["swinjscc"].conditions(10, fading="rayleigh").fading
            'rayleigh-magnitude'

        Raises:
            pydantic.ValidationError: the SNR is out of range.
        """
        kind = "awgn" if fading == "awgn" else self.rayleigh
        return LinkConditions(snr_db=self.es_n0_db(snr_db), fading=kind, csi=self.csi)

    def normalised(self, symbols: torch.Tensor) -> torch.Tensor:
        """Symbols (B, K) complex64 scaled to mean power 1, of each image or of all together.

        Raises:
            InvalidInputError: the symbols have another shape, or no power.
        """
        if symbols.ndim != 2 or not symbols.is_complex():
            raise InvalidInputError("symbols", "(B, K) complex", f"{tuple(symbols.shape)} {symbols.dtype}")
        over = (0, 1) if self.power == "batch" else (1,)
        power = symbols.abs().square().mean(dim=over, keepdim=True)
        if not (torch.isfinite(power) & (power > 0)).all():
            raise InvalidInputError("symbols", "symbols of finite power above 0", "others")
        return symbols / power.sqrt()

    def transmit(
        self,
        symbols: torch.Tensor,
        snr_db: float,
        seeds: Sequence[int],
        *,
        fading: Literal["awgn", "rayleigh"] = "awgn",
    ) -> Reception:
        """Normalise a batch and send it.

        Example:
            >>> import torch
            >>> from dekag.link.conventions import CONVENTIONS
            >>> batch = torch.randn(2, 512, dtype=torch.complex64)
            >>> CONVENTIONS["swinjscc"].transmit(batch, 10, seeds=[1, 2], fading="rayleigh").symbols.shape
            torch.Size([2, 512])

        Args:
            symbols: (B, K) complex64, of any power.
            snr_db: SNR of this convention, dB.
            seeds: of each image's fading and noise.
            fading: none, or what this convention calls Rayleigh.

        Raises:
            InvalidInputError: names the argument that has another shape or range.
        """
        known = self.conditions(snr_db, fading=fading)
        return transmit(self.normalised(symbols), [known] * len(symbols), seeds)


CONVENTIONS: dict[str, Convention] = {
    each.name: each
    for each in (
        Convention("dekag", "image", "channel-use", "rayleigh", "perfect", "this project"),
        Convention(
            "swinjscc", "batch", "channel-use", "rayleigh-magnitude", "none",
            "the channel class that public code of WITT and SwinJSCC shares",
        ),
        Convention(
            "real-dimension", "image", "real-dimension", "rayleigh", "perfect",
            "code that adds noise of variance 1/SNR to the real and to the imaginary part",
        ),
    )
}  # fmt: skip
"""By name."""
