"""Middleware of every request: id, deadline, API key, limits of headers and body, one log line."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dekag.api.limits import (
    MAX_PICTURE_BYTES,
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    MAX_TRIGGERS,
    MAX_TRIGGERS_CHARS,
    REQUEST_ID,
)
from dekag.errors import ExhaustedError
from services.common import metrics, tracing
from services.common.addresses import listed
from services.common.request_context import begin_request
from services.gateway import request_body, web_ui
from services.gateway.api_keys import ApiKeys, scopes_of
from services.gateway.openai.errors import absent
from services.gateway.problems import from_error, problem
from services.gateway.request_cost import PUBLICATION
from services.gateway.settings import GatewaySettings

REQUEST_ID_HEADER, CLIENT_ID_HEADER = "X-Request-ID", "X-Client-Request-ID"
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
# All other paths need an API key if keys are in use, whether they exist or not.
_OPEN = _PROBES | {web_ui.URL, "/docs", "/openapi.json"}
_REPLACED = (b"content-type", b"content-length", b"content-encoding", b"transfer-encoding")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PICTURES_PATH = "/v1/pictures"
_ORDERS = "orders of distillations"
_UPLOADS = "uploads"
_LARGE_BODIES = {_UPLOADS: 2, "pictures": 4, _ORDERS: 2}  # at a time: they are held in memory
_ENVELOPE_BYTES = 64 * 1024  # of JSON around uploaded files, and of a gRPC message around them
_CHAR_BYTES = 12  # of a character in JSON: two \uXXXX
_QUOTES_BYTES = 32  # of quotes and indent round a text
_OPEN_FOLDERS = (f"{web_ui.ASSETS_URL}/", "/docs-assets/")
_log = structlog.get_logger()


def needs_key(path: str) -> bool:
    """Whether a request for ``path`` needs an API key if keys are in use."""
    return path not in _OPEN and not path.startswith(_OPEN_FOLDERS)


def _client_request_id(headers: Headers) -> str:
    """The id that the client gave its request; empty if there is none or it is invalid.

    It is echoed and recorded beside the gateway's own, which nobody else chooses: reports, traces and samples
    go by that one.
    """
    given = headers.get(CLIENT_ID_HEADER) or headers.get(REQUEST_ID_HEADER) or ""
    return given if REQUEST_ID.fullmatch(given) else ""


def _head_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return len(scope["raw_path"]) + len(scope["query_string"]) + fields


def _route(scope: Scope) -> str:
    """Method and path pattern of the route, so that the number of names stays bounded."""
    route, method = scope.get("route"), scope["method"]
    path = getattr(route, "path", None)
    if path is None:
        return "no such route"
    known = method in (getattr(route, "methods", None) or ("GET",)) or method == "HEAD"
    return f"{method if known else 'other method'} {path}"


class RequestMiddleware:
    """Wraps the whole application, so that errors of any layer below become problems with the same headers.

    Args:
        app: what to wrap.
        settings: deadline, limits and hosts.
        docs_url: of the API documentation, a page with scripts.
        keys: the accepted API keys; None admits everyone.
    """

    def __init__(self, app: ASGIApp, settings: GatewaySettings, docs_url: str, keys: ApiKeys | None) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._held = dict.fromkeys(_LARGE_BODIES, 0)
        most = settings.max_message_bytes - _ENVELOPE_BYTES
        largest = {
            _UPLOADS: min(settings.max_upload_bytes, most), "pictures": min(MAX_PICTURE_BYTES, most)
        }  # fmt: skip
        self._largest = {kind: size * 4 // 3 + _ENVELOPE_BYTES for kind, size in largest.items()}  # in base64
        order = (MAX_PROMPTS * MAX_PROMPT_CHARS + MAX_TRIGGERS_CHARS) * _CHAR_BYTES
        order += (MAX_PROMPTS + MAX_TRIGGERS) * _QUOTES_BYTES + _ENVELOPE_BYTES
        self._largest[_ORDERS] = max(order, settings.max_body_bytes)
        self._policies = {docs_url: _DOCS_POLICY, web_ui.URL: _PAGE_POLICY}
        self._hosts = {name.lower() for name in listed(settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        _drop_last_slash(scope)
        headers = Headers(scope=scope)
        ids = {"request_id": begin_request(None, self._settings.deadline_s)}
        if client_id := _client_request_id(headers):
            ids["client_request_id"] = client_id
        # identifies the client: its address, or the name of its API key where keys are in use
        client = scope["client"][0] if scope.get("client") else ""
        # without API keys, everybody may change every topic, and new ones are shared
        scope.setdefault("state", {}).update(
            client=client,
            owner="",
            admin=self._keys is None,
            charge=lambda cost: None,
            accepted=lambda: True,
        )
        if scope["path"] in _PROBES:
            await self._answer(scope, receive, send, ids)
            return None
        attributes = {f"dekag.{name}": value for name, value in ids.items()}
        with tracing.public_span(f"gateway {scope['method']}", headers, attributes) as span:
            status = await self._answer(scope, receive, send, ids)
            span.update_name(f"gateway {_route(scope)}")
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                tracing.mark_failed(span, str(status))
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, ids: Mapping[str, str]) -> int:
        """Passes the request on and returns the status of the response, 0 if there was none."""
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = ids["request_id"]
                if client_id := ids.get("client_request_id"):
                    headers[CLIENT_ID_HEADER] = client_id
                headers.update(_HEADERS)
                if scope["app"].state.stopping.is_set():
                    headers["Connection"] = "close"  # so that the client's next request goes elsewhere
                if scope["scheme"] == "https":
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                headers["Content-Security-Policy"] = self._policies.get(scope["path"], _POLICY)
                headers.setdefault("Cache-Control", "no-store")
                if "Accept-Ranges" in headers:
                    headers["Accept-Ranges"] = "none"
            await send(message)

        try:
            await self._enter(scope, receive, send_with_headers)
        except request_body.BodyError as error:
            refusal = problem(error.status, error.detail, headers=error.headers)
            await refusal(scope, receive, send_with_headers)
        except ExhaustedError as error:
            if status:
                raise
            await from_error(error)(scope, receive, send_with_headers)
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
                **{name: value for name, value in ids.items() if name == "client_request_id"},
                **({} if self._keys is None else {"client": scope["state"]["client"]}),
            )
        return status

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on admitted requests; the body of a rejected request is not read."""
        headers, state = Headers(scope=scope), scope["state"]
        if _head_bytes(scope) > (limit := self._settings.max_header_bytes):
            detail = f"the request line and the headers must be at most {limit} bytes"
            return await problem(431, detail)(scope, receive, send)
        # HTTP allows to ignore ranges; the framework would reject some without problem details.
        scope["headers"] = [each for each in scope["headers"] if each[0] != b"range"]
        if self._keys is None:
            if not self._answers_to(headers.get("host", "")):
                detail = (
                    "this gateway does not serve that host name; DEKAG_ALLOWED_HOSTS lists those it serves"
                )
                return await problem(421, detail)(scope, receive, send)
        elif needs_key(scope["path"]):
            if (key := self._keys.find(headers.get("authorization"))) is None:
                detail = "this needs an API key: send it in the header `Authorization: Bearer KEY`"
                refusal = problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
                return await refusal(scope, receive, send)
            state.update(
                client=key.name,
                owner=key.name,
                admin=key.may("admin"),
                charge=partial(self._keys.charge, key),
                accepted=partial(self._keys.accepts, key),
            )
            if not any(map(key.may, needed := scopes_of(scope["method"], scope["path"]))):
                detail = (
                    "this API key may not do that: its line in the file of keys lacks the scope "
                    f"{' or '.join(map(repr, needed))}"
                )
                return await problem(403, detail)(scope, receive, send)
            async with self._keys.in_flight(key):
                return await self._read_and_serve(scope, receive, send)
        return await self._read_and_serve(scope, receive, send)

    async def _read_and_serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and (reason := absent(scope["path"])) is not None:
            return await problem(404, reason)(scope, receive, send)
        if (kind := _large_body(scope)) is None:
            return await self._serve(
                scope, await self._body(scope, receive, self._settings.max_body_bytes), send
            )
        if self._held[kind] == (limit := _LARGE_BODIES[kind]):
            raise ExhaustedError(f"{limit} {kind} are in progress, which is the limit")
        if kind == _UPLOADS:
            scope["state"]["charge"](PUBLICATION)  # before the body is read: a refused one costs much, too
        self._held[kind] += 1
        held = True

        def let_go() -> None:
            nonlocal held
            self._held[kind] -= held
            held = False

        async def send_freed(message: Message) -> None:
            let_go()  # the response of a request does not count: its client may read it slowly
            await send(message)

        try:
            return await self._serve(scope, await self._body(scope, receive, self._largest[kind]), send_freed)
        finally:
            let_go()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application; HEAD runs as GET, and its response ends after the headers."""
        if scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        begun, inner = asyncio.Event(), {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                begun.set()

        answering = asyncio.ensure_future(self._app(inner, receive, send_head))
        waiting = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            scope["route"] = inner.get("route")
            answering.cancel()  # an event stream would never end
            waiting.cancel()
            await asyncio.gather(answering, waiting, return_exceptions=True)

    def _answers_to(self, host: str) -> bool:
        """Whether the gateway serves ``host``, the value of the header; prevents DNS rebinding.

        In DNS rebinding, the host name of a malicious page is made to resolve to this gateway. The browser
        then sends that name and treats the responses as belonging to the page.
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

    async def _body(self, scope: Scope, receive: Receive, limit: int) -> Receive:
        """Reads the body, of ``limit`` bytes at most, and hands it on as plain JSON; raises BodyError."""
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > limit:
            raise request_body.too_large(limit)
        read, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            read += message.get("body", b"")
            more = message.get("more_body", False)
            if len(read) > limit:
                raise request_body.too_large(limit)
        body = bytes(read)
        if body and scope["method"] in _WITH_BODY:
            body = request_body.inflated(body, ",".join(headers.getlist("content-encoding")), limit)
            kind = headers.get("content-type", "").strip() or "application/json"
            if _large_body(scope) == "pictures" and request_body.is_form(headers):
                body, kind = await request_body.form_as_json(headers, body), "application/json"
            else:
                request_body.check_json(headers, body)
            fields = [each for each in scope["headers"] if each[0] not in _REPLACED]
            scope["headers"] = [
                *fields,
                (b"content-type", kind.encode("latin-1")),
                (b"content-length", b"%d" % len(body)),
            ]
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay


def _large_body(scope: Scope) -> str | None:
    """What a request carries that may be larger than other bodies, of _LARGE_BODIES."""
    method, path = scope["method"], scope["path"]
    if method == "POST" and path == "/v1/knowledge":
        return _ORDERS
    if method == "PUT" and (path == "/v1/transmission" or path.startswith("/v1/knowledge/")):
        return _UPLOADS
    return "pictures" if method == "POST" and path == _PICTURES_PATH else None


def _drop_last_slash(scope: Scope) -> None:
    """Removes a trailing slash from the path."""
    if scope["path"].strip("/") and scope["path"].endswith("/"):
        scope["path"] = scope["path"][:-1]
        scope["raw_path"] = scope["raw_path"].removesuffix(b"/")
