"""Routes of the control plane, which call the cloud: knowledge updates and distillation jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Body, Depends, Path, Request
from fastapi.responses import Response
from fastapi.sse import EventSourceResponse

from dekag.api.schemas import (
    EXAMPLE_JOB,
    TOPIC_PATTERN,
    Demand,
    Job,
    JobList,
    KnowledgeList,
    KnowledgeManifest,
    KnowledgeRequest,
    PublishRequest,
    RunningConsistency,
    Topic,
    TopicDemand,
    Transmission,
)
from dekag.errors import ConflictError, DekagError, NotFoundError
from services.common.clients import call, stream
from services.common.knowledge import NO_KNOWLEDGE
from services.common.request_context import begin_request, request_id
from services.gateway.converters import to_distill, to_model
from services.gateway.idempotency import IdempotencyKey, job_id_for
from services.gateway.openapi_examples import KNOWLEDGE_EXAMPLES, PUBLISH_EXAMPLES
from services.gateway.problems import CALL, responses
from services.gateway.request_body import JsonRoute
from services.proto.cloud_pb2 import (
    DeleteKnowledgeRequest,
    GetKnowledgeRequest,
    JobId,
    Knowledge,
    ListDemandRequest,
    ListJobsRequest,
    ListKnowledgeRequest,
    PublishKnowledgeRequest,
    PublishTransmissionKnowledgeRequest,
    ShareKnowledgeRequest,
)
from services.proto.cloud_pb2 import Job as JobMessage
from services.proto.downlink_pb2 import GetTransmissionKnowledgeRequest

router = APIRouter(route_class=JsonRoute)
_KEY_CHECK_S = 2.0  # how often the key of an open stream is looked up
_log = structlog.get_logger()
_T = TypeVar("_T")
_TopicName = Annotated[
    str,
    Path(
        max_length=64,
        json_schema_extra=dict(TOPIC_PATTERN),
        description="Name of the topic.",
        examples=["neon"],
    ),
]
_JobName = Annotated[str, Path(max_length=64, description="Id of the job.", examples=[EXAMPLE_JOB])]


@router.post(
    "/v1/knowledge",
    tags=["knowledge"],
    status_code=202,
    responses=responses(400, 404, 409, 413, 415, 422, *CALL),
)
async def distill(
    request: Request,
    response: Response,
    body: Annotated[KnowledgeRequest, Body(openapi_examples=KNOWLEDGE_EXAMPLES)],
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Starts a job that distils a topic; the header `Location` is the path of the job."""
    order = to_distill(body)
    order.client = request.state.client
    order.owner, order.admin = request.state.owner, request.state.admin
    order.job_id = job_id_for(request.state.client, idempotency_key)
    job = to_model(await call(request.app.state.cloud.Distill, order, "cloud"), Job)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/v1/knowledge", tags=["knowledge"], responses=responses(*CALL))
async def list_knowledge(request: Request) -> KnowledgeList:
    """The current version of each topic's knowledge, sorted by topic.

    With API keys, these are the key's own topics and those that are shared; for admins, all.
    """
    message = ListKnowledgeRequest(consistency=True)
    answer = await call(request.app.state.cloud.ListKnowledge, message, "cloud")
    running = {name: to_model(each, RunningConsistency) for name, each in answer.consistency.items()}
    return KnowledgeList(
        data=[
            to_model(each, KnowledgeManifest, consistency=running.get(each.topic), shared=not each.owner)
            for each in answer.knowledge
            if may_see(request, each.owner)
        ],
        consistency=running.get(NO_KNOWLEDGE),
    )


@router.get("/v1/knowledge/{topic}", tags=["knowledge"], responses=responses(404, 422, *CALL))
async def get_knowledge(request: Request, topic: _TopicName) -> Topic:
    """The current version of one topic's knowledge, with its scores on held-out prompts."""
    return _topic(await _knowledge(request, GetKnowledgeRequest(topic=topic, consistency=True)))


@router.get(
    "/v1/knowledge/{topic}/samples",
    tags=["knowledge"],
    response_class=Response,
    responses={**responses(404, 422, *CALL), 200: {"content": {"image/png": {}}}},
)
async def get_samples(request: Request, topic: _TopicName) -> Response:
    """A PNG with images of held-out prompts; rows: cloud, edge before, edge after."""
    answer = await _knowledge(request, GetKnowledgeRequest(topic=topic, samples=True))
    if not answer.samples:
        raise NotFoundError(f"the knowledge of {topic} was published without pictures")
    return Response(answer.samples, media_type="image/png")


