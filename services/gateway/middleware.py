"""What every request passes: its id and deadline, the bound on its body, headers, one log line."""

from __future__ import annotations

import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common import metrics, tracing
from services.common.requests import begin_request
from services.gateway import page
from services.gateway.problems import from_error, problem
from services.gateway.settings import GatewaySettings

REQUEST_ID_HEADER = "X-Request-ID"
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PROBES = frozenset({"/healthz", "/readyz"})
_log = structlog.get_logger()


class _BodyTooLargeError(Exception):
    pass


def _route(scope: Scope) -> str:
    """Method and path pattern that the application found, so that names do not grow with what is asked."""
    route = getattr(scope.get("route"), "path", None)
    return f"{scope['method']} {route}" if route else "no such route"


class RequestMiddleware:
    """Wraps the whole application, so that errors of any layer below become problems with the same headers.

    Args:
        app: what to wrap.
        settings: the deadline and the largest body.
        docs_url: of the interface's own page, which runs scripts as the web page does.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, docs_url: str) -> None:
        self._app, self._settings = app, settings
        self._policies = {docs_url: _DOCS_POLICY, page.URL: _PAGE_POLICY}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = begin_request(headers.get(REQUEST_ID_HEADER), self._settings.deadline_s)
        if scope["path"] in _PROBES:
            await self._answer(scope, receive, send, request_id)
            return None
        with tracing.serving(f"gateway {scope['method']}", headers, {"dekag.request_id": request_id}) as span:
            status = await self._answer(scope, receive, send, request_id)
            span.update_name(f"gateway {_route(scope)}")
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                tracing.failed(span, str(status))
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Passes the request on and returns the status of what came back, 0 if nothing did."""
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], _POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, await self._bounded(scope, receive), send_with_headers)
        except _BodyTooLargeError:
            detail = f"the body must be at most {self._settings.max_body_bytes} bytes"
            await problem(413, detail)(scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request failed")
            if status:
                raise
            await from_error(error)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            metrics.REQUEST_SECONDS.labels(_route(scope), str(status)).observe(seconds)
            log = _log.debug if scope["path"] in _PROBES else _log.info
            log(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(seconds, 4),
            )
        return status

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the body, which is small by rule, and hands it on; raises _BodyTooLargeError."""
        limit = self._settings.max_body_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise _BodyTooLargeError
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise _BodyTooLargeError
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay
