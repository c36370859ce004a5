"""The requests and responses of the REST interface, shared by the gateway and its clients.

They follow the OpenAI Images API and add the radio link. The descriptions and examples here become
the OpenAPI document and docs/rest.md.
"""

from __future__ import annotations

import base64
import contextlib
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from dekag import plugins
from dekag.api import limits
from dekag.errors import InvalidInputError
from dekag.generation.request import Sampling
from dekag.link.conditions import Csi, EqualizerKind, GivenConditions
from dekag.makd.config import RANGES
from dekag.makd.demand import Action, DemandPolicy

Delivery = Literal["semantic", "semantic-unaligned", "conventional"]
PictureDelivery = Literal["semantic", "semantic-unaligned", "pixels", "conventional"]
"""How a picture of one's own is sent."""
Modulation = Literal["qam4", "qam16", "qam64", "qam256", "unquantised"]
"""Constellations of the codec's symbols."""
SideInformation = Literal["prompt", "none"]
"""What sender and receiver know besides the symbols."""
Restoration = Literal["none", "denoiser"]
"""What the receiver does to a latent between decoding and rendering it."""
ImageFormat = Literal["webp", "avif", "jpeg"]
"""Format of the file of a conventional delivery."""
OutputFormat = Literal["png", "jpeg", "webp"]
"""Format of a returned image."""
ResponseFormat = Literal["b64_json", "url"]
LongPrompt = Literal["read", "refuse"]
JobStatus = Literal["queued", "running", "finished", "failed", "cancelled", "unknown"]

_SIZE = re.compile(r"([1-9]\d{1,3})x([1-9]\d{1,3})")
_SIZES = (
    f"WIDTHxHEIGHT in pixels, multiples of {limits.PIXEL_STEP} from {limits.MIN_PIXELS} to "
    f'{limits.MAX_PIXELS}, or "auto"'
)

# Patterns of strings that validators check, for the OpenAPI document
TOPIC_PATTERN = {"pattern": limits.pattern(limits.TOPIC)}
_SIDE = "|".join(map(str, range(limits.MIN_PIXELS, limits.MAX_PIXELS + 1, limits.PIXEL_STEP)))
_SIZE_PATTERN = {"pattern": f"^(auto|({_SIDE})x({_SIDE}))$"}
_TopicName = Annotated[str, Field(json_schema_extra=dict(TOPIC_PATTERN))]
_TopicNames = Annotated[list[_TopicName], Field(min_length=1, max_length=limits.MAX_KNOWLEDGE)]

# Values that several examples share
_HASH = "9a41d092bb09509644460297659ec49548f942f27f8edfd2415356dacf8f4e0d"  # pragma: allowlist secret
EXAMPLE_REQUEST = "3f0c9a7e5d4b4f0a9d1e2c3b4a596877"  # pragma: allowlist secret
_SNR = "a number of at least -20.0 and at most 40.0"
EXAMPLE_JOB = "c1f4b8d2a6e04f7f8b3d5e9a70c2d614"  # pragma: allowlist secret
_CREATED = 1_790_000_000  # Unix time, s


def parse_size(size: str) -> tuple[int, int]:
    """``(width, height)`` in pixels of a valid ``size``; (0, 0) for "auto", as in the services' messages."""
    if size == "auto":
        return 0, 0
    width, height = size.split("x")
    return int(width), int(height)


def _check_size(size: str) -> str:
    if size == "auto":
        return size
    try:
        if _SIZE.fullmatch(size) is not None:
            limits.check_size(*parse_size(size))
            return size
    except InvalidInputError:
        pass
    raise PydanticCustomError("size", "must be {allowed}", {"allowed": _SIZES})


def _check_prompt(prompt: str) -> str:
    try:
        return limits.check_prompt(prompt)
    except InvalidInputError as error:
        raise PydanticCustomError("prompt", "must be {allowed}", {"allowed": error.allowed}) from None


def _check_topic(topic: str) -> str:
    try:
        return limits.check_topic(topic)
    except InvalidInputError as error:
        raise PydanticCustomError("topic", "must be {allowed}", {"allowed": error.allowed}) from None


