"""What the REST interface takes and returns; the OpenAI Images shape, plus what a radio link adds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from dekag.errors import InvalidInputError
from dekag.link import LinkConditions
from dekag.link.conditions import Csi, EqualizerKind, FadingName
from dekag.makd.config import RANGES
from dekag.makd.topics import MAX_PROMPT_CHARS, MAX_PROMPTS, MAX_TRIGGERS, topic_name
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


def _check_topic(topic: str) -> str:
    try:
        return topic_name(topic)
    except InvalidInputError as error:
        raise PydanticCustomError("topic", "must be {allowed}", {"allowed": error.allowed}) from None


def _check_knowledge(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    try:
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            converters.knowledge(names)
            return names
    except InvalidInputError:
        pass
    allowed = converters.KNOWLEDGE_ALLOWED
    raise PydanticCustomError("knowledge", "must be {allowed}", {"allowed": allowed})


def _check_cbr(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= converters.MAX_CBR:
        return float(value)
    allowed = f'"auto" or a number above 0.0 and at most {converters.MAX_CBR}'
    raise PydanticCustomError("cbr", "must be {allowed}", {"allowed": allowed})


class LinkRequest(LinkConditions):
    """The radio link asked for, and what is sent over it."""

    cbr: Annotated[
        Annotated[float, Field(gt=0.0, le=converters.MAX_CBR)] | Literal["auto"], BeforeValidator(_check_cbr)
    ] = Field(
        default=1 / 96,
        description="Channel bandwidth ratio, channel uses / (3 * width * height); semantic deliveries only. "
        '"auto": the smallest that is expected to reach target_psnr_db at the SNR that the sender was told; '
        'delivery "semantic" only.',
    )
    target_psnr_db: float | None = Field(
        default=None,
        ge=converters.MIN_TARGET_PSNR_DB,
        le=converters.MAX_TARGET_PSNR_DB,
        allow_inf_nan=False,
        validate_default=True,
        description='PSNR to reach, dB; with cbr "auto", which needs one, and with nothing else.',
    )
    modulation: converters.Modulation = Field(
        default="qam64",
        description="Where the symbols may lie; unquantised: anywhere. Semantic deliveries only. "
        "The embedded codec was trained with qam64.",
    )

    @field_validator("target_psnr_db")
    @classmethod
    def _target_goes_with_auto(cls, target: float | None, info: ValidationInfo) -> float | None:
        cbr, allowed = info.data.get("cbr"), None  # absent if it was refused itself
        if cbr == "auto" and target is None:
            allowed = "a PSNR in dB when cbr is auto"
        elif cbr not in ("auto", None) and target is not None:
            allowed = "left out unless cbr is auto"
        if allowed is not None:
            raise PydanticCustomError("target_psnr_db", "must be {allowed}", {"allowed": allowed})
        return target


Delivery = Literal["semantic", "semantic-unaligned", "conventional"]


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
    delivery: Delivery = Field(
        default="semantic",
        description="semantic: the edge's latent as joint source-channel coded symbols. "
        "semantic-unaligned: the same without any knowledge updates and adapters. "
        "conventional: the cloud's image as a file over LDPC and QAM.",
    )
    image_format: Literal["webp", "avif", "jpeg"] = Field(
        default="webp", description="File that carries the cloud's image; conventional delivery only."
    )
    knowledge: Annotated[
        list[str], BeforeValidator(_check_knowledge, json_schema_input_type=str | list[str])
    ] = Field(
        default_factory=lambda: ["auto"],
        json_schema_extra={"default": "auto"},
        description="Topics whose knowledge updates the edge draws with: a name, or up to "
        f'{converters.MAX_KNOWLEDGE} in a list; "auto": those that the prompt needs; "none": none. '
        "Semantic delivery only.",
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


class KnowledgeUse(BaseModel):
    """A knowledge update that the edge drew with."""

    topic: str
    version: int
    content_hash: str = Field(description="sha256 over everything in the update.")


class LinkReport(BaseModel):
    """What one image cost on its way and how well it arrived."""

    request_id: str
    seed: int
    delivery: Delivery
    decoded: bool = Field(description="False for a conventional delivery whose code did not decode.")
    channel_uses: int = Field(description="Complex symbols sent, K, without pilots.")
    pilot_uses: int = Field(default=0, description="Channel uses spent on pilots, of all hops together.")
    cbr: float = Field(description="(channel_uses + pilot_uses) / (3 * width * height)")
    snr_db: float = Field(description="Mean Es/N0 per complex channel use as asked, dB.")
    fading: FadingName = Field(description="As asked.")
    tau_rms_s: float = Field(description="RMS delay spread as asked, s.")
    rician_k_db: float | None = Field(
        default=None, description="Power of the direct path over the scattered ones as asked, dB."
    )
    speed_m_s: float = Field(default=0.0, description="Speed of the receiver as asked, m/s.")
    trace: str | None = Field(default=None, description="Name of the trace that was played back.")
    trace_start_s: float = Field(default=0.0, description="Where in the trace it started, s.")
    csi: Csi = Field(default="perfect", description="What the receiver knew of the gains.")
    equalizer: EqualizerKind = Field(default="mmse", description="As asked.")
    reported_snr_db: float | None = Field(
        default=None, description="Mean SNR that the sender was told, dB; null: it knew snr_db."
    )
    no: float = Field(description="Noise power per channel use; signal power is 1. 0 over an ideal channel.")
    gains: list[tuple[float, float]] = Field(
        description="Gains h_j as the receiver knew them, [real, imaginary]; empty over an ideal channel. "
        "Of more than 1024, evenly spaced ones."
    )
    instantaneous_snr_db: float | None = Field(
        description="Mean |h_j|^2 / no of this transmission, dB; null over an ideal channel."
    )
    psnr_db: float | None = Field(
        description="Received image against what was sent, dB; null if not decoded."
    )
    scores: dict[str, float | None] = Field(
        default_factory=dict,
        description="Of metrics that are plugged in, received image against what was sent; null: not finite.",
    )
    stages: list[StageTime] = Field(description="Time per stage, in the order of the chain's answer.")
    hops: list[HopTraffic] = Field(description="Traffic per hop.")
    model_hashes: dict[str, str] = Field(description="sha256 of each model that took part.")
    cached: bool = Field(description="Whether the latent or the image came from a cache.")
    knowledge: list[KnowledgeUse] = Field(
        default_factory=list, description="Knowledge updates that the edge drew with."
    )
    modulation: converters.Modulation | None = Field(
        default=None, description="As asked; semantic deliveries only."
    )
    target_psnr_db: float | None = Field(default=None, description="As asked, dB.")
    expected_psnr_db: float | None = Field(
        default=None,
        description="What the sender expected of the rate that it chose for target_psnr_db, dB; below that "
        "where no rate was expected to reach it.",
    )
    coding: ModulationAndCoding | None = Field(description="Conventional delivery only.")
    image_format: Literal["webp", "avif", "jpeg"] | None = Field(
        default=None, description="File that carried the image; conventional delivery only."
    )


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


_Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)]


class KnowledgeRequest(BaseModel):
    """A topic to distil. What is left out takes the library's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    topic: Annotated[str, AfterValidator(_check_topic)] = Field(
        min_length=1, max_length=32, description="Its name; requests for images can name it as knowledge."
    )
    prompts: list[_Prompt] = Field(
        default_factory=list,
        max_length=MAX_PROMPTS,
        description='What the cloud draws to learn from; "a {red|blue} boat" stands for both. '
        "Left out: the embedded world's prompts of the topic of that name.",
    )
    triggers: list[_Prompt] = Field(
        default_factory=list,
        max_length=MAX_TRIGGERS,
        description="Words or phrases that say that a prompt needs this topic; its name if left out.",
    )
    images: int | None = Field(
        default=None,
        ge=RANGES["images"][0],
        le=RANGES["images"][1],
        description="Pictures that the cloud draws to learn from.",
    )
    tokens: int | None = Field(
        default=None,
        ge=RANGES["tokens"][0],
        le=RANGES["tokens"][1],
        description="Pseudo-tokens of the metaword.",
    )
    rank: int | None = Field(
        default=None, ge=RANGES["rank"][0], le=RANGES["rank"][1], description="Rank of the LoRA."
    )
    steps: int | None = Field(
        default=None,
        ge=RANGES["steps"][0],
        le=RANGES["steps"][1],
        description="Optimiser steps at most.",
    )
    seed: int | None = Field(
        default=None,
        ge=RANGES["seed"][0],
        le=RANGES["seed"][1],
        description="Seeds the cloud's pictures and the training.",
    )


