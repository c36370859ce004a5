"""The REST application, made by ``create_app(settings)``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Body, Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from dekag.api.image_file import size_of
from dekag.api.limits import MAX_SEED
from dekag.api.schemas import (
    EXAMPLE_REQUEST,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    LinkReport,
    PartialImageEvent,
    PictureRequest,
    Readiness,
    Reports,
    Traffic,
)
from dekag.documents import parse_json
from dekag.errors import InvalidInputError, NotFoundError, UnavailableError
from services.common.addresses import listed
from services.common.cache import Cache, report_key
from services.common.callers import check_own
from services.common.certificates import HTTPS_DIR, TLS_DIR, certificates_in
from services.common.clients import Peer, call, stream
from services.common.health import CHAIN, Health, check_health
from services.common.request_context import request_id
from services.gateway import knowledge_routes, problems, web_ui
from services.gateway.admission import Admission
from services.gateway.api_keys import ApiKeys
from services.gateway.converters import picture_to_proto, to_proto
from services.gateway.drift_sampler import DriftSampler, consistency
from services.gateway.idempotency import IdempotencyKey, seed_for
from services.gateway.middleware import RequestMiddleware
from services.gateway.openai import images, models
from services.gateway.openai.models import with_model
from services.gateway.openapi_examples import IMAGES_EXAMPLES, PICTURE_EXAMPLES
from services.gateway.request_body import JsonRoute, form_schema
from services.gateway.request_cost import images_cost, picture_cost
from services.gateway.settings import GatewaySettings
from services.gateway.usage import UsageTotals
from services.proto import cloud_pb2_grpc, user_pb2_grpc
from services.proto.downlink_pb2 import ProvideRequest
from services.proto.user_pb2 import PreviewImage, ReceivedImage

if TYPE_CHECKING:
    from services.proto.user_pb2_grpc import UserAsyncStub

_DOCS_URL, _OPENAPI_URL = "/docs", "/openapi.json"
_JSON_SAFE_SEEDS = 2**53  # random seeds are exact in clients whose integers are doubles
_RETRYABLE = [
    ("dekag.v1.User", "Receive"),  # the same request gives the same image
    ("dekag.v1.User", "ReceiveWithPreviews"),  # until its first response
    *(
        ("dekag.v1.Cloud", name)
        for name in (
            "GetJob", "ListJobs", "GetPreview", "ListKnowledge", "GetKnowledge", "ListDemand",
            "GetTransmissionKnowledge",
        )
    ),
]  # fmt: skip
_STREAMED: dict[str, Any] = {
    "description": "The images; with `stream`, events until the last image is completed, or until an event "
    "`error` with the member `error` of a problem.",
    "content": images.streamed(),
}
_T = TypeVar("_T")


async def _no_query(request: Request) -> None:
    """Rejects query parameters, which no operation below /v1 has, instead of ignoring them."""
    if request.url.path.startswith("/v1/"):
        for name, value in request.query_params.multi_items():
            raise InvalidInputError(f"query.{name[:80]}", "left out, as there are no query parameters", value)


async def _receive(
    user: UserAsyncStub, request: ProvideRequest
) -> AsyncIterator[PreviewImage | ReceivedImage]:
    """The previews of an image, if any are requested, and the image."""
    if not request.previews:
        received: ReceivedImage = await call(user.Receive, request, "user")
        yield received
        return
    async for part in stream(user.ReceiveWithPreviews, request, "user"):
        yield part.image if part.HasField("image") else part.preview


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """Result of ``work``, or None after cancelling it because the client disconnected."""
    task = asyncio.ensure_future(work)

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.create_task(hang_up())
    try:
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()
    finally:
        watcher.cancel()
        task.cancel()


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """The application; it opens its connections at start-up and closes them at shutdown.

    Args:
        settings: read from the environment if left out.

    Raises:
        SettingError: the file of API keys is invalid, or the certificate that of another service.
    """
    settings = settings or GatewaySettings()
    check_own(settings.tls_dir, "gateway")
    certificates = [
        certificates_in(folder, setting)
        for folder, setting in ((settings.tls_dir, TLS_DIR), (settings.https_dir, HTTPS_DIR))
        if folder is not None
    ]
    keys = ApiKeys.read(settings.api_keys_file, settings) if settings.api_keys_file else None
    traffic = UsageTotals()
    size_of_profile = web_ui.profile_size(settings.profile)
    admission = Admission(slots=settings.max_in_flight, max_waiting=settings.max_waiting)

    addresses = (settings.user_address, settings.cloud_address)
    connect = partial(Peer, settings=settings, retryable=_RETRYABLE, simultaneous=settings.max_in_flight)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cache = app.state.cache = Cache(settings)
        app.state.stopping = asyncio.Event()
        app.state.user_service, app.state.cloud_service = map(connect, addresses)
        app.state.user = user_pb2_grpc.UserStub(app.state.user_service.channel)
        app.state.cloud = cloud_pb2_grpc.CloudStub(app.state.cloud_service.channel)
        app.state.drift_sampler = DriftSampler(app.state.cloud, settings)
        yield
        await app.state.drift_sampler.close()
        await app.state.user_service.close()
        await app.state.cloud_service.close()
        await cache.close()

    app = FastAPIOffline(
        docs_url=_DOCS_URL,
        openapi_url=_OPENAPI_URL,
        redoc_url=None,
        static_url="/docs-assets",
        title="DeKA-g",
        version="1",
        description="Images over a simulated generative semantic communication link. The interface follows "
        "the OpenAI Images API; `link` sets the radio link, `link_report` describes the transmission.",
        lifespan=lifespan,
        redirect_slashes=False,  # RequestMiddleware removes a trailing slash
        dependencies=[Depends(_no_query)],
    )
    app.router.route_class = JsonRoute
    app.state.settings = settings
    app.add_middleware(RequestMiddleware, settings=settings, docs_url=_DOCS_URL, keys=keys)
    if origins := listed(settings.allowed_origins):
        app.add_middleware(  # outside of the other, so that browsers can read refusals too
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Client-Request-ID", "Retry-After", "Location"],
        )
    problems.install(app, keys=keys is not None)
    images.document_events(app)
    app.include_router(knowledge_routes.router)
    app.include_router(models.router)

    async def keep(reports: list[LinkReport]) -> None:
        """Keeps the reports of a request's images so far for `/v1/reports`."""
        kept = Reports(request_id=request_id.get(), created=int(time.time()), link_reports=reports)
        await app.state.cache.set(
            report_key(kept.request_id), kept.model_dump_json().encode(), settings.report_ttl_s
        )

    @app.post(
        "/v1/images/generations",
        tags=["images"],
        response_model=ImagesResponse,
        responses={200: _STREAMED, **problems.responses(400, 404, 409, 413, 415, 422, *problems.CALL)},
    )
    async def generate(
        request: Request,
        body: Annotated[ImagesRequest, Body(openapi_examples=IMAGES_EXAMPLES)],
        idempotency_key: IdempotencyKey = None,
    ) -> ImagesResponse | Response:
        """Generates `n` images with seeds `seed`, `seed + 1`, ... and sends each over its own link.

        With `stream`, the response is a stream of Server-Sent Events, each with its `type` as its name.

        A conventional delivery that cannot be decoded is a result, not an error: `b64_json` is null and
        `link_report.decoded` is false.
        """
        body, model = with_model(body, settings.profile)
        last = MAX_SEED + 1 - body.n
        if body.seed is not None and body.seed > last:
            raise InvalidInputError("seed", f"at most {last} when n is {body.n}", body.seed)
        request.state.charge(images_cost(body, size_of_profile))
        client = request.state.client
        first = body.seed
        if first is None:
            first = seed_for(client, idempotency_key, _JSON_SAFE_SEEDS - body.n)

        size = None if body.size == "auto" else body.size

        async def deliver() -> AsyncGenerator[ImageData | PartialImageEvent, None]:
            """Each image after its previews; its report is kept before it leaves."""
            nonlocal size
            reports: list[LinkReport] = []
            async with admission.slot(client):
                for seed in range(first, first + body.n):
                    provide = to_proto(body, seed, request.state.owner)
                    provide.measure |= app.state.drift_sampler.chooses(provide)
                    received, index = None, 0
                    async for part in _receive(app.state.user, provide):
                        if isinstance(part, ReceivedImage):
                            received = part
                        else:
                            yield await images.partial_event(part, body, index=index, seed=seed)
                            index += 1
                    if received is None:
                        raise UnavailableError("the user service sent no image")
                    compared = None
                    if body.consistency and received.png:
                        compared = await consistency(app.state.cloud, provide, received)
                    image = await images.to_image(received, body, compared)
                    traffic.add(image.link_report)
                    reports.append(image.link_report)
                    await keep(reports)
                    app.state.drift_sampler.submit(provide, received)
                    size = size_of(received.png) if received.png else size
                    yield image

        async def events() -> AsyncGenerator[BaseModel, None]:
            async with aclosing(deliver()) as parts:
                async for part in parts:
                    if isinstance(part, ImageData):
                        yield images.completed_event(part, body, size, model)
                    else:
                        yield part

        async def all_images() -> list[ImageData]:
            return [part async for part in deliver() if isinstance(part, ImageData)]

        if body.stream:
            parts = images.run_ahead(events())
            if (begun := await _unless_gone(request, anext(parts))) is None:
                raise UnavailableError("the client hung up")
            return images.event_stream(begun, parts)
        if (data := await _unless_gone(request, all_images())) is None:
            raise UnavailableError("the client hung up")
        return images.response(data, size, model, body.output_format)

    @app.post(
        "/v1/pictures",
        tags=["images"],
        responses=problems.responses(400, 409, 413, 415, 422, *problems.CALL),
        openapi_extra=form_schema(PictureRequest),
    )
    async def send_picture(
        request: Request,
        body: Annotated[PictureRequest, Body(openapi_examples=PICTURE_EXAMPLES)],
        idempotency_key: IdempotencyKey = None,
    ) -> ImagesResponse:
        """Sends a picture of your own over the link; as JSON with the file in base64, or as a form.

        A picture of another size than the profile's images is cut into tiles or padded, never resized:
        `link_report.picture` says how. In a form, `picture` is a file, and `link`, `seed`, `measure` and
        `details` are JSON.
        """
        # in a thread, as the header of a hostile file takes some time
        request.state.charge(await asyncio.to_thread(picture_cost, body, size_of_profile))
        client = request.state.client
        seed = body.seed
        if seed is None:
            seed = seed_for(client, idempotency_key, _JSON_SAFE_SEEDS)
        provide = picture_to_proto(body, seed)

        async def deliver() -> ImagesResponse:
            async with admission.slot(client):
                received: ReceivedImage = await call(app.state.user.Receive, provide, "user")
            picture = images.to_picture(received)
            traffic.add(picture.link_report)
            await keep([picture.link_report])
            return images.response(
                [picture], size_of(received.png) if received.png else None, settings.profile
            )

        if (sent := await _unless_gone(request, deliver())) is None:
            raise UnavailableError("the client hung up")
        return sent

    @app.get("/v1/reports/{of}", tags=["reports"], responses=problems.responses(404, 422, 503))
    async def report(
        of: Annotated[
            str,
            Path(
                pattern=r"^[A-Za-z0-9._-]{1,64}$",
                description="The X-Request-ID of the response.",
                examples=[EXAMPLE_REQUEST],
            ),
        ],
    ) -> Reports:
        """The link reports of an earlier request. They are kept for an hour by default."""
        if (stored := await app.state.cache.get(report_key(of))) is not None:
            with contextlib.suppress(ValueError):  # ignored if not written by a gateway
                return Reports.model_validate(parse_json(stored, "report"))
        if wrong := await app.state.cache.problem():
            raise UnavailableError(f"reports are kept in Redis, which {wrong}")
        raise NotFoundError(
            f"there is no report of request {of}; reports are kept for {settings.report_ttl_s} s"
        )

    @app.get("/v1/traffic", tags=["reports"])
    async def get_traffic() -> Traffic:
        """The total cost of the images that this gateway has delivered since it started."""
        return traffic.traffic()

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether this process is running."""
        return {"status": "up"}

    @app.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz(request: Request) -> Response:
        """Whether the system can deliver images now. Without a required API key, `reasons` is empty."""
        state, timeout_s = app.state, settings.ready_timeout_s
        user, cloud, distillation, redis = await asyncio.gather(
            check_health(state.user_service, "the user service", timeout_s, CHAIN),
            check_health(state.cloud_service, "the cloud service", timeout_s),
            check_health(state.cloud_service, "the cloud service", timeout_s, "distillation"),
            state.cache.problem(),
        )
        checks = {"user": user, "cloud": cloud, "distillation": distillation}
        checks["redis"] = Health("down", f"Redis {redis}") if redis else Health("up")
        expired = [each.problem for each in certificates if each.problem]
        if certificates:
            checks["certificates"] = Health("expired", expired[0]) if expired else Health("valid")
        if state.stopping.is_set():
            checks["gateway"] = Health("stopping", "the gateway is about to stop")
        trusted = keys is None or keys.find(request.headers.get("Authorization")) is not None
        ready = Readiness(
            ready=user.state == "serving" and not expired and not state.stopping.is_set(),
            checks={name: each.state for name, each in checks.items()},
            reasons={name: each.reason for name, each in checks.items() if each.reason and trusted},
        )
        return JSONResponse(ready.model_dump(), 200 if ready.ready else 503)

    web_ui.install(app, settings.profile)
    _serve_description(app)
    return app


def _serve_description(app: FastAPI) -> None:
    """Serves the OpenAPI document as bytes made once: making it anew takes long enough to delay others."""

    @cache
    def described() -> bytes:
        return bytes(JSONResponse(app.openapi()).body)

    async def openapi(_: Request) -> Response:
        return Response(described(), media_type="application/json")

    app.router.routes.insert(0, Route(_OPENAPI_URL, openapi, include_in_schema=False))  # before FastAPI's