def _check_knowledge(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    try:
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            limits.check_knowledge(names)
            return names
    except InvalidInputError:
        pass
    raise PydanticCustomError("knowledge", "must be {allowed}", {"allowed": limits.KNOWLEDGE_ALLOWED})


def _check_cbr(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= limits.MAX_CBR:
        return float(value)
    allowed = f'"auto" or a number above 0.0 and at most {limits.MAX_CBR}'
    raise PydanticCustomError("cbr", "must be {allowed}", {"allowed": allowed})


def _check_details(details: bool, info: ValidationInfo) -> bool:
    try:
        return limits.check_details(details, info.data.get("measure", True))  # absent if it is itself invalid
    except InvalidInputError as error:
        raise PydanticCustomError("details", "must be {allowed}", {"allowed": error.allowed}) from None


class _NullIsAbsent(BaseModel):
    """A request in which null counts as omitting an optional field, as some clients send it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name not in optional}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        whole = handler.resolve_ref_schema(schema)
        for name, field in whole.get("properties", {}).items():
            if name not in whole.get("required", ()):
                whole["properties"][name] = _or_null(field)
        return schema


_ABOUT = ("title", "description", "default", "examples")


def _or_null(field: JsonSchemaValue) -> JsonSchemaValue:
    about: dict[str, Any] = {key: field[key] for key in _ABOUT if key in field}
    kind = {key: value for key, value in field.items() if key not in about}
    kinds = kind.pop("anyOf", None) or [kind]
    return {"anyOf": [each for each in kinds if each != {"type": "null"}] + [{"type": "null"}], **about}


class LinkRequest(_NullIsAbsent, GivenConditions):
    """The requested radio link, and the rate and constellation of the transmission."""

    cbr: Annotated[
        Annotated[float, Field(gt=0.0, le=limits.MAX_CBR)] | Literal["auto"], BeforeValidator(_check_cbr)
    ] = Field(
        default=1 / 96,
        description="Channel bandwidth ratio, channel uses / (3 * width * height); not of conventional "
        "delivery. A codec of latents sends at most at its own highest rate, the shipped one at 1/96. "
        '"auto": the smallest that is expected to reach target_psnr_db at the SNR reported to the sender; '
        'delivery "semantic" only.',
        examples=[1 / 96, "auto"],
    )
    target_psnr_db: float | None = Field(
        default=None,
        ge=limits.MIN_TARGET_PSNR_DB,
        le=limits.MAX_TARGET_PSNR_DB,
        allow_inf_nan=False,
        validate_default=True,
        description='PSNR to reach, dB; required for cbr "auto", not allowed otherwise.',
        examples=[24.0],
    )
    modulation: Literal["auto", Modulation] = Field(
        default="auto",
        description="Constellation of the symbols; unquantised: arbitrary complex values. auto: by the SNR "
        "reported to the sender if the codec adapts it, otherwise that of the codec's training. Semantic "
        "deliveries only.",
        examples=["auto"],
    )
    side_information: SideInformation = Field(
        default="prompt",
        description="What sender and receiver know besides the symbols. prompt: the prompt, if the codec "
        "reads it; the receiver needs its own prompt alone. none: nothing. Semantic deliveries only.",
        examples=["prompt"],
    )

    restoration: Restoration = Field(
        default="none",
        description="What the receiver does to the decoded latent before it renders it. denoiser: one step "
        "of the edge's denoiser, with the prompt unless side_information withholds it; it needs the edge's "
        "model at the receiver. Images that were generated with knowledge updates, which the receiver does "
        'not have, are left as they are. Delivery "semantic" only.',
        examples=["none"],
    )

    @field_validator("target_psnr_db")
    @classmethod
    def _target_goes_with_auto(cls, target: float | None, info: ValidationInfo) -> float | None:
        cbr, allowed = info.data.get("cbr"), None  # absent if it is itself invalid
        if cbr == "auto" and target is None:
            allowed = "a PSNR in dB when cbr is auto"
        elif cbr not in ("auto", None) and target is not None:
            allowed = "left out unless cbr is auto"
        if allowed is not None:
            raise PydanticCustomError("target_psnr_db", "must be {allowed}", {"allowed": allowed})
        return target


class ImagesRequest(_NullIsAbsent):
    """A request for images. Fields of the OpenAI Images API without a meaning here are accepted and ignored.

    An optional field that is null counts as omitted.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, AfterValidator(_check_prompt)] = Field(
        min_length=1,
        max_length=limits.MAX_PROMPT_CHARS,
        json_schema_extra={"pattern": r"\S"},
        description="Description of the image.",
        examples=["a red car on the beach, pastel style"],
    )
    n: int = Field(
        default=1,
        ge=1,
        le=limits.MAX_IMAGES,
        description="Number of images; image i (from 0) uses seed + i.",
        examples=[1],
    )
    size: Annotated[str, AfterValidator(_check_size)] = Field(
        default="auto",
        json_schema_extra=dict(_SIZE_PATTERN),
        description=f"{_SIZES}, which means the profile's size. The profile may allow less.",
        examples=["128x128", "auto"],
    )
    response_format: ResponseFormat = Field(
        default="b64_json",
        description="How images are returned. b64_json: in base64. url: as a `data:` URL.",
        examples=["b64_json"],
    )
    output_format: OutputFormat = Field(
        default="png", description="File format of the returned images.", examples=["png"]
    )
    output_compression: int = Field(
        default=100,
        ge=0,
        le=100,
        description="Quality of a JPEG or WebP file; PNG is lossless and ignores it.",
        examples=[100],
    )
    metadata: bool = Field(
        default=True,
        description="Whether to write the request and the hashes of the models into the returned file, from "
        "which `dekag image --from` makes it again.",
        examples=[True],
    )
    stream: bool = Field(
        default=False,
        description="Whether to return Server-Sent Events: image_generation.partial_image for each preview, "
        "image_generation.completed for each image.",
        examples=[False],
    )
    partial_images: int = Field(
        default=0,
        ge=0,
        le=limits.MAX_PREVIEWS,
        description="Largest number of previews of each image in a stream: what the edge's denoiser predicts "
        "before its last step, as it would look without transmission. Images whose latent is cached have "
        "none, nor have images of the cloud's model.",
        examples=[0],
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        le=limits.MAX_STEPS,
        description="Number of denoising steps of the generating model; if omitted, the model's own.",
        examples=[6],
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0.0,
        le=limits.MAX_GUIDANCE_SCALE,
        allow_inf_nan=False,
        description="Classifier-free guidance of the generating model; if omitted, the model's own.",
        examples=[2.0],
    )
    negative_prompt: str = Field(
        default="",
        max_length=limits.MAX_PROMPT_CHARS,
        description="What the image is guided away from; requires guidance above 1.",
        examples=["a red car"],
    )
    adapter_scale: float = Field(
        default=1.0,
        ge=0.0,
        le=limits.MAX_ADAPTER_SCALE,
        allow_inf_nan=False,
        description="Factor of the low-rank adapters of knowledge updates; 0: none. "
        'Delivery "semantic" only. With another value than 1, the edge generates the image: no demand policy '
        "replaces it by the cloud's.",
        examples=[1.0],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=limits.MAX_SEED,
        description="Seed of generation, fading and noise; at most 2**63 - n. If omitted, a random one is "
        "used and returned.",
        examples=[7],
    )
    link: LinkRequest = Field(default_factory=LinkRequest, description="The radio link.")
    delivery: Delivery = Field(
        default="semantic",
        description="semantic: the edge's latent, sent with joint source-channel coding. "
        "semantic-unaligned: the same without knowledge updates and adapters. "
        "conventional: the cloud's image, sent as a file with LDPC and QAM.",
        examples=["semantic"],
    )
    image_format: ImageFormat = Field(
        default="webp",
        description="Format of the file with the cloud's image; conventional delivery only.",
        examples=["webp"],
    )
    knowledge: Annotated[
        list[str], BeforeValidator(_check_knowledge, json_schema_input_type=_TopicName | _TopicNames)
    ] = Field(
        default_factory=lambda: ["auto"],
        json_schema_extra={"default": "auto"},
        description="Topics whose knowledge updates the edge applies: a name, or a list of up to "
        f'{limits.MAX_KNOWLEDGE}; "auto": those that the prompt needs; "none": none. '
        "Only semantic delivery uses updates, so no other one may name topics.",
        examples=["auto", ["neon"]],
    )

    on_long_prompt: LongPrompt = Field(
        default="read",
        description="Handling of a prompt with more tokens than the generating model reads at a time. "
        "read: the model reads all of it, in windows; link_report.prompt_read reports the numbers of tokens. "
        "refuse: the request is rejected with status 422.",
        examples=["read"],
    )
    consistency: bool = Field(
        default=False,
        description="Whether to compare each image with the cloud's image for the same prompt and seed, "
        "which the cloud generates for this purpose.",
        examples=[True],
    )
    measure: bool = Field(
        default=True,
        description="Whether to measure the quality of each image against the sent one. Otherwise the sent "
        "image is neither transferred nor decoded for this purpose, which saves computing time of semantic "
        "deliveries; psnr_db is null and scores are empty. The received image is the same. The drift watch "
        "measures its sample (DEKAG_WATCH_SHARE) all the same, for itself.",
        examples=[True],
    )
    details: bool = Field(
        default=False,
        description="Whether to return the image before transmission and the constellation of each image as "
        "well; requires measure.",
        examples=[True],
    )

    model: str | None = Field(
        default=None,
        max_length=200,
        description="PROFILE, or PROFILE/TOPIC for that topic's knowledge, as listed at /v1/models; only "
        "semantic delivery uses knowledge. Other names are ignored, as there is one profile. `model` of the "
        "response names what answered.",
        examples=["stickers"],
    )
    background: Literal["auto", "opaque"] = Field(
        default="auto", description="All images are opaque.", examples=["auto"]
    )
    complexity: str | None = Field(default=None, max_length=50, description="Ignored.", examples=["low"])
    moderation: str | None = Field(default=None, max_length=50, description="Ignored.", examples=["auto"])
    quality: str | None = Field(
        default=None, max_length=50, description="Ignored: there is one quality.", examples=["auto"]
    )
    safety_identifier: str | None = Field(
        default=None, max_length=200, description="Ignored.", examples=["user-1"]
    )
    style: str | None = Field(default=None, max_length=50, description="Ignored.", examples=["vivid"])
    user: str | None = Field(default=None, max_length=200, description="Ignored.", examples=["user-1"])

    _details_need_measure = field_validator("details")(_check_details)

    @property
    def sampling(self) -> Sampling:
        """Settings of the denoiser."""
        return Sampling(self.steps, self.guidance_scale, self.negative_prompt, self.adapter_scale)


class _Response(BaseModel):
    """Base of the responses; fields that a newer gateway adds are ignored."""

    model_config = ConfigDict(frozen=True)


def _listed(names: Any) -> Any:
    """Lists the current names in the OpenAPI document; a client also accepts names of a newer gateway."""
    return Field(json_schema_extra={"enum": list(get_args(names))})


def _list_fadings(schema: dict[str, Any]) -> None:
    schema["enum"] = plugins.names("channel")


_FadingName = Annotated[str, Field(json_schema_extra=_list_fadings)]
_DeliveryName = Annotated[str, _listed(PictureDelivery)]
_ModulationName = Annotated[str, _listed(Modulation)]
_SideInformationName = Annotated[str, _listed(SideInformation)]
_RestorationName = Annotated[str, _listed(Restoration)]
_FormatName = Annotated[str, _listed(ImageFormat)]
_CsiName = Annotated[str, _listed(Csi)]
_EqualizerName = Annotated[str, _listed(EqualizerKind)]
_JobStatusName = Annotated[str, _listed(JobStatus)]


class StageTime(_Response):
    """Duration of one stage."""

    stage: str = Field(description='Service and stage, such as "edge.generate".', examples=["edge.generate"])
    seconds: float = Field(description="Duration, s.", examples=[0.21])


class Latency(_Response):
    """Time until the image was ready, split into three parts that do not overlap."""

    compute_s: float = Field(
        description="Measured: time that the services took, from the user's request until the image was "
        "ready, s. It includes waiting for models and the transfers of this simulator itself, and excludes "
        "user.measure.",
        examples=[0.31],
    )
    air_s: float = Field(
        description="Modelled: time on the air of channel uses and pilots, s; settings DEKAG_AIR_*. 0 over "
        "an ideal channel.",
        examples=[0.001],
    )
    backhaul_s: float = Field(
        description="Modelled: time of the transfers between edge and cloud, s; settings DEKAG_BACKHAUL_*. 0 "
        "if nothing was transferred.",
        examples=[0.012],
    )

    @property
    def total_s(self) -> float:
        """The sum, s."""
        return self.compute_s + self.air_s + self.backhaul_s


class HopTraffic(_Response):
    """Traffic of one hop."""

    hop: str = Field(description='The two services, such as "cloud-edge".', examples=["edge-channel"])
    sent_bytes: int = Field(description="Size of the messages in both directions, bytes.", examples=[4402])


class ModulationAndCoding(_Response):
    """Modulation and coding of a conventional delivery."""

    bits_per_symbol: int = Field(
        description="Bits per QAM symbol; the order is 2**bits_per_symbol.", examples=[4]
    )
    codeword_bits: int = Field(description="Length n of an LDPC codeword, bits.", examples=[6144])
    information_bits: int = Field(description="Information bits k of an LDPC codeword.", examples=[3072])
    payload_bytes: int = Field(description="Size of the image file before padding, bytes.", examples=[1530])


class KnowledgeUse(_Response):
    """A knowledge update that the edge applied."""

    topic: str = Field(examples=["neon"])
    version: int = Field(examples=[1])
    content_hash: str = Field(description="SHA-256 of its content.", examples=[_HASH])


class PromptRead(_Response):
    """Number of tokens of the prompt that a model read, without start and end tokens."""

    tokens: int = Field(description="Tokens of the prompt.", examples=[9])
    tokens_read: int = Field(
        description="Tokens that the model read: all but those of characters that it does not know.",
        examples=[9],
    )
    tokens_at_once: int = Field(
        description="Tokens that the model reads at a time; it reads a longer prompt in several windows.",
        examples=[38],
    )


class PictureReport(_Response):
    """What was found in a picture's file, and how the picture was sent. Nothing is resized."""

    width: int = Field(description="Width of the picture, pixels.", examples=[768])
    height: int = Field(description="Height of the picture, pixels.", examples=[512])
    format: str = Field(description="Kind of the file, by its contents.", examples=["JPEG"])
    notes: list[str] = Field(
        default_factory=list,
        description="What was done to the file's samples before sending: turned upright, transparency on "
        "white, 16 bits reduced to 8, and the like; and what to expect of a rate that the codec was not "
        "trained for.",
        examples=[["turned as its EXIF orientation says"]],
    )
    columns: int | None = Field(
        default=None, description="Columns of tiles; semantic deliveries only.", examples=[3]
    )
    rows: int | None = Field(
        default=None, description="Rows of tiles; semantic deliveries only.", examples=[2]
    )
    tile_width: int | None = Field(
        default=None,
        description="Width of each tile, pixels; padding at the right edge is cut off again. Semantic "
        "deliveries only.",
        examples=[256],
    )
    tile_height: int | None = Field(
        default=None,
        description="Height of each tile, pixels; padding at the bottom is cut off again. Semantic "
        "deliveries only.",
        examples=[256],
    )
    autoencoder_psnr_db: float | None = Field(
        default=None,
        description="PSNR of what the autoencoder makes of the picture without any channel, dB: no semantic "
        "delivery is better. Deliveries of latents only; null if not measured.",
        examples=[27.1],
    )
    ssim: float | None = Field(
        default=None,
        description="SSIM of the received picture; null if it was not decoded or not measured, or has a side "
        "below 11 pixels.",
        examples=[0.62],
    )


class LinkReport(_Response):
    """Cost and quality of the transmission of one image."""

    request_id: str = Field(examples=[EXAMPLE_REQUEST])
    seed: int = Field(examples=[7])
    delivery: _DeliveryName = Field(examples=["semantic"])
    decoded: bool = Field(description="False if decoding of a conventional delivery failed.", examples=[True])
    channel_uses: int = Field(description="Number K of complex symbols sent, without pilots.", examples=[512])
    pilot_uses: int = Field(
        default=0, description="Channel uses spent on pilots, over all hops.", examples=[0]
    )
    cbr: float = Field(description="(channel_uses + pilot_uses) / (3 * width * height)", examples=[1 / 96])
    snr_db: float = Field(description="Mean Es/N0 per complex channel use as requested, dB.", examples=[10.0])
    fading: _FadingName = Field(description="As requested.", examples=["rayleigh"])
    tau_rms_s: float = Field(description="RMS delay spread as requested, s.", examples=[1e-6])
    rician_k_db: float | None = Field(
        default=None,
        description="Power of the line-of-sight path over the scattered paths as requested, dB.",
        examples=[6.0],
    )
    speed_m_s: float = Field(
        default=0.0, description="Speed of the receiver as requested, m/s.", examples=[0.0]
    )
    trace: str | None = Field(default=None, description="Name of the trace, as requested.", examples=["walk"])
    trace_start_s: float = Field(
        default=0.0, description="Start in the trace as requested, s.", examples=[0.0]
    )
    csi: _CsiName = Field(
        default="perfect",
        description="The receiver's knowledge of the gains, as requested.",
        examples=["perfect"],
    )
    equalizer: _EqualizerName = Field(default="mmse", description="As requested.", examples=["mmse"])
    reported_snr_db: float | None = Field(
        default=None,
        description="Mean SNR reported to the sender as requested, dB; null: the sender knew snr_db.",
        examples=[12.0],
    )
    no: float = Field(
        description="Noise power per channel use, with a signal power of 1; 0 over an ideal channel.",
        examples=[0.1],
    )
    gains: list[tuple[float, float]] = Field(
        description="Gains h_j as known to the receiver, [real, imaginary]; empty over an ideal channel. "
        "At most 1024, evenly spaced.",
        examples=[[(0.62, -0.41), (0.55, -0.48)]],
    )
    gain_mse: float | None = Field(
        default=None,
        description="The receiver's estimate of the mean squared error of its gains, whose mean power is 1. "
        "Null unless csi is pilots.",
        examples=[0.013],
    )
    instantaneous_snr_db: float | None = Field(
        description="Mean |h_j|^2 / no of this transmission, dB; null over an ideal channel.", examples=[9.3]
    )
    prompt_read: dict[str, PromptRead] = Field(
        default_factory=dict,
        description='Tokens that the generating model read, by model: "edge", or "cloud" if conventional.',
        examples=[{"edge": {"tokens": 9, "tokens_read": 9, "tokens_at_once": 38}}],
    )
    psnr_db: float | None = Field(
        description="PSNR of the received image against the sent one, dB; null if not decoded or not "
        "measured.",
        examples=[24.8],
    )
    scores: dict[str, float | None] = Field(
        default_factory=dict,
        description="Scores of plug-in metrics, received image against the sent one; null: not finite. Empty "
        "if not measured; without metrics that cannot score images so small.",
        examples=[{"my-metric": 0.93}],
    )
    stages: list[StageTime] = Field(
        description="Time per stage.",
        examples=[[{"stage": "edge.generate", "seconds": 0.21}]],
    )
    latency: Latency | None = Field(
        default=None,
        description="Time until the image was ready, split into compute, air and backhaul.",
        examples=[{"compute_s": 0.31, "air_s": 0.001, "backhaul_s": 0.0}],
    )
    hops: list[HopTraffic] = Field(
        description="Traffic per hop. On hops that carry symbols, these are the simulator's samples, which "
        "no network would carry: see channel_uses.",
        examples=[[{"hop": "edge-channel", "sent_bytes": 4402}]],
    )
    model_hashes: dict[str, str] = Field(
        description="SHA-256 of each model used.", examples=[{"edge": _HASH}]
    )
    cached: bool = Field(description="Whether the latent or the image came from a cache.", examples=[False])
    knowledge: list[KnowledgeUse] = Field(
        default_factory=list,
        description="Knowledge updates applied in generation.",
        examples=[[{"topic": "neon", "version": 1, "content_hash": _HASH}]],
    )
    source: str = Field(
        default="edge",
        description="Whose model generated the image: edge; or cloud, of a conventional delivery or if the "
        "demand policy had the cloud's image sent to the edge as a file.",
        examples=["edge"],
    )
    modulation: _ModulationName | None = Field(
        default=None,
        description="Constellation of the symbols; not of conventional delivery.",
        examples=["qam64"],
    )
    side_information: _SideInformationName | None = Field(
        default=None,
        description="What the codec knew besides the symbols: prompt, or none if it reads no prompts or was "
        "not to. Semantic deliveries only.",
        examples=["prompt"],
    )
    restoration: _RestorationName | None = Field(
        default=None,
        description="What the receiver did to the decoded latent before it rendered it. Semantic deliveries "
        "only.",
        examples=["none"],
    )
    target_psnr_db: float | None = Field(default=None, description="As requested, dB.", examples=[24.0])
    expected_psnr_db: float | None = Field(
        default=None,
        description="PSNR that the sender expected at the rate chosen for target_psnr_db, dB; below the "
        "target if no rate was expected to reach it.",
        examples=[24.6],
    )
    coding: ModulationAndCoding | None = Field(
        description="Modulation and coding; conventional delivery only.",
        examples=[
            {"bits_per_symbol": 4, "codeword_bits": 6144, "information_bits": 3072, "payload_bytes": 1530}
        ],
    )
    image_format: _FormatName | None = Field(
        default=None,
        description="Format of the image file; conventional delivery only.",
        examples=["webp"],
    )
    picture: PictureReport | None = Field(
        default=None,
        description="The picture of a request to /v1/pictures, to which psnr_db and cbr then relate.",
    )


_Points = list[tuple[float, float]]


class Constellation(_Response):
    """The same symbols at three points of the link, [real, imaginary]; at most 512, evenly spaced."""

    sent: _Points = Field(description="As sent.", examples=[[(0.46, -0.15)]])
    received: _Points = Field(description="After fading and noise.", examples=[[(0.32, -0.28)]])
    equalized: _Points = Field(
        description="After equalisation, as input to the decoder.", examples=[[(0.41, -0.19)]]
    )


class Details(_Response):
    """The image before transmission, and the constellation."""

    reference_b64_json: str = Field(
        description="PNG, base64, of the sent image, to which psnr_db compares: the edge's image, for a "
        "conventional delivery the cloud's, or the picture of the request.",
        examples=["iVBORw0KGgo="],
    )
    constellation: Constellation


class Consistency(_Response):
    """Cosine similarities of a received image and the cloud's image for the same prompt and seed."""

    clip: float = Field(description="CLIP-score.", examples=[0.91])
    dino: float = Field(description="DINO-score.", examples=[0.84])
    mean: float = Field(description="Mean of both.", examples=[0.875])
    prompt_read: PromptRead | None = Field(
        default=None, description="Tokens of the prompt that the cloud read for its image."
    )


class ImageData(_Response):
    """One image."""

    b64_json: str | None = Field(
        description="The file in base64; null if decoding failed or response_format is url.",
        examples=["iVBORw0KGgo="],
    )
    url: str | None = Field(
        default=None,
        description="The file as a `data:` URL; only if response_format is url, and decoding succeeded.",
        exclude_if=lambda url: url is None,  # clients take any `url` for one to fetch
        examples=["data:image/png;base64,iVBORw0KGgo="],
    )
    seed: int = Field(
        description="Seed of the image; the same request with it gives the same image.", examples=[7]
    )
    link_report: LinkReport
    consistency: Consistency | None = Field(
        default=None,
        description="Null unless requested, and null if the image was not decoded, the profile has no metric "
        "encoders, or the cloud is too busy.",
    )
    details: Details | None = Field(default=None, description="Null unless requested.")


class UsageInput(_Response):
    """Kinds of input tokens."""

    text_tokens: int = Field(examples=[9])
    image_tokens: int = Field(default=0, description="Always 0.", examples=[0])


class Usage(_Response):
    """What images cost."""

    input_tokens: int = Field(description="Tokens of the prompt, for each image.", examples=[9])
    input_tokens_details: UsageInput
    output_tokens: int = Field(
        description="Channel uses of the images, pilots included: the price of this system.", examples=[2048]
    )
    total_tokens: int = Field(description="Sum of both.", examples=[2057])


class _Picture(_Response):
    """What OpenAI's interface says of an image."""

    background: str = Field(default="opaque", description="Always opaque.", examples=["opaque"])
    output_format: Annotated[str, _listed(OutputFormat)] = Field(
        default="png", description="As requested.", examples=["png"]
    )
    quality: str = Field(default="auto", description="Always auto: there is one quality.", examples=["auto"])
    size: str | None = Field(
        default=None,
        description='WIDTHxHEIGHT in pixels; null if no image was decoded and the requested size was "auto".',
        examples=["256x256"],
    )


class ImagesResponse(_Picture):
    """The images, in the order of their seeds."""

    created: int = Field(description="Unix time, s.", examples=[_CREATED])
    data: list[ImageData]
    model: str | None = Field(default=None, description="The model that answered.", examples=["stickers"])
    usage: Usage | None = None


class PartialImageEvent(_Picture):
    """A preview of an image in a stream."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str = Field(description="The file in base64.", examples=["iVBORw0KGgo="])
    created_at: int = Field(description="Unix time, s.", examples=[_CREATED])
    partial_image_index: int = Field(description="Number of the preview of this image, from 0.", examples=[0])
    seed: int = Field(description="Seed of the image.", examples=[7])
    step: int = Field(description="Denoising steps done.", examples=[3])
    steps: int = Field(description="Denoising steps of the image.", examples=[6])


class CompletedEvent(_Picture, ImageData):
    """An image in a stream."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    created_at: int = Field(description="Unix time, s.", examples=[_CREATED])
    model: str = Field(description="The model that answered.", examples=["stickers"])
    usage: Usage


class Model(_Response):
    """A model as OpenAI's clients know it: the profile, or the profile with a topic's knowledge."""

    id: str = Field(description="PROFILE or PROFILE/TOPIC.", examples=["stickers/neon"])
    object: Literal["model"] = "model"
    created: int = Field(
        description="Unix time, s: of the topic's current version; for a profile, of the gateway's start.",
        examples=[_CREATED],
    )
    owned_by: str = Field(default="dekag", examples=["dekag"])


class ModelList(_Response):
    """The models: the profile first, then its topics by name."""

    object: Literal["list"] = "list"
    data: list[Model]


class Reports(_Response):
    """The link reports of one request, in the order of its images."""

    request_id: str = Field(examples=[EXAMPLE_REQUEST])
    created: int = Field(description="Unix time, s.", examples=[_CREATED])
    link_reports: list[LinkReport]


class DeliveryTraffic(_Response):
    """Total cost of the images of one delivery."""

    images: int = Field(examples=[12])
    decoded: int = Field(examples=[12])
    channel_uses: int = Field(description="Channel uses, pilots included.", examples=[6144])
    hops: list[HopTraffic] = Field(examples=[[{"hop": "edge-channel", "sent_bytes": 52_824}]])


class Savings(_Response):
    """Cost of semantic delivery, and of as many images at the mean cost of conventional delivery.

    The two are not of equal quality. Means of both are beside their costs, of the images whose quality was
    measured.
    """

    channel_uses_spent: int = Field(examples=[6144])
    channel_uses_instead: int = Field(examples=[40_200])
    backhaul_bytes_spent: int = Field(
        description="Bytes between cloud and edge, knowledge updates included.", examples=[169_299]
    )
    backhaul_bytes_instead: int = Field(examples=[9_600])
    psnr_db_spent: float | None = Field(
        default=None,
        description="Mean PSNR of the semantic images against those that the edge sent, dB; null if none was "
        "measured.",
        examples=[23.5],
    )
    psnr_db_instead: float | None = Field(
        default=None,
        description="Mean PSNR of the conventional images that decoded, against the cloud's, dB; null if "
        "none was measured.",
        examples=[38.1],
    )
    consistency_spent: float | None = Field(
        default=None,
        description="Mean consistency of the semantic images with the cloud's; null if no request asked for "
        "it.",
        examples=[0.84],
    )
    consistency_instead: float | None = Field(
        default=None, description="The same of the conventional images that decoded.", examples=[0.99]
    )


class BackhaulPoint(_Response):
    """A point of the curve of bytes between cloud and edge."""

    images: int = Field(description="Aligned semantic images so far.", examples=[12])
    sent_bytes: int = Field(
        description="Bytes between cloud and edge for them, knowledge updates included.", examples=[64_397]
    )


class Traffic(_Response):
    """Total cost of the images that this gateway has delivered since it started."""

    since: float = Field(description="Unix time, s.", examples=[_CREATED])
    deliveries: dict[_DeliveryName, DeliveryTraffic] = Field(
        description="Totals of each delivery requested so far.",
        examples=[{"semantic": {"images": 12, "decoded": 12, "channel_uses": 6144, "hops": []}}],
    )
    saved: Savings | None = Field(
        description="Aligned semantic delivery against conventional delivery; null until both were used."
    )
    backhaul: list[BackhaulPoint] = Field(
        default_factory=list,
        description="Bytes between cloud and edge after each aligned semantic image; of many images, evenly "
        "spaced ones and the last.",
        examples=[[{"images": 12, "sent_bytes": 64_397}]],
    )


_Prompt = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_PROMPT_CHARS)]


