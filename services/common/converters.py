"""Messages <-> library types. Everything that comes from outside is validated here and nowhere else.

Imports no torch, so that the gateway can use it. Errors name fields as REST writes them: ``link.snr_db``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from dekag.api.limits import (
    MAX_PAYLOAD_BYTES,
    MAX_SEEDS,
    check_adapter_scale,
    check_cbr,
    check_details,
    check_guidance_scale,
    check_knowledge,
    check_negative_prompt,
    check_payload_bytes,
    check_picture_bytes,
    check_previews,
    check_prompt,
    check_seed,
    check_size,
    check_steps,
    check_target_psnr_db,
)
from dekag.api.schemas import Modulation
from dekag.errors import InvalidInputError
from dekag.generation.request import DEFAULT_SAMPLING, Sampling
from dekag.link.conditions import LinkConditions
from services.proto import cloud_pb2, downlink_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumValueDescriptor

    from dekag.link.digital import ModulationAndCoding
    from dekag.pictures import Tiling
    from dekag.pixel_modules import AnyPixelCodec
    from dekag.profile import Profile


class _Sized(Protocol):
    """A message with the size of an image."""

    width: int
    height: int


UNKNOWN = "unknown"
"""What REST calls a value of an enumeration that only a newer service knows."""


def enum_values(enum: Any) -> dict[str, Any]:
    """The values of a protobuf enumeration by the names of REST: DELIVERY_SEMANTIC is "semantic"."""
    return {name: value.number for value in enum.DESCRIPTOR.values if (name := enum_name(value))}


def enum_name(value: EnumValueDescriptor) -> str | None:
    """What REST calls a value of a protobuf enumeration; None for the unspecified one."""
    prefix = value.type.values[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower().replace("_", "-") if value.number else None


DELIVERIES = enum_values(downlink_pb2.Delivery)
FADINGS = {name: value for name, value in enum_values(downlink_pb2.Fading).items() if name != "custom"}
_FADING_NAMES = {value: name for name, value in FADINGS.items()}
CSIS = enum_values(downlink_pb2.Csi)
MODULATIONS = enum_values(downlink_pb2.Modulation)
SIDE_INFORMATION = enum_values(downlink_pb2.SideInformation)
RESTORATIONS = enum_values(downlink_pb2.Restoration)
EQUALIZERS = enum_values(downlink_pb2.Equalizer)
FORMATS = enum_values(downlink_pb2.ImageFormat)
LONG_PROMPTS = enum_values(downlink_pb2.LongPrompt)
DELIVERED_FORMATS = {name: value for name, value in FORMATS.items() if name != "png"}
DEFAULT_FORMAT = "webp"
_UNITS = {"db": " dB", "m_s": " m/s", "s": " s"}  # by how the field's name ends


@dataclass(frozen=True, slots=True)
class DeliveryRequest:
    """A validated ProvideRequest.

    Attributes:
        prompt: what to draw, 1 to 1000 characters, not blank.
        seed: 0 to 2**63 - 1.
        width, height: pixels, multiples of 32 from 64 to twice the profile's size.
        delivery: "semantic", "semantic-unaligned" (no knowledge updates and no adapters), "conventional", or
            "pixels" (of a picture only).
        cbr: channel uses / (3 * width * height), above 0 and at most 1/6; 0 if conventional, and where the
            sender is to choose.
        link: the radio conditions.
        measure: whether the sender also sends what the quality is measured against.
        details: whether the receiver returns that and its constellation; with `measure` only.
        knowledge: topics whose updates draw the latent, 1 to 4; () for none; None for those that the prompt
            needs. Semantic delivery only.
        modulation: where the codec's symbols may lie; None: the sender chooses. Not conventional.
        side_information: "prompt" or "none": what sender and receiver know besides the symbols.
        restoration: "none" or "denoiser": what the receiver does to the decoded latent. Semantic delivery
            only.
        target_psnr_db: the sender chooses the smallest rate that it expects to reach this, 5 to 60; None if
            `cbr` says the rate. Semantic delivery only.
        image_format: "webp", "avif" or "jpeg": the image file of a conventional delivery.
        on_long_prompt: "read" or "refuse": what becomes of a prompt that a model does not read at once.
        picture: the file of a picture to send instead of a generated image; None to generate one. With a
            picture, the prompt may be empty, and width and height are 0 until the file has been decoded, then
            those of the picture.
        sampling: settings of the denoiser; an adapter scale for semantic delivery only.
        previews: number of the denoiser's predictions to show, 0 to 3; semantic deliveries only.
        owner: name of the API key whose own topics are used besides shared ones; empty: shared ones only.
    """

    prompt: str
    seed: int
    width: int
    height: int
    delivery: str
    cbr: float
    link: LinkConditions
    measure: bool
    knowledge: tuple[str, ...] | None = None
    modulation: Modulation | None = None
    side_information: str = "prompt"
    restoration: str = "none"
    target_psnr_db: float | None = None
    image_format: str = DEFAULT_FORMAT
    details: bool = False
    on_long_prompt: str = "read"
    picture: bytes | None = field(default=None, repr=False)
    sampling: Sampling = DEFAULT_SAMPLING
    previews: int = 0
    owner: str = ""

    @property
    def sends_latents(self) -> bool:
        """Whether latents are sent, and not pixels or an image file."""
        return self.delivery.startswith("semantic")

    @property
    def jscc(self) -> bool:
        """Whether a codec carries it, and not an image file."""
        return self.delivery != "conventional"

    @property
    def source_values(self) -> int:
        """3 * width * height: the denominator of the channel bandwidth ratio."""
        return 3 * self.width * self.height


def tiling_of(
    request: DeliveryRequest, width: int, height: int, size: int, pixel_codec: AnyPixelCodec | None
) -> Tiling:
    """How the picture of a request is cut: the same at both ends.

    Args:
        request: for the picture.
        width, height: of the picture, pixels.
        size: of the profile's images, pixels.
        pixel_codec: of the profile; None if it has none.
    """
    from dekag.pictures import Tiling

    if request.delivery == "pixels" and pixel_codec is not None:
        return Tiling.of(width, height, pixel_codec.tile, pixel_codec.step)
    return Tiling.of(width, height, size)


def size_from_proto(message: _Sized, profile: Profile) -> tuple[int, int]:
    """Validated width and height of a message; those that are unset (0) become the profile's size."""
    return check_size(message.width or profile.size, message.height or profile.size, profile.largest)


