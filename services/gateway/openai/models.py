"""The profile and its topics as the models that OpenAI's clients list and select."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request

from dekag.api.limits import check_topic
from dekag.api.schemas import ImagesRequest, Model, ModelList
from dekag.errors import InvalidInputError, NotFoundError
from services.common.clients import call
from services.gateway.knowledge_routes import may_see
from services.gateway.problems import CALL, responses
from services.gateway.request_body import JsonRoute
from services.proto.cloud_pb2 import ListKnowledgeRequest

router = APIRouter(route_class=JsonRoute, tags=["models"])
_STARTED = int(time.time())


@router.get("/v1/models", responses=responses(*CALL))
async def list_models(request: Request) -> ModelList:
    """The profile, and its topics with knowledge; each can be the `model` of a request for images.

    With API keys, these are the key's own topics and those that are shared; for admins, all.
    """
    profile = request.app.state.settings.profile
    known = await call(request.app.state.cloud.ListKnowledge, ListKnowledgeRequest(), "cloud")
    topics = [
        Model(id=f"{profile}/{each.topic}", created=int(each.created))
        for each in known.knowledge
        if may_see(request, each.owner)
    ]
    return ModelList(data=[Model(id=profile, created=_STARTED), *topics])


@router.get("/v1/models/{model:path}", responses=responses(404, 422, *CALL))
async def get_model(
    request: Request,
    model: Annotated[str, Path(max_length=200, description="Id of the model.", examples=["stickers/neon"])],
) -> Model:
    """One of the models."""
    for each in (await list_models(request)).data:
        if each.id == model:
            return each
    raise NotFoundError(f"there is no model {model}; /v1/models lists them")


def with_model(body: ImagesRequest, profile: str) -> tuple[ImagesRequest, str]:
    """The request with the knowledge that its model stands for, and the name of the model that answers.

    Args:
        body: the request.
        profile: name of the profile, whose name precedes that of a topic.

    Raises:
        InvalidInputError: the name of the topic is invalid, the delivery uses no knowledge, or `knowledge`
            names other topics.
    """
    topic = (body.model or "").removeprefix(f"{profile}/")  # a profile may be a folder, with slashes
    if topic in ("", body.model):
        return body, profile
    if body.delivery != "semantic":
        allowed = f"{profile} unless delivery is semantic, which alone uses knowledge updates"
        raise InvalidInputError("model", allowed, body.model)
    try:
        check_topic(topic)
    except InvalidInputError as error:
        raise InvalidInputError(
            "model", f"{profile}, or {profile}/ and {error.allowed}", body.model
        ) from None
    if body.knowledge not in (["auto"], [topic]):
        raise InvalidInputError(
            "knowledge", f"left out when model is {body.model}", ", ".join(body.knowledge)
        )
    return body.model_copy(update={"knowledge": [topic]}), f"{profile}/{topic}"