_Trigger = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_TRIGGER_CHARS)]


class KnowledgeRequest(_NullIsAbsent):
    """A topic to distil. Omitted fields have the defaults of the library."""

    model_config = ConfigDict(extra="forbid", strict=True)

    topic: Annotated[str, AfterValidator(_check_topic)] = Field(
        min_length=1,
        max_length=limits.MAX_TOPIC_CHARS,
        json_schema_extra=dict(TOPIC_PATTERN),
        description="Name of the topic; image requests can name it as knowledge.",
        examples=["neon"],
    )
    prompts: list[_Prompt] = Field(
        default_factory=list,
        max_length=limits.MAX_PROMPTS,
        description='Prompts of the training images; "a {red|blue} car" means either colour. '
        "If omitted, those of the topic of that name in the profile, or else in the sticker world.",
        examples=[["a {red|blue} car, neon style"]],
    )
    triggers: list[_Trigger] = Field(
        default_factory=list,
        max_length=limits.MAX_TRIGGERS,
        description="Words or phrases that select this topic for a prompt, with at most "
        f"{limits.MAX_TRIGGERS_CHARS} characters in all. If omitted, those of the topic in the profile "
        "or the sticker world; with `prompts`, the topic's name.",
        examples=[["neon"]],
    )
    images: int | None = Field(
        default=None,
        ge=RANGES["images"][0],
        le=RANGES["images"][1],
        description="Number of training images that the cloud generates.",
        examples=[96],
    )
    tokens: int | None = Field(
        default=None,
        ge=RANGES["tokens"][0],
        le=RANGES["tokens"][1],
        description="Number of pseudo-tokens of the metaword.",
        examples=[2],
    )
    rank: int | None = Field(
        default=None,
        ge=RANGES["rank"][0],
        le=RANGES["rank"][1],
        description="Rank of the LoRA.",
        examples=[5],
    )
    steps: int | None = Field(
        default=None,
        ge=RANGES["steps"][0],
        le=RANGES["steps"][1],
        description="Largest number of optimiser steps of the full form of the update. Each smaller "
        "form takes at most a fifth as many, and at most `refine_steps` of the profile (60 by default).",
        examples=[300],
    )
    seed: int | None = Field(
        default=None,
        ge=RANGES["seed"][0],
        le=RANGES["seed"][1],
        description="Seed of the cloud's images and of the training.",
        examples=[0],
    )
    force: bool = Field(
        default=False,
        description="Whether to publish the update even if its CLIP- and DINO-scores on held-out prompts are "
        "not both higher than without it and than those of the current version.",
        examples=[False],
    )