@router.post(
    "/v1/knowledge/{topic}/share", tags=["knowledge"], responses=responses(400, 404, 413, 415, 422, *CALL)
)
async def share_knowledge(request: Request, topic: _TopicName) -> Topic:
    """Lets every API key use a topic that belongs to one of them; only admins may, and can change it then."""
    message = ShareKnowledgeRequest(topic=topic)
    return _topic(await call(request.app.state.cloud.ShareKnowledge, message, "cloud"))


@router.delete(
    "/v1/knowledge/{topic}", tags=["knowledge"], status_code=204, responses=responses(404, 409, 422, *CALL)
)
async def delete_knowledge(request: Request, topic: _TopicName) -> None:
    """Deletes all versions of one topic's knowledge; no later image uses it.

    With API keys, a key may delete its own topics, and an admin all.
    """
    manifest = (await _knowledge(request, GetKnowledgeRequest(topic=topic))).manifest
    _check_may_change(request, manifest.owner, f"topic {topic!r}")
    await call(request.app.state.cloud.DeleteKnowledge, DeleteKnowledgeRequest(topic=topic), "cloud")


@router.put("/v1/knowledge/{topic}", tags=["knowledge"], responses=responses(400, 409, 413, 415, 422, *CALL))
async def publish_knowledge(
    request: Request,
    topic: _TopicName,
    body: Annotated[PublishRequest, Body(openapi_examples=PUBLISH_EXAMPLES)],
) -> Topic:
    """Publishes an update as the current version; 409 if it is damaged or made for another edge model.

    Edges apply it from the next request on. Publishing the current version again has no effect. The command
    `dekag publish` uses this operation.
    """
    state = request.state
    message = PublishKnowledgeRequest(topic=topic, files=body.files, owner=state.owner, admin=state.admin)
    answer = await call(request.app.state.cloud.PublishKnowledge, message, "cloud")
    return _topic(answer)


@router.get("/v1/demand", tags=["knowledge"], responses=responses(*CALL))
async def get_demand(request: Request) -> Demand:
    """The demand for each topic requested so far, and what the demand policy decides for its next request.

    It counts requests with `knowledge` auto whose prompt needs a topic. With API keys, the topics are the
    key's own and those that are shared; for admins, all.
    """
    answer = await call(request.app.state.cloud.ListDemand, ListDemandRequest(), "cloud")
    seen = [each for each in answer.demand if may_see(request, each.owner)]
    return to_model(answer, Demand, data=[to_model(each, TopicDemand) for each in seen])


@router.put("/v1/transmission", tags=["knowledge"], responses=responses(400, 409, 413, 415, 422, *CALL))
async def publish_transmission(
    request: Request, body: Annotated[PublishRequest, Body(openapi_examples=PUBLISH_EXAMPLES)]
) -> Transmission:
    """Publishes adapters of the codec as the current ones; 409 if they are damaged or made for another codec.

    Edges and users apply them from the next request on. Publishing the current adapters again has no effect.
    `dekag publish` uses this operation.
    """
    message = PublishTransmissionKnowledgeRequest(files=body.files)
    answer = await call(request.app.state.cloud.PublishTransmissionKnowledge, message, "cloud")
    return to_model(answer.manifest, Transmission, versions=list(answer.versions))


@router.get("/v1/transmission", tags=["knowledge"], responses=responses(404, *CALL))
async def get_transmission(request: Request) -> Transmission:
    """The current transmission knowledge, the codec's adapters; 404 if the codec has no adapters.

    `PUT /v1/transmission` publishes a new version.
    """
    message = GetTransmissionKnowledgeRequest()
    answer = await call(request.app.state.cloud.GetTransmissionKnowledge, message, "cloud")
    return to_model(answer.manifest, Transmission, versions=list(answer.versions))


@router.get("/v1/jobs", tags=["jobs"], responses=responses(*CALL))
async def list_jobs(request: Request) -> JobList:
    """The latest 100 jobs that the API key may see, newest first: its own, and those of nobody."""
    message = ListJobsRequest(owner=None if request.state.admin else request.state.owner)
    answer = await call(request.app.state.cloud.ListJobs, message, "cloud")
    return JobList(data=[to_model(each, Job) for each in answer.jobs if may_see(request, each.owner)])


@router.get("/v1/jobs/{name}", tags=["jobs"], responses=responses(404, 422, *CALL))
async def get_job(request: Request, name: _JobName) -> Job:
    """The current state of a job, available until a day after its end."""
    return to_model(await _job(request, name), Job)


