"""Every error as RFC 9457 problem details: what is wrong and what would be right, never a traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dekag.errors import DekagError, ExhaustedError, InvalidInputError, UnavailableError
from services.common.errors import http_status, public
from services.common.requests import request_id
from services.gateway.schemas import FieldProblem, ImagesRequest, Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2

# RFC 9110's phrases, which Python took up in 3.13: a problem's type must not depend on its version
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}
_SCHEMA = ImagesRequest.model_json_schema()


def problem(
    status: int,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A response with problem details; title and type follow from the status."""
    title = _TITLES.get(status) or HTTPStatus(status).phrase
    body = Problem(
        type=f"urn:dekag:problem:{title.lower().replace(' ', '-')}",
        title=title,
        status=status,
        detail=detail,
        request_id=request_id.get(),
        errors=errors,
    )
    return JSONResponse(body.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def from_error(error: Exception) -> JSONResponse:
    """The problem that any exception becomes."""
    shown: DekagError = public(error, request_id.get())
    retry = isinstance(shown, UnavailableError | ExhaustedError)
    errors = (
        [FieldProblem(field=shown.field, allowed=shown.allowed, detail=str(shown))]
        if isinstance(shown, InvalidInputError)
        else None
    )
    headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else None
    return problem(http_status(shown), str(shown), errors=errors, headers=headers)


def allowed(location: Sequence[int | str]) -> str:
    """What the field at ``location`` of an images request may be, in words, read from its JSON schema."""
    node = _schema_of(location)
    if choices := node.get("enum", [node["const"]] if "const" in node else None):
        return "one of " + ", ".join(map(str, choices))
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    kind = "an integer" if node.get("type") == "integer" else "a number"
    bounds = {"of at least": low, "above": above, "at most": high, "below": below}
    if said := [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]:
        return f"{kind} {' and '.join(said)}"
    if "maxLength" in node:
        return f"a string of {node.get('minLength', 0)} to {node['maxLength']} characters"
    return {"object": "an object", "integer": kind, "string": "a string"}.get(node.get("type", ""), "a value")


def _schema_of(location: Sequence[int | str]) -> Mapping[str, Any]:
    node: Mapping[str, Any] = _SCHEMA
    for name in (*location, None):
        if "anyOf" in node:
            node = next(choice for choice in node["anyOf"] if choice.get("type") != "null")
        if "$ref" in node:
            node = _SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        if name is not None:
            node = node.get("properties", {}).get(name, {})
    return node


def _field_problem(error: Mapping[str, Any]) -> FieldProblem:
    where, *location = error["loc"]
    if error["type"] == "json_invalid":
        return FieldProblem(field="body", allowed="a JSON object", detail="the body is not valid JSON")
    field, context = ".".join(map(str, location)) or where, error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        may = f"one of {', '.join(_schema_of(location[:-1]).get('properties', {}))}"
        return FieldProblem(field=field, allowed=may, detail=f"there is no field {field}; it must be {may}")
    may = context.get("allowed") or context.get("pattern") or allowed(location)
    return FieldProblem(field=field, allowed=may, detail=f"{field} must be {may}")


def install(app: FastAPI) -> None:
    """Makes every error of ``app`` a problem, and says so in its OpenAPI document."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_field_problem(each) for each in error.errors()]
        return problem(422, "; ".join(each.detail for each in errors), errors=errors)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(DekagError)
    async def _dekag(_: Request, error: DekagError) -> JSONResponse:
        return from_error(error)

    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                for response in operation["responses"].values():
                    content = response.get("content", {})
                    if MEDIA_TYPE in content:  # FastAPI puts the model under application/json beside it
                        content[MEDIA_TYPE] = content.pop("application/json", content[MEDIA_TYPE])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