_FileName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,64}\.(json|safetensors)$")]


def _check_base64(text: Any) -> bytes:
    with contextlib.suppress(ValueError):
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    raise PydanticCustomError("base64", "must be {allowed}", {"allowed": "a file in base64"})


_Base64 = Annotated[
    bytes,
    BeforeValidator(
        _check_base64, json_schema_input_type=Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    ),
]


class PictureRequest(_NullIsAbsent):
    """A picture of one's own to send over the link instead of a generated image.

    An optional field that is null counts as omitted.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    picture: _Base64 = Field(
        description="A still picture: a PNG, JPEG, WebP, AVIF, BMP or PPM file in base64, of at most "
        f"{limits.MAX_PICTURE_BYTES} bytes and {limits.MAX_PICTURE_PIXELS} pixels.",
        examples=["iVBORw0KGgo="],
    )
    prompt: Annotated[str, AfterValidator(_check_prompt)] | None = Field(
        default=None,
        min_length=1,
        max_length=limits.MAX_PROMPT_CHARS,
        json_schema_extra={"pattern": r"\S"},
        description="What the picture shows: side information for a codec that reads prompts.",
        examples=["a parrot on a branch"],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=limits.MAX_SEED,
        description="Seed of fading and noise. If omitted, a random one is used and returned.",
        examples=[7],
    )
    link: LinkRequest = Field(default_factory=LinkRequest, description="The radio link.")
    delivery: PictureDelivery = Field(
        default="semantic",
        description="semantic: latents of the edge's autoencoder, sent with joint source-channel coding. "
        "semantic-unaligned: the same without adapters. pixels: the pixels themselves, sent with joint "
        "source-channel coding. conventional: the picture as a file, sent with LDPC and QAM.",
        examples=["semantic"],
    )
    image_format: ImageFormat = Field(
        default="webp", description="Format of the file; conventional delivery only.", examples=["webp"]
    )
    measure: bool = Field(
        default=True,
        description="Whether to measure the quality of the received picture against the sent one. Otherwise "
        "the sent picture is neither transferred nor decoded for this purpose, which saves computing time; "
        "psnr_db, picture.ssim and picture.autoencoder_psnr_db are null and scores are empty. The received "
        "picture is the same.",
        examples=[True],
    )
    details: bool = Field(
        default=False,
        description="Whether to return the picture before transmission and the constellation as well; "
        "requires measure.",
        examples=[True],
    )

    _details_need_measure = field_validator("details")(_check_details)


class PublishRequest(BaseModel):
    """Knowledge as `dekag train` saves it: knowledge.json, with a hash of the content, and other files."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: dict[_FileName, _Base64] = Field(
        min_length=1,
        max_length=limits.MAX_FILES,
        description="The files by name, in base64; only JSON and safetensors.",
        examples=[{"knowledge.json": "e30="}],
    )