@router.get(
    "/v1/jobs/{name}/events",
    tags=["jobs"],
    response_class=EventSourceResponse,
    responses=responses(404, 422, *CALL),
)
async def watch_job(request: Request, job: Annotated[Job, Depends(get_job)]) -> AsyncIterable[Job]:
    """The state of a job, now and after each change, as Server-Sent Events; the last one is final.

    If the stream ends earlier, request it again. It ends when its API key is removed or changed.
    """
    begin_request(request_id.get(), request.app.state.settings.stream_deadline_s)
    states = stream(request.app.state.cloud.WatchJob, JobId(id=job.id), "cloud")
    try:
        async with aclosing(_while_wanted(request, states)) as wanted:
            async for state in wanted:
                yield to_model(state, Job)
    except DekagError as error:  # the response has begun and can only be ended
        _log.warning("event stream ends early", error=str(error))


@router.get(
    "/v1/jobs/{name}/preview",
    tags=["jobs"],
    response_class=Response,
    responses={**responses(404, 422, *CALL), 200: {"content": {"image/png": {}}}},
)
async def get_preview(request: Request, name: _JobName) -> Response:
    """A PNG with images of held-out prompts during training; rows: cloud, edge in its current state."""
    await _job(request, name)
    answer = await call(request.app.state.cloud.GetPreview, JobId(id=name), "cloud")
    return Response(answer.png, media_type="image/png")


@router.delete("/v1/jobs/{name}", tags=["jobs"], responses=responses(404, 409, 422, *CALL))
async def cancel_job(request: Request, name: _JobName) -> Job:
    """Cancels a job that has not ended; it publishes nothing."""
    _check_may_change(request, (await _job(request, name)).owner, f"job {name}")
    return to_model(await call(request.app.state.cloud.CancelJob, JobId(id=name), "cloud"), Job)


def may_see(request: Request, owner: str) -> bool:
    """Whether the request's API key may see a topic, or a job of it."""
    return request.state.admin or owner in ("", request.state.owner)


def _check_may_change(request: Request, owner: str, what: str) -> None:
    """ConflictError if a topic, or the topic of a job, is shared and the request's API key is no admin's."""
    if not request.state.admin and owner != request.state.owner:
        raise ConflictError(f"{what} is shared, and only admins change it")


async def _knowledge(request: Request, message: GetKnowledgeRequest) -> Knowledge:
    """Knowledge of a topic; that of another API key does not exist."""
    missing = f"there is no knowledge of topic {message.topic!r}"
    try:
        answer: Knowledge = await call(request.app.state.cloud.GetKnowledge, message, "cloud")
    except NotFoundError:
        if request.state.admin:
            raise
        raise NotFoundError(missing) from None  # the cloud's words name the topics of others
    if not may_see(request, answer.manifest.owner):
        raise NotFoundError(missing)
    return answer


async def _job(request: Request, name: str) -> JobMessage:
    """A job; one of another API key's topic does not exist."""
    job: JobMessage = await call(request.app.state.cloud.GetJob, JobId(id=name), "cloud")
    if not may_see(request, job.owner):
        raise NotFoundError(f"there is no job {name!r}")
    return job


def _topic(answer: Knowledge) -> Topic:
    running = to_model(answer.consistency, RunningConsistency) if answer.HasField("consistency") else None
    return to_model(
        answer.manifest,
        Topic,
        versions=list(answer.versions),
        consistency=running,
        shared=not answer.manifest.owner,
    )


async def _over(request: Request) -> None:
    """Returns when the gateway shuts down, or the request's API key is removed or changed."""
    stopping: asyncio.Event = request.app.state.stopping
    while request.state.accepted():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KEY_CHECK_S):
                await stopping.wait()
            return
    _log.info("event stream ends, as its API key was removed or changed", client=request.state.client)


async def _while_wanted(request: Request, items: AsyncGenerator[_T, None]) -> AsyncGenerator[_T, None]:
    """``items`` until they end, the gateway shuts down, or the request's API key is removed or changed."""
    stop = asyncio.create_task(_over(request))
    try:
        async with aclosing(items):
            while not stop.done():
                item = asyncio.ensure_future(anext(items))
                try:
                    await asyncio.wait({item, stop}, return_when=asyncio.FIRST_COMPLETED)
                    if not item.done():
                        return
                    yield item.result()
                except StopAsyncIteration:
                    return
                finally:
                    if not item.done():
                        item.cancel()
                        await asyncio.wait({item})
    finally:
        stop.cancel()
