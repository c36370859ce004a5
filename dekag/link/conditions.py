"""The typed description of a radio channel, shared by library, proto, REST and command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dekag import plugins
from dekag.errors import InvalidInputError

BLOCKS = 8
"""J: groups of channel uses that share one gain (sub-bands of one slot)."""

BUILT_IN_TRACES = Path(__file__).with_name("traces")
"""Folder of the traces that come with this package."""

BANDWIDTH_HZ = 10e6
"""Bandwidth that the J sub-bands divide equally, Hz."""

Fading = Literal["awgn", "rayleigh", "rician", "tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e", "trace"]
Csi = Literal["perfect", "pilots", "none"]
EqualizerKind = Literal["mmse", "zf"]


def _known_fading(name: str) -> str:
    try:
        plugins.get("channel", name)
    except InvalidInputError as error:
        raise PydanticCustomError("fading", "must be {allowed}", {"allowed": error.allowed}) from None
    return name


def _list_fadings(schema: dict[str, Any]) -> None:
    schema["enum"] = plugins.names("channel")


FadingName = Annotated[str, AfterValidator(_known_fading), Field(json_schema_extra=_list_fadings)]
"""A kind of fading that this process knows: one of `Fading` or a plug-in (`dekag.plugins`)."""


class LinkConditions(BaseModel):
    """Mean SNR and fading of one transmission, and what its two ends know and do about them.

    A field that the fading in question does not use has no effect on it; only `trace` is refused there, as it
    would be a sign that another fading was meant.

    Example:
        >>> from dekag import LinkConditions
        >>> conditions = LinkConditions(snr_db=5, fading="rician", rician_k_db=3, csi="pilots")
        >>> conditions.model_copy(update={"reported_snr_db": 12.0}).sender_snr_db
        12.0

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
        examples=[10.0],
    )
    fading: FadingName = Field(
        default="rayleigh",
        description="awgn: every gain is 1. rayleigh: correlated complex Gaussian block gains. rician: the "
        "same beside a direct path. tdl-a to tdl-e: the tapped delay lines of 3GPP TR 38.901 over OFDM. "
        "trace: recorded gains or SNRs played back. Any other: a plug-in. Mean power is 1 in all of them.",
        examples=["rayleigh"],
    )
    tau_rms_s: float = Field(
        default=1e-6,
        ge=0.0,
        le=1e-4,
        allow_inf_nan=False,
        description="RMS delay spread, s; 0 (all blocks fade together) to 1e-4. "
        "Without effect on awgn and trace.",
        examples=[1e-6],
    )
    rician_k_db: float = Field(
        default=6.0,
        ge=-20.0,
        le=40.0,
        allow_inf_nan=False,
        description="Power of the direct path over that of the scattered ones, dB; -20 to 40. Rician only.",
        examples=[6.0],
    )
    speed_m_s: float = Field(
        default=0.0,
        ge=0.0,
        le=150.0,
        allow_inf_nan=False,
        description="Speed of the receiver, m/s; 0 to 150. It sets the Doppler spread; TDL only.",
        examples=[1.5],
    )
    trace: str | None = Field(
        default=None,
        pattern="^[a-z0-9-]{1,64}$",
        validate_default=True,
        description="Name of the trace that is played back; fading trace only, which needs one.",
        examples=["walk"],
    )
    trace_start_s: float = Field(
        default=0.0,
        ge=0.0,
        le=86_400.0,
        allow_inf_nan=False,
        description="Time in the trace at which the transmission starts, s; 0 to 86400. Traces repeat.",
        examples=[0.0],
    )
    csi: Csi = Field(
        default="perfect",
        description="What the receiver knows of the gains. perfect: all. pilots: what it estimates from "
        "pilots, which cost channel uses of their own. none: nothing; it takes every gain to be 1.",
        examples=["perfect"],
    )
    equalizer: EqualizerKind = Field(
        default="mmse",
        description="mmse: least mean squared error. zf: zero forcing, which undoes the gain at any price.",
        examples=["mmse"],
    )
    reported_snr_db: float | None = Field(
        default=None,
        ge=-20.0,
        le=40.0,
        allow_inf_nan=False,
        description="Mean SNR that the sender was last told, dB; -20 to 40. The sender adapts to it, the "
        "air obeys snr_db. Left out: the sender knows snr_db.",
        examples=[12.0],
    )

    @field_validator("trace")
    @classmethod
    def _trace_goes_with_its_fading(cls, trace: str | None, info: ValidationInfo) -> str | None:
        fading = info.data.get("fading")  # absent if it was refused itself
        allowed = None
        if fading == "trace" and trace is None:
            allowed = "a name when fading is trace"
        elif fading not in ("trace", None) and trace is not None:
            allowed = "left out unless fading is trace"
        if allowed is not None:
            raise PydanticCustomError("trace", "must be {allowed}", {"allowed": allowed})
        return trace

    @property
    def no(self) -> float:
        """Noise power per channel use; signal power and mean fading power are 1."""
        return float(10 ** (-self.snr_db / 10))

    @property
    def sender_snr_db(self) -> float:
        """The mean SNR that the sender believes in, dB."""
        return self.snr_db if self.reported_snr_db is None else self.reported_snr_db
