"""The conditions of a radio link, shared by library, proto, REST and command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dekag import plugins
from dekag.errors import InvalidInputError
from dekag.link.registry import MIMO
from dekag.schema import Document

MIN_SNR_DB, MAX_SNR_DB = -20.0, 40.0
"""Allowed mean SNR, dB."""

BLOCKS = 8
"""J: groups of channel uses that share one gain (sub-bands of one slot)."""

BUILT_IN_TRACES = Path(__file__).with_name("traces")
"""Folder of the traces in this package."""

BANDWIDTH_HZ = 10e6
"""Bandwidth that the J sub-bands divide equally, Hz."""

Fading = Literal[
    "awgn", "rayleigh", "rician", "tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e", "trace",
    "rayleigh-magnitude", "mimo-2x2", "mimo-4x4",
]  # fmt: skip
Csi = Literal["perfect", "pilots", "none"]
EqualizerKind = Literal["mmse", "zf"]

_CSI_OF_FADING: dict[str, tuple[Csi, ...]] = {
    "rayleigh-magnitude": ("perfect", "none"),  # pilots cannot estimate a gain for each symbol
    **dict.fromkeys(MIMO, ("perfect",)),  # the detector needs the whole matrix
}

_TDL = ("tdl-a", "tdl-b", "tdl-c", "tdl-d", "tdl-e")

READ_WITH: dict[str, tuple[str, ...]] = {
    "tau_rms_s": ("rayleigh", "rician", *_TDL, *MIMO),
    "rician_k_db": ("rician",),
    "speed_m_s": _TDL,
    "trace": ("trace",),
    "trace_start_s": ("trace",),
}
"""Fields that only some of the built-in kinds of fading read, and which. All kinds read the other fields."""


def unread(field: str, fading: str) -> str | None:
    """What a field must be where the fading does not read it, in words; None where it may.

    Example:
        >>> from dekag.link.conditions import unread
        >>> unread("rician_k_db", "awgn"), unread("rician_k_db", "rician")
        ('left out unless fading is rician', None)
    """
    kinds = READ_WITH.get(field, ())
    if not kinds or fading in kinds or fading not in get_args(Fading):  # a plug-in may read any
        return None
    *others, last = kinds
    named = f"{', '.join(others)} or {last}" if others else last
    return f"left out unless fading is {named}"


def without_unread(link: dict[str, Any]) -> dict[str, Any]:
    """The fields of a link without those that its fading does not read (`READ_WITH`)."""
    fading = str(link.get("fading") or LinkConditions.model_fields["fading"].default)
    return {name: value for name, value in link.items() if unread(name, fading) is None}


def _known_fading(name: str) -> str:
    try:
        plugins.get("channel", name)
    except InvalidInputError as error:
        raise PydanticCustomError("fading", "must be {allowed}", {"allowed": error.allowed}) from None
    return name


def _list_fadings(schema: dict[str, Any]) -> None:
    schema["enum"] = plugins.names("channel")


FadingName = Annotated[str, AfterValidator(_known_fading), Field(json_schema_extra=_list_fadings)]
"""A known kind of fading: one of `Fading`, or a plug-in (`dekag.plugins`)."""


class LinkConditions(Document):
    """Mean SNR and fading of one transmission, and the knowledge and equaliser of its two ends.

    A field that does not apply to the chosen fading has no effect; only `trace` is refused then, as it
    suggests that another fading was intended. `GivenConditions` refuse the others, too.

    Example:
        >>> from dekag import LinkConditions
        >>> conditions = LinkConditions(snr_db=5, fading="rician", rician_k_db=3, csi="pilots")
        >>> conditions.model_copy(update={"reported_snr_db": 12.0}).sender_snr_db
        12.0

    Raises:
        pydantic.ValidationError: names the field and its allowed values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    snr_db: float = Field(
        default=10.0,
        ge=MIN_SNR_DB,
        le=MAX_SNR_DB,
        allow_inf_nan=False,
        description="Mean Es/N0 per complex channel use, dB; -20 to 40.",
        examples=[10.0],
    )
    fading: FadingName = Field(
        default="rayleigh",
        description="awgn: every gain is 1. rayleigh: correlated complex Gaussian block gains. rician: the "
        "same plus a line-of-sight path. tdl-a to tdl-e: the tapped delay lines of 3GPP TR 38.901 over OFDM. "
        "trace: playback of recorded gains or SNRs. rayleigh-magnitude: the real magnitude of a Rayleigh "
        "gain, drawn anew for each symbol. mimo-2x2, mimo-4x4: Rayleigh fading between two or four antennas "
        "at each end, which send as many symbols at once. Any other: a plug-in. The mean power is always 1.",
        examples=["rayleigh"],
    )
    tau_rms_s: float = Field(
        default=1e-6,
        ge=0.0,
        le=1e-4,
        allow_inf_nan=False,
        description="RMS delay spread, s; 0 (all blocks fade together) to 1e-4. Rayleigh, Rician, TDL and "
        "MIMO only.",
        examples=[1e-6],
    )
    rician_k_db: float = Field(
        default=6.0,
        ge=-20.0,
        le=40.0,
        allow_inf_nan=False,
        description="Power of the line-of-sight path over the scattered paths, dB; -20 to 40. Rician only.",
        examples=[6.0],
    )
    speed_m_s: float = Field(
        default=0.0,
        ge=0.0,
        le=150.0,
        allow_inf_nan=False,
        description="Speed of the receiver, m/s; 0 to 150. Determines the Doppler spread; TDL only.",
        examples=[1.5],
    )
    trace: str | None = Field(
        default=None,
        pattern="^[a-z0-9-]{1,64}$",
        validate_default=True,
        description="Name of the trace to play back; required for fading trace, not allowed otherwise.",
        examples=["walk"],
    )
    trace_start_s: float = Field(
        default=0.0,
        ge=0.0,
        le=86_400.0,
        allow_inf_nan=False,
        description="Time in the trace at which the transmission starts, s; 0 to 86400. Traces repeat. "
        "Fading trace only.",
        examples=[0.0],
    )
    csi: Csi = Field(
        default="perfect",
        description="The receiver's knowledge of the gains. perfect: exact. pilots: estimated from pilots, "
        "which take additional channel uses. none: it assumes gains of 1.",
        examples=["perfect"],
    )
    equalizer: EqualizerKind = Field(
        default="mmse",
        description="mmse: minimum mean squared error. zf: zero forcing, which inverts the gain whatever the "
        "noise.",
        examples=["mmse"],
    )
    reported_snr_db: float | None = Field(
        default=None,
        ge=-20.0,
        le=40.0,
        allow_inf_nan=False,
        description="Mean SNR last reported to the sender, dB; -20 to 40. The sender adapts to it, while the "
        "channel uses snr_db. If omitted, the sender knows snr_db.",
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

    @field_validator("csi")
    @classmethod
    def _csi_goes_with_its_fading(cls, csi: Csi, info: ValidationInfo) -> Csi:
        fading = info.data.get("fading", "")
        allowed = _CSI_OF_FADING.get(fading)
        if allowed is not None and csi not in allowed:
            told = f"{' or '.join(allowed)} when fading is {fading}"
            raise PydanticCustomError("csi", "must be {allowed}", {"allowed": told})
        return csi

    @property
    def no(self) -> float:
        """Noise power per channel use; signal power and mean fading power are 1."""
        return float(10 ** (-self.snr_db / 10))

    @property
    def sender_snr_db(self) -> float:
        """The mean SNR as known to the sender, dB."""
        return self.snr_db if self.reported_snr_db is None else self.reported_snr_db


class GivenConditions(LinkConditions):
    """Conditions as somebody writes them, in a request or in a sweep: what nothing would read is refused.

    That is a field that the chosen fading does not read (`READ_WITH`). Its default is allowed, as in
    documents that have all defaults written out.

    Raises:
        pydantic.ValidationError: names the field, and the kinds of fading that read it.
    """

    @field_validator("tau_rms_s", "rician_k_db", "speed_m_s", "trace_start_s")
    @classmethod
    def _is_read(cls, value: float, info: ValidationInfo) -> float:
        field = str(info.field_name)
        allowed = unread(field, info.data.get("fading", ""))
        if allowed is not None and value != cls.model_fields[field].default:
            raise PydanticCustomError("unread", "must be {allowed}", {"allowed": allowed})
        return value