class Job(_Response):
    """A distillation job."""

    id: str = Field(examples=[EXAMPLE_JOB])
    topic: str = Field(examples=["neon"])
    status: _JobStatusName = Field(
        description="Finished, failed and cancelled are final; unknown is a status that only a newer cloud "
        "service knows.",
        examples=["running"],
    )
    stage: str | None = Field(
        description='"generate" (images), "train" (steps) or "score" (images); null before the first stage.',
        examples=["train"],
    )
    done: int = Field(description="Finished images or steps of this stage.", examples=[120])
    total: int = Field(description="Largest number of images or steps of this stage.", examples=[540])
    loss: float | None = Field(description="Smoothed training loss; null outside training.", examples=[0.031])
    error: str | None = Field(
        description="Cause of the failure.", examples=["the cloud service cannot be reached"]
    )
    created: float = Field(description="Unix time of the request, s.", examples=[_CREATED + 0.5])
    started: float | None = Field(description="Unix time of the start, s.", examples=[_CREATED + 0.75])
    finished: float | None = Field(
        description="Unix time of the end, s; for a cancelled job, the time at which its distiller stopped.",
        examples=[_CREATED + 60.5],
    )
    version: int | None = Field(
        description="Version of the topic's knowledge that it published; null if none was published.",
        examples=[1],
    )
    kept_aside: str | None = Field(
        default=None,
        description="Why the update of a finished job was not published; null otherwise.",
        examples=["on held-out prompts it is not better than the edge without it by both scores"],
    )
    scores: dict[str, float] = Field(
        default_factory=dict,
        description="Scores of the update on held-out prompts, once the job is finished.",
        examples=[{"clip_before": 0.556, "clip_after": 0.243}],
    )

    @property
    def over(self) -> bool:
        """Whether the job has ended and does not change any more."""
        return self.status in ("finished", "failed", "cancelled")