def request_from_proto(message: downlink_pb2.ProvideRequest, profile: Profile | None) -> DeliveryRequest:
    """Validates a request; an unset link becomes the default one, an unset size the profile's.

    Args:
        message: the request.
        profile: of the service; None for one without models, to which the size means nothing.

    Raises:
        InvalidInputError: names the first field that is outside what is allowed.
    """
    delivery = _name_of(DELIVERIES, message.delivery, "delivery")
    knowledge = _knowledge(message.knowledge, delivery)
    target = check_target_psnr_db(message.target_psnr_db) if message.HasField("target_psnr_db") else None
    picture = _picture(message)
    if delivery == "pixels" and picture is None:
        others = ", ".join(name for name in DELIVERIES if name != delivery)
        raise InvalidInputError("delivery", f"one of {others} without a picture", delivery)
    size = message.width, message.height
    if profile is not None and picture is None:
        size = size_from_proto(message, profile)
    return DeliveryRequest(
        prompt=message.prompt if picture is not None and not message.prompt else check_prompt(message.prompt),
        seed=check_seed(message.seed),
        width=size[0],
        height=size[1],
        delivery=delivery,
        cbr=_rate(message.cbr, target, delivery),
        link=link_from_proto(message.link) if message.HasField("link") else LinkConditions(),
        measure=message.measure,
        details=check_details(message.details, message.measure),
        knowledge=knowledge,
        modulation=_modulation(message.modulation),
        side_information=_side_information(message.side_information),
        restoration=_restoration(message.restoration, delivery),
        target_psnr_db=target,
        image_format=image_format(message.image_format),
        on_long_prompt=long_prompt(message.on_long_prompt),
        picture=picture,
        sampling=sampling_from_proto(message.sampling, delivery),
        previews=check_previews(message.previews),
        owner=message.owner,
    )


