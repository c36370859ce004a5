"""REST to gRPC and back."""

from __future__ import annotations

import base64
import math
from typing import Any, TypeVar, get_args

import numpy as np
from google.protobuf.message import Message
from pydantic import BaseModel

from dekag.api.limits import check_picture_bytes
from dekag.api.schemas import (
    Constellation,
    Details,
    ImagesRequest,
    KnowledgeRequest,
    LinkReport,
    LinkRequest,
    PictureRequest,
    parse_size,
)
from dekag.errors import InvalidInputError
from services.common.converters import (
    DELIVERIES,
    FORMATS,
    LONG_PROMPTS,
    MODULATIONS,
    RESTORATIONS,
    SIDE_INFORMATION,
    UNKNOWN,
    enum_name,
    link_from_proto,
    link_to_proto,
    sampling_to_proto,
)
from services.common.stages import MEASURE
from services.proto import cloud_pb2, downlink_pb2, user_pb2

_Model = TypeVar("_Model", bound=BaseModel)


def to_proto(request: ImagesRequest, seed: int, owner: str) -> downlink_pb2.ProvideRequest:
    """The request for one of the images, the one with this seed, by the key of that name."""
    width, height = parse_size(request.size)
    return downlink_pb2.ProvideRequest(
        prompt=request.prompt,
        seed=seed,
        width=width,
        height=height,
        delivery=DELIVERIES[request.delivery],
        measure=request.measure,
        details=request.details,
        knowledge=request.knowledge,
        image_format=FORMATS[request.image_format],
        on_long_prompt=LONG_PROMPTS[request.on_long_prompt],
        sampling=sampling_to_proto(request.sampling),
        previews=request.partial_images if request.stream else 0,
        owner=owner,
        **_link_fields(request.link),
    )


def picture_to_proto(request: PictureRequest, seed: int) -> downlink_pb2.ProvideRequest:
    """The request for the picture with this seed; InvalidInputError if its file is empty or too large."""
    check_picture_bytes(len(request.picture))
    return downlink_pb2.ProvideRequest(
        picture=request.picture,
        prompt=request.prompt or "",
        seed=seed,
        delivery=DELIVERIES[request.delivery],
        measure=request.measure,
        details=request.details,
        image_format=FORMATS[request.image_format],
        **_link_fields(request.link),
    )


def _link_fields(link: LinkRequest) -> dict[str, Any]:
    """The fields of a ProvideRequest that a requested link sets."""
    return {
        "cbr": 0.0 if link.cbr == "auto" else link.cbr,
        "link": link_to_proto(link),
        "modulation": MODULATIONS.get(link.modulation, 0),  # auto: none of them
        "side_information": SIDE_INFORMATION[link.side_information],
        "restoration": RESTORATIONS[link.restoration],
        "target_psnr_db": link.target_psnr_db,
    }


def to_distill(request: KnowledgeRequest) -> cloud_pb2.DistillRequest:
    """The request for a job."""
    return cloud_pb2.DistillRequest(**request.model_dump(exclude_none=True))


def to_model(message: Message, kind: type[_Model], **values: Any) -> _Model:
    """The response model of a message, whose fields have the same names.

    Fields that are unset become null, and so do unspecified values of enumerations, numbers that JSON cannot
    hold and, where the model allows null, empty strings. Values of enumerations that a newer service added
    become "unknown"; fields that it added are left out.

    Args:
        message: response of a service.
        kind: class of the model.
        values: fields that the message does not have, or has in another form.

    Raises:
        pydantic.ValidationError: the message does not match the model.
    """
    for field in message.DESCRIPTOR.fields:
        if field.name not in kind.model_fields or field.name in values:
            continue
        value = _field(message, field)
        nullable = type(None) in get_args(kind.model_fields[field.name].annotation)
        values[field.name] = None if value == "" and nullable else value
    return kind.model_validate(values)


def _field(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if not field.is_repeated:
        return _plain(value, field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        items = field.message_type.fields_by_name["value"]
        return {key: _plain(value[key], items) for key in value}
    return [_plain(item, field) for item in value]


def _plain(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return {each.name: _field(value, each) for each in value.DESCRIPTOR.fields}
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return UNKNOWN if known is None else enum_name(known)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_report(report: user_pb2.LinkReport, request_id: str, *, measured: bool = True) -> LinkReport:
    """The link report as REST returns it.

    Args:
        report: of the user service.
        request_id: of the REST request.
        measured: whether it asked for the quality; the gateway itself may have asked for it otherwise.
    """
    try:
        link = link_from_proto(report.link)
    except InvalidInputError as error:  # the fault of the user service, not of the request
        raise ValueError(f"link report: {error}") from error
    values = link.model_dump() | ({} if measured else {"psnr_db": None, "scores": {}})
    found = to_model(report, LinkReport, request_id=request_id, gains=_points(report.gains), **values)
    if measured:
        return found
    return found.model_copy(update={"stages": [each for each in found.stages if each.stage != MEASURE]})


def to_details(received: user_pb2.ReceivedImage) -> Details | None:
    """The details of an image as REST returns them; None if it has none."""
    return _to_details(received.details) if received.HasField("details") else None


def _to_details(details: user_pb2.Details) -> Details:
    return Details(
        reference_b64_json=base64.b64encode(details.reference).decode(),
        constellation=Constellation(
            sent=_points(details.sent),
            received=_points(details.received),
            equalized=_points(details.equalized),
        ),
    )


def _points(iq: bytes) -> list[tuple[float, float]]:
    """(K,) serialised complex64 as pairs."""
    return [(re, im) for re, im in np.frombuffer(iq, "<f4").reshape(-1, 2).tolist()]