class JobList(_Response):
    """Jobs, the newest first."""

    data: list[Job]


class RunningConsistency(_Response):
    """Consistency of sampled images of one version with the cloud's images."""

    samples: int = Field(description="Number of images compared.", examples=[640])
    fresh: float = Field(description="Mean consistency of the first images.", examples=[0.82])
    recent: float = Field(description="Mean consistency of the latest images.", examples=[0.8])
    drifting: bool = Field(
        description="Whether it has fallen so far that the topic should be distilled again.", examples=[False]
    )


class KnowledgeManifest(_Response):
    """One version of a topic's knowledge update."""

    topic: str = Field(examples=["neon"])
    version: int = Field(description="Version number within the topic; the highest is current.", examples=[1])
    content_hash: str = Field(description="SHA-256 of its content.", examples=[_HASH])
    base_hash: str = Field(description="Hash of the edge model for which it was made.", examples=[_HASH])
    triggers: list[str] = Field(
        description="Words or phrases that select it for a prompt.", examples=[["neon"]]
    )
    size_bytes: int = Field(description="Size of the update's files, bytes.", examples=[169_299])
    scores: dict[str, float] = Field(
        description="Scores on held-out prompts.",
        examples=[{"held_out_loss_before": 0.283, "held_out_loss_after": 0.099}],
    )
    created: float = Field(description="Unix time of publication, s.", examples=[_CREATED + 60.5])
    job: str = Field(description="Id of the job that made it, or of the upload.", examples=[EXAMPLE_JOB])
    shared: bool = Field(
        default=True, description="Whether all API keys use it; false: it belongs to one of them."
    )
    consistency: RunningConsistency | None = Field(
        default=None, description="Consistency of its images; null until one is compared."
    )


