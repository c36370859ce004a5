"""Images as OpenAI's clients read them: one response, or a stream of events."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import structlog
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from dekag.api import image_file
from dekag.api.schemas import (
    CompletedEvent,
    Consistency,
    ErrorEvent,
    ImageData,
    ImagesRequest,
    ImagesResponse,
    LinkReport,
    PartialImageEvent,
    Usage,
    UsageInput,
)
from dekag.errors import DekagError, InvalidInputError
from services.common.errors import http_status, public
from services.common.request_context import request_id
from services.gateway.converters import to_details, to_report
from services.gateway.openai.errors import error_body
from services.proto.user_pb2 import PreviewImage, ReceivedImage

EVENT_STREAM = "text/event-stream"
_log = structlog.get_logger()
_EVENTS = (PartialImageEvent, CompletedEvent, ErrorEvent)
_Event = TypeVar("_Event", bound=BaseModel)


async def to_image(
    received: ReceivedImage, body: ImagesRequest, consistency: Consistency | None = None
) -> ImageData:
    """The image as REST returns it: in the requested format, with its metadata.

    Args:
        received: result of the user service.
        body: the request.
        consistency: its scores, if requested.
    """
    report = to_report(received.report, request_id.get(), measured=body.measure)
    file = None
    if report.decoded:
        metadata = image_file.provenance(body, report, received.png) if body.metadata else None
        file = await _in_format(received.png, body, metadata)
    encoded = _encoded(file)
    by_url = body.response_format == "url" and not body.stream  # an event has no member for a URL
    url = f"data:image/{body.output_format};base64,{encoded}"
    return ImageData(
        b64_json=None if by_url else encoded,
        url=url if by_url and encoded is not None else None,
        seed=report.seed,
        link_report=report,
        consistency=consistency,
        details=to_details(received),
    )


def to_picture(received: ReceivedImage) -> ImageData:
    """A received picture of a client's own: a PNG without metadata, as no request generates it."""
    report = to_report(received.report, request_id.get())
    return ImageData(
        b64_json=_encoded(received.png if report.decoded else None),
        seed=report.seed,
        link_report=report,
        details=to_details(received),
    )


def response(
    images: Sequence[ImageData], size: str | None, model: str, output_format: str = "png"
) -> ImagesResponse:
    """The response with all images."""
    return ImagesResponse(
        created=int(time.time()),
        data=list(images),
        output_format=output_format,
        size=size,
        model=model,
        usage=usage([image.link_report for image in images]),
    )


def usage(reports: Sequence[LinkReport]) -> Usage:
    """Tokens read and channel uses spent for images with these reports."""
    tokens = sum(read.tokens for report in reports for read in report.prompt_read.values())
    spent = sum(report.channel_uses + report.pilot_uses for report in reports)
    return Usage(
        input_tokens=tokens,
        input_tokens_details=UsageInput(text_tokens=tokens),
        output_tokens=spent,
        total_tokens=tokens + spent,
    )


async def partial_event(
    preview: PreviewImage, body: ImagesRequest, *, index: int, seed: int
) -> PartialImageEvent:
    """The event of a preview, the one with that index of its image."""
    file = await _in_format(preview.png, body, None)
    return PartialImageEvent(
        b64_json=base64.b64encode(file).decode(),
        created_at=int(time.time()),
        output_format=body.output_format,
        size=image_file.size_of(preview.png),
        partial_image_index=index,
        seed=seed,
        step=preview.step,
        steps=preview.steps,
    )


def completed_event(image: ImageData, body: ImagesRequest, size: str | None, model: str) -> CompletedEvent:
    """The event of an image."""
    return CompletedEvent(
        **{name: getattr(image, name) for name in ImageData.model_fields},
        created_at=int(time.time()),
        output_format=body.output_format,
        size=size,
        model=model,
        usage=usage([image.link_report]),
    )


def streamed() -> dict[str, Any]:
    """A stream of events in the OpenAPI document, under the name that OpenAPI 3.2 gives to its items."""
    items = [
        {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {"const": kind.model_fields["type"].default},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": f"#/components/schemas/{kind.__name__}"},
                },
            },
        }
        for kind in _EVENTS
    ]
    return {EVENT_STREAM: {"itemSchema": {"oneOf": items}}}


def document_events(app: FastAPI) -> None:
    """Adds the events of a stream to the OpenAPI document of ``app``: no route has them as its model."""
    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_openapi()
        kinds: list[tuple[type[BaseModel], Literal["serialization"]]] = [
            (kind, "serialization") for kind in _EVENTS
        ]
        _, events = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
        for name, schema in events["$defs"].items():
            document["components"]["schemas"].setdefault(name, schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def run_ahead(events: AsyncGenerator[_Event, None]) -> AsyncGenerator[_Event, None]:
    """``events``, computed as fast as they can be, however slowly they are read.

    So what is held while they are computed does not wait for a slow client. Those of one request are few:
    at most `limits.MAX_IMAGES` images, each with `limits.MAX_PREVIEWS` previews.
    """
    ready: asyncio.Queue[_Event | None] = asyncio.Queue()

    async def compute() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    ready.put_nowait(event)
        finally:
            ready.put_nowait(None)

    computing = asyncio.create_task(compute())
    try:
        while (event := await ready.get()) is not None:
            yield event
        await computing  # raises what ended it
    finally:
        computing.cancel()
        await asyncio.gather(computing, return_exceptions=True)


def event_stream(first: BaseModel, events: AsyncGenerator[BaseModel, None]) -> StreamingResponse:
    """The response that streams events, the first of which is there already.

    An error after it becomes an event of its own, as the status has been sent.
    """

    async def lines() -> AsyncIterator[str]:
        async with aclosing(events):
            yield _event(first)
            try:
                async for event in events:
                    yield _event(event)
            except Exception as error:
                shown: DekagError = public(error, request_id.get())
                if not isinstance(error, DekagError):
                    _log.exception("an image stream failed")
                param = shown.field if isinstance(shown, InvalidInputError) else None
                yield _event(ErrorEvent(error=error_body(http_status(shown), str(shown), param)))

    return StreamingResponse(lines(), media_type=EVENT_STREAM)


def _encoded(file: bytes | None) -> str | None:
    return None if file is None else base64.b64encode(file).decode()


def _event(event: BaseModel) -> str:
    return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"  # type: ignore[attr-defined]


async def _in_format(png: bytes, body: ImagesRequest, metadata: image_file.Provenance | None) -> bytes:
    if body.output_format == "png":
        return image_file.with_metadata(png, metadata)
    return await asyncio.to_thread(
        image_file.converted, png, body.output_format, body.output_compression, metadata
    )