JobStatus = Literal["queued", "running", "finished", "failed", "cancelled"]


class Job(BaseModel):
    """A distillation."""

    id: str
    topic: str
    status: JobStatus = Field(description="The last three are final.")
    stage: str | None = Field(
        description='"generate" (pictures), "train" (steps) or "score" (pictures); null before the first.'
    )
    done: int = Field(description="Pictures or steps of this stage that are done.")
    total: int = Field(description="Pictures or steps of this stage at most.")
    loss: float | None = Field(description="Smoothed training loss; null while there is none.")
    error: str | None = Field(description="Why it failed.")
    created: float = Field(description="Unix time, s.")
    started: float | None = Field(description="Unix time, s.")
    finished: float | None = Field(
        description="Unix time at which its worker let go of it, s; a moment after it was cancelled."
    )
    version: int | None = Field(description="The version of the topic's knowledge that it made.")


class JobList(BaseModel):
    """Jobs, the newest first."""

    data: list[Job]


class KnowledgeManifest(BaseModel):
    """One version of a topic's knowledge update."""

    topic: str
    version: int = Field(description="Counts up for each topic; the highest is current.")
    content_hash: str = Field(description="sha256 over everything in the update.")
    base_hash: str = Field(description="Hash of the edge model that it fits.")
    triggers: list[str] = Field(description="Words or phrases that say that a prompt needs it.")
    size_bytes: int = Field(description="Bytes of the update's files.")
    scores: dict[str, float] = Field(description="On held-out prompts.")
    created: float = Field(description="Unix time, s.")
    job: str = Field(description="Id of the job that made it.")


class Topic(KnowledgeManifest):
    """The current version of a topic's knowledge, and which others there are."""

    versions: list[int] = Field(description="Versions that there are, ascending.")


class KnowledgeList(BaseModel):
    """The current version of each topic."""

    data: list[KnowledgeManifest]


class Transmission(BaseModel):
    """The current transmission knowledge: the adapters with which edge and user encode and decode."""

    version: int = Field(description="Counts up; the highest is current.")
    content_hash: str = Field(description="sha256 over everything in it; model_hashes.adapters of a report.")
    base_hash: str = Field(description="Hash of the codec that it fits.")
    size_bytes: int = Field(description="Bytes of its files.")
    scores: dict[str, float] = Field(description="On held-out pictures.")
    created: float = Field(description="Unix time of its publication, s.")
    versions: list[int] = Field(description="Versions that there are for this codec, ascending.")


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