def _picture(message: downlink_pb2.ProvideRequest) -> bytes | None:
    """The file of the picture to send; InvalidInputError where it does not go with the other fields."""
    if not message.HasField("picture"):
        return None
    check_picture_bytes(len(message.picture))
    if message.width or message.height:
        raise InvalidInputError(
            "size", "left out with a picture, which has its own", f"{message.width}x{message.height}"
        )
    if list(message.knowledge) not in ([], ["auto"], ["none"]):
        allowed = "left out with a picture, which no model generates"
        raise InvalidInputError("knowledge", allowed, ", ".join(message.knowledge))
    for setting, value in message.sampling.ListFields():
        raise InvalidInputError(setting.name, "left out with a picture, which no model generates", value)
    if message.previews:
        raise InvalidInputError("partial_images", "left out with a picture", message.previews)
    return message.picture


def traffic_bytes(message: downlink_pb2.ProvideRequest) -> int:
    """Serialised size of a request without its picture, which the sender has."""
    if not message.HasField("picture"):
        return message.ByteSize()
    without = downlink_pb2.ProvideRequest()
    without.CopyFrom(message)
    without.ClearField("picture")
    return without.ByteSize()


def request_to_proto(request: DeliveryRequest) -> downlink_pb2.ProvideRequest:
    """The message that ``request_from_proto`` reads back as ``request``."""
    return downlink_pb2.ProvideRequest(
        prompt=request.prompt,
        seed=request.seed,
        width=request.width,
        height=request.height,
        delivery=DELIVERIES[request.delivery],
        cbr=request.cbr,
        link=link_to_proto(request.link),
        measure=request.measure,
        details=request.details,
        knowledge=() if request.knowledge is None else request.knowledge or ("none",),
        modulation=MODULATIONS.get(request.modulation or "auto", 0),
        side_information=SIDE_INFORMATION[request.side_information],
        restoration=RESTORATIONS[request.restoration],
        target_psnr_db=request.target_psnr_db,
        image_format=FORMATS[request.image_format],
        on_long_prompt=LONG_PROMPTS[request.on_long_prompt],
        picture=request.picture,
        sampling=sampling_to_proto(request.sampling),
        previews=request.previews,
        owner=request.owner,
    )


def sampling_from_proto(message: downlink_pb2.Sampling, delivery: str) -> Sampling:
    """Validated settings of the denoiser; unset fields become those of the model."""
    scale = check_adapter_scale(message.adapter_scale) if message.HasField("adapter_scale") else 1.0
    if scale != 1.0 and delivery != "semantic":
        allowed = "left out unless delivery is semantic, which alone uses adapters of knowledge updates"
        raise InvalidInputError("adapter_scale", allowed, scale)
    guided = message.HasField("guidance_scale")
    return Sampling(
        steps=check_steps(message.steps) if message.HasField("steps") else None,
        guidance_scale=check_guidance_scale(message.guidance_scale) if guided else None,
        negative_prompt=check_negative_prompt(message.negative_prompt),
        adapter_scale=scale,
    )


def sampling_to_proto(sampling: Sampling) -> downlink_pb2.Sampling | None:
    """The message that ``sampling_from_proto`` reads back as ``sampling``; None for the defaults."""
    if sampling == DEFAULT_SAMPLING:
        return None
    return downlink_pb2.Sampling(
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        negative_prompt=sampling.negative_prompt,
        adapter_scale=None if sampling.adapter_scale == 1.0 else sampling.adapter_scale,
    )


def check_guided(sampling: Sampling, guidance_scale: float) -> None:
    """Raises InvalidInputError if a negative prompt would be ignored at the guidance in use."""
    if sampling.negative_prompt and guidance_scale <= 1:
        allowed = f"left out unless guidance_scale is above 1; it is {guidance_scale:g}"
        raise InvalidInputError("negative_prompt", allowed, sampling.negative_prompt)


