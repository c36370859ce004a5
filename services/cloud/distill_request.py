"""Validates a DistillRequest with the library's own checks before a job is queued. Imports no torch."""

from __future__ import annotations

from dekag.errors import InvalidInputError
from dekag.makd.config import DistillConfig
from dekag.makd.topics import read_topics, topic_prompts
from dekag.profile import Profile
from services.cloud.jobs import DistillSpec
from services.proto.cloud_pb2 import DistillRequest

CONFIGURABLE = ("images", "tokens", "rank", "steps", "seed")
_DRAWN = 32  # training prompts that are drawn as a trial: all of them take seconds


def from_proto(request: DistillRequest, profile: Profile) -> DistillSpec:
    """Converts a request to the specification of its job, of which `profile` has the defaults.

    Raises:
        InvalidInputError: names the field that is invalid.
        NotFoundError: no prompts were given, and there is no such topic.
    """
    config = {field.name: value for field, value in request.ListFields() if field.name in CONFIGURABLE}
    try:
        settings = DistillConfig(**{**profile.distill.given(), **config})
    except InvalidInputError as error:
        raise _renamed(error) from None
    spec = DistillSpec(request.topic, list(request.prompts), list(request.triggers), config, request.force)
    topic_prompts(
        spec.topic,
        prompts=spec.prompts,
        triggers=spec.triggers,
        topics=read_topics(profile.topics),
        count=min(settings.images, _DRAWN),
        held_out=settings.held_out,
        seed=settings.seed,
    )
    return spec


def _renamed(error: InvalidInputError) -> InvalidInputError:
    """The same error with the field name of the request: "rank", not "config.rank"."""
    renamed = InvalidInputError(error.field.removeprefix("config."), error.allowed, "")
    renamed.args = (str(error).removeprefix("config."),)
    return renamed
