"""What the REST interface takes and returns; the OpenAI Images shape, plus what a radio link adds."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from dekag.errors import InvalidInputError
from dekag.link import LinkConditions
from services.common import converters

_SIZE = re.compile(r"([1-9]\d{1,3})x([1-9]\d{1,3})")
_SIZES = (
    f"WIDTHxHEIGHT in pixels, multiples of {converters.PIXEL_STEP} "
    f"from {converters.MIN_PIXELS} to {converters.MAX_PIXELS}"
)


def parse_size(size: str) -> tuple[int, int]:
    """``(width, height)`` in pixels of a valid ``size``."""
    width, height = size.split("x")
    return int(width), int(height)


def _check_size(size: str) -> str:
    try:
        if _SIZE.fullmatch(size) is not None:
            converters.size(*parse_size(size))
            return size
    except InvalidInputError:
        pass
    raise PydanticCustomError("size", "must be {allowed}", {"allowed": _SIZES})


def _check_prompt(prompt: str) -> str:
    try:
        return converters.prompt(prompt)
    except InvalidInputError as error:
        raise PydanticCustomError("prompt", "must be {allowed}", {"allowed": error.allowed}) from None


class LinkRequest(LinkConditions):
    """The radio link asked for."""

    cbr: float = Field(
        default=1 / 96,
        gt=0.0,
        le=converters.MAX_CBR,
        allow_inf_nan=False,
        description="Channel bandwidth ratio, channel uses / (3 * width * height); semantic delivery only.",
    )


class ImagesRequest(BaseModel):
    """A request for images. Fields of the OpenAI Images API without meaning here are taken and ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, AfterValidator(_check_prompt)] = Field(
        min_length=1, max_length=converters.MAX_PROMPT_CHARS, description="What to draw."
    )
    n: int = Field(default=1, ge=1, le=4, description="Images to make; image i uses seed + i.")
    size: Annotated[str, AfterValidator(_check_size)] = Field(default="128x128", description=_SIZES + ".")
    response_format: Literal["b64_json"] = Field(default="b64_json", description="How images are returned.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=converters.MAX_SEED,
        description="Seeds generation, fading and noise; at most 2**63 - n. Drawn and returned if left out.",
    )
    link: LinkRequest = Field(default_factory=LinkRequest, description="The radio link.")
    delivery: Literal["semantic", "conventional"] = Field(
        default="semantic",
        description="semantic: the edge's latent as joint source-channel coded symbols. "
        "conventional: the cloud's image as WebP over LDPC and QAM.",
    )

    model: str | None = Field(default=None, max_length=200, description="Ignored: the service has one model.")
    background: str | None = Field(default=None, max_length=50, description="Ignored.")
    moderation: str | None = Field(default=None, max_length=50, description="Ignored.")
    output_compression: int | None = Field(default=None, description="Ignored: PNG is lossless.")
    output_format: Literal["png"] | None = Field(default=None, description="Only PNG.")
    partial_images: int | None = Field(default=None, description="Ignored.")
    quality: str | None = Field(default=None, max_length=50, description="Ignored.")
    stream: Literal[False] | None = Field(default=None, description="Only false.")
    style: str | None = Field(default=None, max_length=50, description="Ignored.")
    user: str | None = Field(default=None, max_length=200, description="Ignored.")


class StageTime(BaseModel):
    """Time that one stage took."""

    stage: str = Field(description='Service and stage, for example "edge.generate".')
    seconds: float = Field(description="s")


class HopTraffic(BaseModel):
    """Bytes that crossed one hop."""

    hop: str = Field(description='For example "cloud-edge".')
    sent_bytes: int = Field(description="Serialised messages, both directions.")


class ModulationAndCoding(BaseModel):
    """How a conventional delivery was modulated and coded."""

    bits_per_symbol: int = Field(description="QAM order is 2**bits_per_symbol.")
    codeword_bits: int = Field(description="n of one LDPC codeword.")
    information_bits: int = Field(description="k of one LDPC codeword.")
    payload_bytes: int = Field(description="Bytes of the image file before padding.")


class LinkReport(BaseModel):
    """What one image cost on its way and how well it arrived."""

    request_id: str
    seed: int
    delivery: Literal["semantic", "conventional"]
    decoded: bool = Field(description="False for a conventional delivery whose code did not decode.")
    channel_uses: int = Field(description="Complex symbols sent, K.")
    cbr: float = Field(description="channel_uses / (3 * width * height)")
    snr_db: float = Field(description="Mean Es/N0 per complex channel use as asked, dB.")
    fading: Literal["awgn", "rayleigh"]
    tau_rms_s: float = Field(description="RMS delay spread as asked, s.")
    no: float = Field(description="Noise power per channel use; signal power is 1. 0 over an ideal channel.")
    gains: list[tuple[float, float]] = Field(
        description="Block gains h_j as [real, imaginary]; empty over an ideal channel."
    )
    instantaneous_snr_db: float | None = Field(
        description="Mean |h_j|^2 / no of this transmission, dB; null over an ideal channel."
    )
    psnr_db: float | None = Field(
        description="Received image against what was sent, dB; null if not decoded."
    )
    stages: list[StageTime] = Field(description="Time per stage, in the order of the chain's answer.")
    hops: list[HopTraffic] = Field(description="Traffic per hop.")
    model_hashes: dict[str, str] = Field(description="sha256 of each model that took part.")
    cached: bool = Field(description="Whether the latent or the image came from a cache.")
    coding: ModulationAndCoding | None = Field(description="Conventional delivery only.")


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = Field(description="The PNG, base64; null when the delivery did not decode.")
    seed: int = Field(description="The seed that makes this image again.")
    link_report: LinkReport


class ImagesResponse(BaseModel):
    """The images, in the order of their seeds."""

    created: int = Field(description="Unix time, s.")
    data: list[ImageData]


class Reports(BaseModel):
    """The link reports of one request, in the order of its images."""

    request_id: str
    created: int = Field(description="Unix time, s.")
    link_reports: list[LinkReport]


class Readiness(BaseModel):
    """Whether requests can be answered now, and what each thing that takes part says."""

    ready: bool
    checks: dict[str, str] = Field(description="user: its health; redis: up or down, not needed to be ready.")


class FieldProblem(BaseModel):
    """One field that is not as it must be."""

    field: str = Field(description='Dotted name, for example "link.snr_db".')
    allowed: str = Field(description="What would be allowed.")
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details; the media type is application/problem+json."""

    type: str = Field(description="A URN that stays the same for this kind of problem.")
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldProblem] | None = Field(
        default=None, description="The fields concerned, on status 422."
    )