def long_prompt(value: int) -> str:
    """What is to become of a long prompt; "read" where that is unset."""
    return _name_of(LONG_PROMPTS, value, "on_long_prompt") if value else "read"


def too_long(tokens: int, at_once: int, model: str) -> InvalidInputError:
    """What is said of a prompt that is refused, since on_long_prompt asks for that."""
    allowed = f'of at most {at_once} tokens of the {model} model, as on_long_prompt is "refuse"'
    return InvalidInputError("prompt", allowed, f"{tokens} tokens")


def link_from_proto(message: downlink_pb2.LinkConditions) -> LinkConditions:
    """Validated radio conditions; InvalidInputError names ``link.<field>``."""
    values: dict[str, Any] = {
        "snr_db": message.snr_db,
        # whether a plug-in of that name is known here, LinkConditions says
        "fading": message.custom_fading
        if message.fading == downlink_pb2.FADING_CUSTOM
        else _FADING_NAMES.get(message.fading, ""),
        "tau_rms_s": message.tau_rms_s,
        "speed_m_s": message.speed_m_s,
        "trace": message.trace or None,
        "trace_start_s": message.trace_start_s,
    }
    for name in ("rician_k_db", "reported_snr_db"):
        if message.HasField(name):
            values[name] = getattr(message, name)
    if message.csi:  # what older clients do not send takes the default
        values["csi"] = _name_of(CSIS, message.csi, "link.csi")
    if message.equalizer:
        values["equalizer"] = _name_of(EQUALIZERS, message.equalizer, "link.equalizer")
    try:
        return LinkConditions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        allowed = first.get("ctx", {}).get("allowed") or _allowed(field)
        raise InvalidInputError(f"link.{field}", allowed, values[field]) from None


def link_to_proto(link: LinkConditions) -> downlink_pb2.LinkConditions:
    """The message of ``link``."""
    return downlink_pb2.LinkConditions(
        snr_db=link.snr_db,
        fading=FADINGS.get(link.fading, downlink_pb2.FADING_CUSTOM),
        custom_fading="" if link.fading in FADINGS else link.fading,
        tau_rms_s=link.tau_rms_s,
        rician_k_db=link.rician_k_db,
        speed_m_s=link.speed_m_s,
        trace=link.trace or "",
        trace_start_s=link.trace_start_s,
        csi=CSIS[link.csi],
        equalizer=EQUALIZERS[link.equalizer],
        reported_snr_db=link.reported_snr_db,
    )


def coding_from_proto(
    message: downlink_pb2.ModulationAndCoding, largest_file: int = MAX_PAYLOAD_BYTES
) -> ModulationAndCoding:
    """Validated modulation and coding; bounds what a hostile header could make a receiver allocate."""
    from dekag.link.digital import ModulationAndCoding

    n, k = message.codeword_bits, message.information_bits
    if message.bits_per_symbol not in range(1, 11):
        raise InvalidInputError("coding.bits_per_symbol", "between 1 and 10", message.bits_per_symbol)
    if not 0 < n <= 65_536:
        raise InvalidInputError("coding.codeword_bits", "between 1 and 65536", n)
    if not 0 < k < n or k > 8_448:
        raise InvalidInputError("coding.information_bits", "between 1 and 8448, below codeword_bits", k)
    check_payload_bytes(message.payload_bytes, largest_file)
    return ModulationAndCoding(bits_per_symbol=message.bits_per_symbol, codeword_bits=n, information_bits=k)


def coding_to_proto(coding: ModulationAndCoding, payload: int) -> downlink_pb2.ModulationAndCoding:
    """The message of ``coding`` for a payload of that many bytes."""
    return downlink_pb2.ModulationAndCoding(
        bits_per_symbol=coding.bits_per_symbol,
        codeword_bits=coding.codeword_bits,
        information_bits=coding.information_bits,
        payload_bytes=payload,
    )


