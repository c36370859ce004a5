"""DistillRequest -> Order: checked with the library's own checks before a job is queued. No torch in here."""

from __future__ import annotations

import re

from dekag.errors import InvalidInputError
from dekag.makd.config import DistillConfig
from dekag.makd.topics import topic_prompts
from services.cloud.jobs import Order
from services.proto.cloud_pb2 import DistillRequest

_JOB_ID = re.compile("[0-9a-f]{32}")
CONFIGURABLE = ("images", "tokens", "rank", "steps", "seed")


def from_proto(request: DistillRequest) -> Order:
    """What a job is to do for ``request``.

    Raises:
        InvalidInputError: names the field that is not as it must be.
        NotFoundError: no prompts, and the embedded world has no such topic.
    """
    config = {field.name: value for field, value in request.ListFields() if field.name in CONFIGURABLE}
    try:
        settings = DistillConfig(**config)
    except InvalidInputError as error:
        raise _renamed(error) from None
    order = Order(request.topic, list(request.prompts), list(request.triggers), config, request.force)
    topic_prompts(
        order.topic,
        prompts=order.prompts,
        triggers=order.triggers,
        count=settings.images,
        held_out=settings.held_out,
        seed=settings.seed,
    )
    return order


def job_id(request: DistillRequest) -> str:
    """The id that the job is to have; empty if it may be any."""
    if request.job_id and not _JOB_ID.fullmatch(request.job_id):
        raise InvalidInputError("job_id", "32 lower-case hexadecimal digits", request.job_id)
    return request.job_id


def _renamed(error: InvalidInputError) -> InvalidInputError:
    """The error with the field named as the request names it: "rank", not "config.rank"."""
    renamed = InvalidInputError(error.field.removeprefix("config."), error.allowed, "")
    renamed.args = (str(error).removeprefix("config."),)
    return renamed
