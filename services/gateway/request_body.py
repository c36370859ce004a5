"""Request bodies: limited in size and values, decompressed, parsed as lossless JSON (``dekag.documents``).

A form with a picture becomes the JSON that says the same, so that routes know JSON alone.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from email.message import Message as MimeMessage
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from dekag.documents import MAX_NODES, DocumentError, parse_json

BODY = "body"
"""Name of the body in errors."""

COMPRESSIONS = "gzip, deflate"
_GZIP, _ZLIB, _RAW = 31, 15, -15  # formats, as numbered by zlib
_MAX_MEMBERS = 16  # of one gzip file; each costs a copy of the rest
_CHARSETS = ("utf-8", "utf8", "us-ascii")
_FORM = "multipart/form-data"
_JSON_FIELDS = ("details", "link", "measure", "seed")  # of a form; all others are text
_MAX_FIELDS, _MAX_FIELD_BYTES = 16, 64 * 1024  # of a form, without its file


class BodyError(Exception):
    """A rejected body.

    Attributes:
        status: status of the response.
        detail: the cause, and what is allowed.
        headers: headers of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def too_large(limit: int) -> BodyError:
    """The error of a body of more than ``limit`` bytes."""
    return BodyError(413, f"the body must be at most {limit} bytes")


def check_json(headers: Headers, body: bytes) -> None:
    """Raises BodyError unless Content-Type and bytes of the body are those of JSON in UTF-8.

    A missing Content-Type counts as JSON, except from a browser: pages of other hosts can make a browser send
    such a request to this machine without a CORS preflight.
    """
    said = headers.get("content-type", "").strip()
    if not said:
        if "origin" in headers or "sec-fetch-site" in headers:
            raise BodyError(415, "the body must have the Content-Type application/json; it has none")
    else:
        kind = MimeMessage()
        kind["content-type"] = said
        subtype = kind.get_content_subtype()
        if kind.get_content_maintype() != "application" or not (
            subtype == "json" or subtype.endswith("+json")
        ):
            raise BodyError(
                415,
                f"the body must be JSON, with the Content-Type application/json; it has {said[:80]!r}. "
                "With curl: -H 'Content-Type: application/json'",
            )
        charset = str(kind.get_param("charset", "utf-8"))
        if charset.lower() not in _CHARSETS:
            raise BodyError(415, f"JSON must be in UTF-8; the Content-Type says {charset[:40]!r}")
    try:
        body.decode(json.detect_encoding(body), "surrogatepass")  # as it will be read
    except UnicodeDecodeError as error:
        where = f"byte 0x{body[error.start]:02x} at {error.start}"
        raise BodyError(400, f"the body must be JSON in UTF-8; {where} is not") from None


def is_form(headers: Headers) -> bool:
    """Whether the Content-Type is that of a form with files."""
    kind = MimeMessage()
    kind["content-type"] = headers.get("content-type", "")
    return kind.get_content_type() == _FORM


async def form_as_json(headers: Headers, body: bytes) -> bytes:
    """The JSON object that a form says: files in base64, and fields that are no text as the JSON they hold.

    Raises:
        BodyError: it comes from a browser, where pages of other hosts can send forms without a CORS
            preflight; or it is damaged, or not a form of one file and a few fields.
    """
    if "origin" in headers or "sec-fetch-site" in headers:
        raise BodyError(415, "a browser must send JSON, with the Content-Type application/json, not a form")
    fields: dict[str, Any] = {}
    parser = _InMemoryParser(
        headers, _once(body), max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError, ValueError) as error:
        said = error.message if isinstance(error, MultiPartException) else "it cannot be read"
        raise BodyError(400, f"the body is not a valid form: {said}") from None
    try:
        for name, value in form.multi_items():
            if name in fields:
                raise BodyError(400, f"the form has {name[:80]!r} twice")
            if isinstance(value, UploadFile):
                fields[name] = base64.b64encode(await value.read()).decode()
            elif name in _JSON_FIELDS:
                try:
                    fields[name] = parse_json(value, name)
                except DocumentError as error:
                    raise BodyError(400, f"{error}; in a form, {name} is JSON") from None
            else:
                fields[name] = value
    finally:
        await form.close()
    return json.dumps(fields).encode()


class _InMemoryParser(MultiPartParser):
    """A parser that writes nothing to disk, as the body is in memory, and loses or misreads no field."""

    spool_max_size = 2**30
    _ended = False

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode(self._charset)
            except UnicodeDecodeError:  # which the framework would read in another encoding
                name = self._current_part.field_name[:80]
                raise MultiPartException(f"{name!r} is not text in {self._charset}") from None
        super().on_part_end()

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._ended:  # its last part is not among the others
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it ends before its closing boundary")
        return form


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def form_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The part of an operation's OpenAPI document that says that it takes a model as a form, too."""
    schema = model.model_json_schema()
    properties = {
        name: {
            "type": "string",
            **({"format": "binary"} if name == "picture" else {}),
            "description": schema["properties"][name]["description"]
            + (" As JSON." if name in _JSON_FIELDS else ""),
        }
        for name in schema["properties"]
    }
    form = {"type": "object", "properties": properties, "required": schema["required"]}
    return {"requestBody": {"content": {_FORM: {"schema": form}}}}


def inflated(body: bytes, encodings: str, limit: int) -> bytes:
    """The body without the compression that the header Content-Encoding names.

    Args:
        body: body as received.
        encodings: value of the header, or empty.
        limit: largest decompressed size, bytes.

    Raises:
        BodyError: the compression is not supported, the body is damaged, or it is too large.
    """
    names = [name for name in map(str.strip, encodings.lower().split(",")) if name not in ("", "identity")]
    if not names:
        return body
    if names not in (["gzip"], ["x-gzip"], ["deflate"]):
        detail = f"the body may be compressed once, with gzip or deflate, not with {encodings[:80]!r}"
        raise BodyError(415, detail, {"Accept-Encoding": COMPRESSIONS})
    form = _GZIP if names != ["deflate"] else _ZLIB if _has_zlib_head(body) else _RAW
    found, left = b"", body
    try:
        for _ in range(_MAX_MEMBERS):
            inflater = zlib.decompressobj(form)
            found += inflater.decompress(left, limit + 1 - len(found))
            if len(found) > limit:
                raise too_large(limit)
            left = inflater.unused_data
            if not inflater.eof:
                break
            if not left:
                return found
            if form != _GZIP:
                break
    except zlib.error:
        pass
    raise BodyError(400, f"the body is not valid {names[0]}, although its Content-Encoding says so")


def _has_zlib_head(body: bytes) -> bool:
    """Whether the body has the zlib header that HTTP requires for deflate; some clients omit it."""
    return len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The parsed body; DocumentError if it is not JSON or parsing would lose information."""
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body(), BODY, max_nodes=MAX_NODES)
        return self._json


class JsonRoute(APIRoute):
    """A route that rejects a body with status 422 if parsing its JSON would lose information."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the framework, with a `_JsonRequest`."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            try:
                return await handle(_JsonRequest(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, DocumentError):  # which the framework does not know
                    raise error.__cause__ from None
                raise

        return read_and_handle