def latents_to_bytes(latents: npt.NDArray[np.float32]) -> bytes:
    """Latents of any shape as little-endian float32 in C order."""
    return np.ascontiguousarray(latents, dtype="<f4").tobytes()


def latents_from_bytes(data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Writable float32 latents of ``shape``; InvalidInputError on another size, 0 or a value not finite."""
    if not data or len(data) != 4 * math.prod(shape):
        raise InvalidInputError("latents", f"{4 * math.prod(shape)} bytes", f"{len(data)} bytes")
    values = np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise InvalidInputError("latents", "finite numbers", "NaN or infinity")
    return values


def image_format(value: int) -> str:
    """Name of the format of a conventional delivery; "webp" for one that is unset."""
    return _name_of(DELIVERED_FORMATS, value, "image_format") if value else DEFAULT_FORMAT


def image_formats(message: cloud_pb2.GenerateRequest) -> list[str]:
    """Names of the formats asked for: of FORMATS, each once."""
    names = [_name_of(FORMATS, value, "formats") for value in message.formats]
    if not names or len(set(names)) < len(names):
        raise InvalidInputError("formats", f"some of {', '.join(FORMATS)}, each once", names)
    return names


def seeds(message: cloud_pb2.GenerateRequest) -> list[int]:
    """The seeds asked for, 1 to 64 of them."""
    if not 0 < len(message.seeds) <= MAX_SEEDS:
        raise InvalidInputError("seeds", f"1 to {MAX_SEEDS} seeds", f"{len(message.seeds)} seeds")
    return [check_seed(value) for value in message.seeds]


def _knowledge(names: Sequence[str], delivery: str) -> tuple[str, ...] | None:
    """``DeliveryRequest.knowledge``; InvalidInputError if topics are named for a delivery that uses none."""
    knowledge = check_knowledge(names)
    if knowledge and delivery != "semantic":
        allowed = '"auto" or "none" unless delivery is semantic, which alone uses knowledge updates'
        raise InvalidInputError("knowledge", allowed, ", ".join(names))
    return () if delivery == "semantic-unaligned" else knowledge


def _rate(value: float, target: float | None, delivery: str) -> float:
    """``DeliveryRequest.cbr``; InvalidInputError where rate, target and delivery do not go together."""
    if target is not None and delivery != "semantic":
        allowed = "left out unless delivery is semantic, which alone chooses its rate"
        raise InvalidInputError("link.target_psnr_db", allowed, target)
    if target is not None and value != 0:
        raise InvalidInputError("link.cbr", '"auto" with link.target_psnr_db', value)
    return 0.0 if target is not None or delivery == "conventional" else check_cbr(value)


def _modulation(value: int) -> Modulation | None:
    if not value:
        return None
    name: Modulation = _name_of(MODULATIONS, value, "link.modulation")  # type: ignore[assignment]
    return name


def _side_information(value: int) -> str:
    return _name_of(SIDE_INFORMATION, value, "link.side_information") if value else "prompt"


def _restoration(value: int, delivery: str) -> str:
    name = _name_of(RESTORATIONS, value, "link.restoration") if value else "none"
    if name != "none" and delivery != "semantic":
        allowed = "none unless delivery is semantic, whose adapters say how to restore"
        raise InvalidInputError("link.restoration", allowed, name)
    return name


def _name_of(names: dict[str, Any], value: int, field: str) -> str:
    name = next((name for name, number in names.items() if number == value), None)
    if name is None:
        raise InvalidInputError(field, " or ".join(names), value or "nothing")
    return name


def _allowed(field: str) -> str:
    metadata = LinkConditions.model_fields[field].metadata
    limits = {
        key: getattr(each, key)
        for each in metadata
        for key in ("ge", "le", "pattern")
        if getattr(each, key, None) is not None
    }
    if "pattern" in limits:
        return f"a name like {limits['pattern']}"
    unit = next(unit for ending, unit in _UNITS.items() if field.endswith(f"_{ending}"))
    return f"between {limits['ge']:g} and {limits['le']:g}{unit}"
