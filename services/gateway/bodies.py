"""Bodies of requests as JSON, of which nothing is lost: see ``dekag.documents``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from dekag.documents import DocumentError, parse_json

BODY = "body"
"""What errors call it."""


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body; DocumentError if it is no JSON, or would lose something."""
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body(), BODY)
        return self._json


class JsonRoute(APIRoute):
    """A route whose body is read without losing anything; what it would lose is a problem with status 422."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's own, with a request of another kind."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            try:
                return await handle(_JsonRequest(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, DocumentError):  # which the framework does not know
                    raise error.__cause__ from None
                raise

        return read_and_handle
