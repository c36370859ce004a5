"""The REST application, made by ``create_app(settings)``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import Body, Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline

from dekag.api.limits import MAX_SEED
from dekag.api.schemas import (
    EXAMPLE_REQUEST,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    PictureRequest,
    Readiness,
    Reports,
    Traffic,
)
from dekag.documents import parse_json
from dekag.errors import InvalidInputError, NotFoundError, UnavailableError
from services.common.cache import Cache, report_key
from services.common.clients import call, open_channel
from services.common.health import Health, check_health
from services.common.request_context import request_id
from services.gateway import knowledge_routes, problems, web_ui
from services.gateway.admission import Admission
from services.gateway.api_keys import ApiKeys
from services.gateway.converters import picture_to_proto, to_image, to_proto
from services.gateway.drift_sampler import DriftSampler, consistency
from services.gateway.idempotency import IdempotencyKey, seed_for
from services.gateway.middleware import RequestMiddleware
from services.gateway.openapi_examples import IMAGES_EXAMPLES, PICTURE_EXAMPLES
from services.gateway.request_body import JsonRoute, form_schema
from services.gateway.settings import GatewaySettings
from services.gateway.usage import UsageTotals
from services.proto import cloud_pb2_grpc, user_pb2_grpc

_DOCS_URL = "/docs"
_JSON_SAFE_SEEDS = 2**53  # random seeds are exact in clients whose integers are doubles
_RETRYABLE = [
    ("dekag.v1.User", "Receive"),  # the same request gives the same image
    *(
        ("dekag.v1.Cloud", name)
        for name in (
            "GetJob", "ListJobs", "GetPreview", "ListKnowledge", "GetKnowledge", "ListDemand",
            "GetTransmissionKnowledge",
        )
    ),
]  # fmt: skip
_T = TypeVar("_T")


async def _no_query(request: Request) -> None:
    """Rejects query parameters, which no operation below /v1 has, instead of ignoring them."""
    if request.url.path.startswith("/v1/"):
        for name, value in request.query_params.multi_items():
            raise InvalidInputError(f"query.{name[:80]}", "left out, as there are no query parameters", value)


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
        SettingError: the file of API keys is invalid.
    """
    settings = settings or GatewaySettings()
    keys = ApiKeys.read(settings.api_keys_file, settings) if settings.api_keys_file else None
    traffic = UsageTotals()
    admission = Admission(slots=settings.max_in_flight, max_waiting=settings.max_waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cache = app.state.cache = Cache(settings)
        app.state.stopping = asyncio.Event()
        async with (
            open_channel(settings.user_address, settings, retryable=_RETRYABLE) as channel,
            open_channel(settings.cloud_address, settings, retryable=_RETRYABLE) as cloud_channel,
        ):
            app.state.user = user_pb2_grpc.UserStub(channel)
            app.state.user_channel, app.state.cloud_channel = channel, cloud_channel
            app.state.cloud = cloud_pb2_grpc.CloudStub(cloud_channel)
            app.state.drift_sampler = DriftSampler(app.state.cloud, settings)
            yield
            await app.state.drift_sampler.close()
        await cache.close()

    app = FastAPIOffline(
        docs_url=_DOCS_URL,
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
    problems.install(app, keys=keys is not None)
    app.include_router(knowledge_routes.router)

    async def answer(request: Request, work: Awaitable[list[ImageData]]) -> ImagesResponse:
        """The response with these images, whose reports are kept; the work ends if the client hangs up."""
        images = await _unless_gone(request, work)
        if images is None:
            raise UnavailableError("the client hung up")
        response = ImagesResponse(created=int(time.time()), data=images)
        reports = Reports(
            request_id=request_id.get(),
            created=response.created,
            link_reports=[image.link_report for image in images],
        )
        await app.state.cache.set(
            report_key(reports.request_id), reports.model_dump_json().encode(), settings.report_ttl_s
        )
        return response

    @app.post(
        "/v1/images/generations",
        tags=["images"],
        responses=problems.responses(400, 404, 409, 413, 415, 422, 429, 503, 504),
    )
    async def generate(
        request: Request,
        body: Annotated[ImagesRequest, Body(openapi_examples=IMAGES_EXAMPLES)],
        idempotency_key: IdempotencyKey = None,
    ) -> ImagesResponse:
        """Generates `n` images with seeds `seed`, `seed + 1`, ... and sends each over its own link.

        A conventional delivery that cannot be decoded is a result, not an error: `b64_json` is null and
        `link_report.decoded` is false.
        """
        last = MAX_SEED + 1 - body.n
        if body.seed is not None and body.seed > last:
            raise InvalidInputError("seed", f"at most {last} when n is {body.n}", body.seed)
        client = request.state.client
        first = body.seed
        if first is None:
            first = seed_for(client, idempotency_key, _JSON_SAFE_SEEDS - body.n)

        async def deliver() -> list[ImageData]:
            images = []
            async with admission.slot(client):
                for seed in range(first, first + body.n):
                    provide = to_proto(body, seed)
                    received = await call(app.state.user.Receive, provide, "user")
                    image = to_image(received, request_id.get())
                    traffic.add(image.link_report)
                    if body.consistency and received.png:
                        compared = await consistency(app.state.cloud, provide, received)
                        image = image.model_copy(update={"consistency": compared})
                    images.append(image)
                    app.state.drift_sampler.submit(provide, received)
            return images

        return await answer(request, deliver())

    @app.post(
        "/v1/pictures",
        tags=["images"],
        responses=problems.responses(400, 409, 413, 415, 422, 429, 503, 504),
        openapi_extra=form_schema(PictureRequest),
    )
    async def send_picture(
        request: Request,
        body: Annotated[PictureRequest, Body(openapi_examples=PICTURE_EXAMPLES)],
        idempotency_key: IdempotencyKey = None,
    ) -> ImagesResponse:
        """Sends a picture of your own over the link; as JSON with the file in base64, or as a form.

        A picture of another size than the profile's images is cut into tiles or padded, never resized:
        `link_report.picture` says how. In a form, `picture` is a file, and `link`, `seed` and `details` are
        JSON.
        """
        client = request.state.client
        seed = body.seed
        if seed is None:
            seed = seed_for(client, idempotency_key, _JSON_SAFE_SEEDS)
        provide = picture_to_proto(body, seed)

        async def deliver() -> list[ImageData]:
            async with admission.slot(client):
                received = await call(app.state.user.Receive, provide, "user")
            image = to_image(received, request_id.get())
            traffic.add(image.link_report)
            return [image]

        return await answer(request, deliver())

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
            check_health(state.user_channel, "the user service", timeout_s),
            check_health(state.cloud_channel, "the cloud service", timeout_s),
            check_health(state.cloud_channel, "the cloud service", timeout_s, "distillation"),
            state.cache.problem(),
        )
        checks = {"user": user, "cloud": cloud, "distillation": distillation}
        checks["redis"] = Health("down", f"Redis {redis}") if redis else Health("up")
        trusted = keys is None or keys.find(request.headers.get("Authorization")) is not None
        ready = Readiness(
            ready=user.state == "serving",
            checks={name: each.state for name, each in checks.items()},
            reasons={name: each.reason for name, each in checks.items() if each.reason and trusted},
        )
        return JSONResponse(ready.model_dump(), 200 if ready.ready else 503)

    web_ui.install(app, settings.profile)
    return app