class Topic(KnowledgeManifest):
    """The current version of a topic's knowledge, and the list of its versions."""

    versions: list[int] = Field(description="Existing versions, ascending.", examples=[[1, 2]])


class KnowledgeList(_Response):
    """The current version of each topic."""

    data: list[KnowledgeManifest]
    consistency: RunningConsistency | None = Field(
        default=None, description="Consistency of images without an update; null until one is compared."
    )


class TopicDemand(_Response):
    """The demand for one topic, and what its next request gets."""

    topic: str = Field(examples=["neon"])
    requests: int = Field(description="Requests whose prompt needs the topic.", examples=[40])
    files: int = Field(
        description="Files of the cloud's images that were sent to the edge instead of an update.",
        examples=[25],
    )
    file_bytes: int = Field(description="Bytes of these files.", examples=[62_140])
    update_bytes: int = Field(
        description="Bytes of the topic's update, or expected if there is none.", examples=[64_321]
    )
    has_update: bool = Field(description="Whether the topic has an update.", examples=[False])
    sent: bool = Field(description="Whether edges were told to use the update.", examples=[False])
    next_file_bytes: int = Field(description="Bytes expected of the next file.", examples=[2_486])
    action: Action = Field(
        description="What the next request gets. update: an image drawn with the update; distil: the cloud's "
        "image as a file, while an update is made; file: the cloud's image as a file; wait: an image drawn "
        "without the update.",
        examples=["distil"],
    )
    reason: str = Field(
        description="Why, in one sentence.",
        examples=["25 files took 62,140 B, the update takes 64,321 B: an update pays"],
    )
    job: str | None = Field(
        description="Id of the distillation that the demand started last; null if it started none.",
        examples=[EXAMPLE_JOB],
    )


