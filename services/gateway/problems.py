"""Errors as RFC 9457 problem details, with the cause and the allowed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import Scope

from dekag.api.schemas import FieldProblem, Problem
from dekag.errors import DekagError, ExhaustedError, InvalidInputError, UnavailableError
from services.common.errors import CallerError, http_status, public
from services.common.request_context import request_id
from services.gateway.openai.errors import error_body

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
CALL = (429, 503, 504)
"""Statuses of an operation that calls another service: it may be busy, away or slow."""
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

# Names of RFC 9110, which Python has since 3.13: the type of a problem must not depend on the Python version
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


def title(status: int) -> str:
    """The name of an HTTP status."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def problem(
    status: int,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A response with problem details; title and type follow from the status."""
    name = title(status)
    error = error_body(status, detail, errors[0].field if errors else None)
    body = Problem(
        type=f"urn:dekag:problem:{name.lower().replace(' ', '-')}",
        title=name,
        status=status,
        detail=detail,
        request_id=request_id.get(),
        errors=errors,
    )
    content = {**body.model_dump(exclude_none=True), "error": error.model_dump()}
    return JSONResponse(content, status, headers, MEDIA_TYPE)


def from_error(error: Exception) -> JSONResponse:
    """The problem response of any exception."""
    shown: DekagError = public(error, request_id.get())
    errors = (
        [FieldProblem(field=shown.field, allowed=shown.allowed, detail=str(shown))]
        if isinstance(shown, InvalidInputError)
        else None
    )
    headers = None
    if isinstance(shown, ExhaustedError):
        headers = {"Retry-After": str(shown.retry_after_s or RETRY_AFTER_S)}
    elif isinstance(shown, UnavailableError | CallerError):
        headers = {"Retry-After": str(RETRY_AFTER_S)}
    return problem(http_status(shown), str(shown), errors=errors, headers=headers)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of an operation, for the OpenAPI document."""
    return {status: {"model": Problem, "content": {MEDIA_TYPE: {}}} for status in statuses}


_NO_KEY = {
    "description": "The API key is missing or unknown.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}

_TOO_MANY = {
    **_NO_KEY,
    "description": "The API key has reached a limit; `Retry-After` says when to come back.",
}

_NO_SCOPE = {**_NO_KEY, "description": "The API key lacks the scope for this."}


@cache
def _body_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


class _Schema:
    """The JSON schema of the body of a route."""

    def __init__(self, route: Any) -> None:
        field = getattr(route, "body_field", None)
        self._root = _body_schema(field.field_info.annotation) if field is not None else {}

    def allowed(self, location: Sequence[int | str]) -> str:
        """The allowed values of the field at ``location``, in words."""
        node = self.at(location)
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
        if "maxItems" in node:
            return f"a list of at most {node['maxItems']}"
        kinds = {"object": "an object", "integer": kind, "string": "a string", "array": "a list"}
        kinds["boolean"] = "true or false"
        return kinds.get(node.get("type", ""), "a value")

    def at(self, location: Sequence[int | str]) -> Mapping[str, Any]:
        """The schema of the field at ``location``; empty if there is none."""
        node: Mapping[str, Any] = self._root
        for name in (*location, None):
            if "anyOf" in node:
                node = next(choice for choice in node["anyOf"] if choice.get("type") != "null")
            if "$ref" in node:
                node = self._root["$defs"][node["$ref"].rsplit("/", 1)[-1]]
            if isinstance(name, int):
                node = node.get("items", {})
            elif name is not None:
                node = node.get("properties", {}).get(name, {})
        return node


def _field_problem(error: Mapping[str, Any], schema: _Schema) -> FieldProblem:
    where, *location = error["loc"]
    field, context = ".".join(map(str, location)) or where, error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        may = f"one of {', '.join(schema.at(location[:-1]).get('properties', {}))}"
        return FieldProblem(field=field, allowed=may, detail=f"there is no field {field}; it must be {may}")
    if where != "body" and "max_length" in context:
        may = f"a string of at most {context['max_length']} characters"
    else:
        may = context.get("allowed") or context.get("pattern") or schema.allowed(location)
    return FieldProblem(field=field, allowed=may, detail=f"{field} must be {may}")


def _methods(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that the path of the request supports."""
    found, root = [], scope.get("app_root_path", "")
    for method in _METHODS:
        asked = {**scope, "method": method, "root_path": root}
        full = [route for route in app.router.routes if route.matches(dict(asked))[0] is Match.FULL]
        if full and (method == "GET" or not all(isinstance(route, Mount) for route in full)):
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return [*found, "OPTIONS"]


def install(app: FastAPI, *, keys: bool) -> None:
    """Turns every error of ``app`` into a problem response, and documents this in its OpenAPI document.

    Args:
        app: application to change.
        keys: document that API keys are required as well.
    """

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        schema = _Schema(request.scope["route"])
        errors = [_field_problem(each, schema) for each in error.errors()]
        return problem(422, "; ".join(each.detail for each in errors), errors=errors)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code != 405:
            return problem(error.status_code, str(error.detail), headers=error.headers)
        allowed = ", ".join(_methods(app, request.scope))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        return problem(405, f"this path supports {allowed}", headers={"Allow": allowed})

    @app.exception_handler(DekagError)
    async def _dekag(_: Request, error: DekagError) -> JSONResponse:
        return from_error(error)

    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = make_openapi()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if keys and path.startswith("/v1/") and method != "get":
                    operation["responses"]["403"] = _NO_SCOPE
                if keys and path.startswith("/v1/"):
                    operation["security"] = [{"key": []}]
                    operation["responses"]["401"] = _NO_KEY
                    operation["responses"].setdefault("429", _TOO_MANY)
                for response in operation["responses"].values():
                    content = response.get("content", {})
                    if (
                        MEDIA_TYPE in content
                    ):  # FastAPI puts the model under the operation's own type beside it
                        described = [each for each in content.values() if "schema" in each]
                        content.clear()
                        content[MEDIA_TYPE] = described[0] if described else {}
        if keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
