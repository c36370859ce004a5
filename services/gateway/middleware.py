"""What every request passes: its id and deadline, its API key, bounds on headers and body, one log line."""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common import metrics, tracing
from services.common.requests import begin_request
from services.gateway import page
from services.gateway.keys import Keys
from services.gateway.problems import from_error, problem
from services.gateway.settings import GatewaySettings

REQUEST_ID_HEADER = "X-Request-ID"
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_PROBES = frozenset({"/healthz", "/readyz"})
# Whatever is not named here needs an API key where keys are asked for, whether it exists or not.
_OPEN = _PROBES | {page.URL, "/docs", "/openapi.json"}
_OPEN_FOLDERS = (f"{page.ASSETS_URL}/", "/docs-assets/")
_log = structlog.get_logger()


class _BodyTooLargeError(Exception):
    pass


def needs_key(path: str) -> bool:
    """Whether a request for ``path`` needs an API key where keys are asked for."""
    return path not in _OPEN and not path.startswith(_OPEN_FOLDERS)


def _head_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return len(scope["raw_path"]) + len(scope["query_string"]) + fields


def _route(scope: Scope) -> str:
    """Method and path pattern that the application found, so that names do not grow with what is asked."""
    route = getattr(scope.get("route"), "path", None)
    return f"{scope['method']} {route}" if route else "no such route"


class RequestMiddleware:
    """Wraps the whole application, so that errors of any layer below become problems with the same headers.

    Args:
        app: what to wrap.
        settings: the deadline, the bounds, the hosts.
        docs_url: of the interface's own page, which runs scripts as the web page does.
        keys: one of which a request must show; None lets everyone in.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, docs_url: str, keys: Keys | None) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._policies = {docs_url: _DOCS_POLICY, page.URL: _PAGE_POLICY}
        self._hosts = {name.strip().lower() for name in settings.allowed_hosts.split(",")} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        request_id = begin_request(headers.get(REQUEST_ID_HEADER), self._settings.deadline_s)
        # whose request it is: the address, in place of which the name of an API key comes where there are any
        scope.setdefault("state", {})["client"] = scope["client"][0] if scope.get("client") else ""
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
                headers.update(_HEADERS)
                if scope["scheme"] == "https":
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], _POLICY)
                headers.setdefault("Cache-Control", "no-store")
                if "Accept-Ranges" in headers:
                    headers["Accept-Ranges"] = "none"
            await send(message)

        try:
            await self._enter(scope, receive, send_with_headers)
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
                **({} if self._keys is None else {"client": scope["state"]["client"]}),
            )
        return status

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may come in; nothing is read of the body of what may not."""
        headers, state = Headers(scope=scope), scope["state"]
        if _head_bytes(scope) > (limit := self._settings.max_header_bytes):
            detail = f"the request line and the headers must be at most {limit} bytes"
            return await problem(431, detail)(scope, receive, send)
        # Files are small and sent whole, as HTTP allows; the framework's refusals of ranges are no problems.
        scope["headers"] = [each for each in scope["headers"] if each[0] != b"range"]
        if self._keys is None:
            if not self._answers_to(headers.get("host", "")):
                detail = "this gateway does not go by that name; DEKAG_ALLOWED_HOSTS says by which it does"
                return await problem(421, detail)(scope, receive, send)
        elif needs_key(scope["path"]):
            if (key := self._keys.find(headers.get("authorization"))) is None:
                detail = "this needs an API key: send it in the header `Authorization: Bearer KEY`"
                refusal = problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
                return await refusal(scope, receive, send)
            state["client"] = key.name
            async with self._keys.turn(key):
                return await self._app(scope, await self._bounded(scope, receive), send)
        return await self._app(scope, await self._bounded(scope, receive), send)

    def _answers_to(self, host: str) -> bool:
        """Whether ``host``, of the header, is one that a page from elsewhere cannot have taken for its own.

        A page whose name was made to point here asks for that name, so that browsers hold the answer for the
        page's own.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if not host or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the body, which is small by rule, and hands it on; raises _BodyTooLargeError."""
        limit = self._settings.max_body_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > limit:
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
