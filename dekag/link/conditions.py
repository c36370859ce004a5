"""The radio conditions that a transmission asks for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BLOCKS = 8
"""J: groups of channel uses that share one gain (sub-bands of one slot)."""

BANDWIDTH_HZ = 10e6
"""Bandwidth that the J sub-bands divide equally, Hz."""


class LinkConditions(BaseModel):
    """Mean SNR and fading of one transmission.

    Raises:
        pydantic.ValidationError: names the field and what it allows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    snr_db: float = Field(
        default=10.0,
        ge=-20.0,
        le=40.0,
        allow_inf_nan=False,
        description="Mean Es/N0 per complex channel use, dB; -20 to 40.",
    )
    fading: Literal["awgn", "rayleigh"] = Field(
        default="rayleigh",
        description="awgn: every gain is 1. rayleigh: correlated complex Gaussian block gains, mean power 1.",
    )
    tau_rms_s: float = Field(
        default=1e-6,
        ge=0.0,
        le=1e-4,
        allow_inf_nan=False,
        description="RMS delay spread, s; 0 (all blocks fade together) to 1e-4. Without effect on awgn.",
    )

    @property
    def no(self) -> float:
        """Noise power per channel use; signal power and mean fading power are 1."""
        return float(10 ** (-self.snr_db / 10))