class Demand(_Response):
    """The demand for topics and the demand policy of the cloud."""

    policy: DemandPolicy = Field(
        description="The setting DEKAG_DEMAND_POLICY; off: nothing is counted.", examples=["auto"]
    )
    data: list[TopicDemand] = Field(description="Topics requested so far that the API key may see, by name.")
    budget_bytes: int | None = Field(
        description="Bytes, cloud to edge, that the policy may spend in a period; null: no limit.",
        examples=[None],
    )
    spent_bytes: int = Field(
        description="Bytes of files and updates in the current period.", examples=[62_140]
    )
    period_s: float = Field(description="Length of a period, s.", examples=[3600.0])
    period_ends: float | None = Field(
        description="End of the current period, Unix time, s; null: none has begun.",
        examples=[_CREATED + 3600],
    )


class Transmission(_Response):
    """The current transmission knowledge: the codec's adapters at edge and user."""

    version: int = Field(description="Version number; the highest is current.", examples=[2])
    content_hash: str = Field(
        description="SHA-256 of its content; model_hashes.adapters of a link report.", examples=[_HASH]
    )
    base_hash: str = Field(description="Hash of the codec for which it was made.", examples=[_HASH])
    size_bytes: int = Field(description="Size of its files, bytes.", examples=[77_466])
    scores: dict[str, float] = Field(
        description="Scores on held-out images.", examples=[{"mean_psnr_db": 21.05}]
    )
    created: float = Field(description="Unix time of publication, s.", examples=[_CREATED + 0.5])
    versions: list[int] = Field(description="Existing versions for this codec, ascending.", examples=[[1, 2]])


class Readiness(_Response):
    """Whether requests can be served now, and the state of each component."""

    ready: bool = Field(examples=[True])
    checks: dict[str, str] = Field(
        description="user, cloud and distillation: serving, not_serving or unreachable; redis: up if writes "
        "succeed, else down; certificates, if any: valid or expired. The system is ready if user is "
        "serving and no certificate has expired. While this gateway drains, gateway is stopping, and the "
        "system is not ready.",
        examples=[{"user": "serving", "cloud": "serving", "distillation": "not_serving", "redis": "down"}],
    )
    reasons: dict[str, str] = Field(
        default_factory=dict,
        description="Cause of each failed check.",
        examples=[{"redis": "Redis refuses to write, as its memory is full (maxmemory)"}],
    )


class FieldProblem(_Response):
    """An invalid field."""

    field: str = Field(description='Dotted name, such as "link.snr_db".', examples=["link.snr_db"])
    allowed: str = Field(description="Allowed values.", examples=[_SNR])
    detail: str = Field(examples=[f"link.snr_db must be {_SNR}"])


class ErrorBody(_Response):
    """The same problem as OpenAI's clients read it."""

    message: str = Field(description="As `detail`.", examples=[f"link.snr_db must be {_SNR}"])
    type: str = Field(
        description="invalid_request_error, authentication_error, rate_limit_error or server_error.",
        examples=["invalid_request_error"],
    )
    param: str | None = Field(description="The first invalid field.", examples=["link.snr_db"])
    code: str = Field(description="Kind of the problem.", examples=["invalid_value"])


class ErrorEvent(_Response):
    """The end of a stream that failed."""

    type: Literal["error"] = "error"
    error: ErrorBody


class Problem(_Response):
    """RFC 9457 problem details; the media type is application/problem+json."""

    type: str = Field(
        description="URN of this kind of problem.",
        examples=["urn:dekag:problem:unprocessable-content"],
    )
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=[f"link.snr_db must be {_SNR}"])
    request_id: str = Field(examples=[EXAMPLE_REQUEST])
    errors: list[FieldProblem] | None = Field(
        default=None,
        description="The invalid fields, with status 422.",
        examples=[[{"field": "link.snr_db", "allowed": _SNR, "detail": f"link.snr_db must be {_SNR}"}]],
    )
    error: ErrorBody | None = Field(default=None, description="The same problem for OpenAI's clients.")
