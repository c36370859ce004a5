"""What is sent to the gateway: cases made from its OpenAPI document, and requests made of anything."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway.problems import MEDIA_TYPE
from tests.hostile.artifacts import jsons, other_json
from tests.hostile.calls import DEADLINE_S

_LEAKS = re.compile(r'Traceback|File \\?"|\w/\w+\.py\b|site-packages|<class |object at 0x')
_NO_HTTP = "Invalid HTTP request received."  # what uvicorn says, since nothing reaches the gateway
_CHECKS = [  # not whether all that fits the document is served: that depends on more than a schema can say
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
_PATHS = (
    "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1", "/v1/images/generations", "/v1/pictures",
    "/v1/knowledge",
    "/v1/knowledge/neon", "/v1/knowledge/neon/samples", "/v1/transmission", "/v1/jobs", "/v1/jobs/x/events",
    "/v1/demand",
    "/v1/reports/x", "/v1/../etc/passwd", "/v1/jobs/%00", "/v1/knowledge/%ff%fe", "/v1/jobs/%2e%2e%2f",
    "/v1/reports/" + "x" * 3000, "//", "/docs-assets/../app.py",
)  # fmt: skip
_IMAGES = {
    "prompt": "a red boat",
    "n": 1,
    "seed": 7,
    "size": "64x64",
    "delivery": "semantic",
    "knowledge": "auto",
    "image_format": "webp",
    "link": {"snr_db": 10, "fading": "rayleigh", "tau_rms_s": 1e-6, "csi": "pilots", "cbr": 0.01},
}


def _is_sent(case: Any) -> bool:
    """Whether what is wrong with a case reaches the gateway: all values of a form are sent as text."""
    in_form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return not in_form or all(isinstance(value, str | bytes) for value in case.body.values())


class Operation:
    """One operation that the OpenAPI document describes."""

    def __init__(self, described: Any) -> None:
        self._described = described
        self.name = str(described.label)

    def strategy(self, mode: GenerationMode) -> st.SearchStrategy[Any]:
        """Requests that fit the document, or that do not."""
        cases: st.SearchStrategy[Any] = self._described.as_strategy(generation_mode=mode)
        return cases.filter(_is_sent) if mode is GenerationMode.NEGATIVE else cases

    def case(self, body: Mapping[str, Any]) -> Any:
        """The request with this body of JSON."""
        return self._described.Case(body=dict(body), media_type="application/json")


class Gateway:
    """A gateway to be sent anything, and what the OpenAPI document says of it.

    Args:
        url: where it answers.

    Attributes:
        operations: every operation that the document describes, by its name.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False
        schema = schemathesis.openapi.from_dict(
            self._session.get(f"{url}/openapi.json", timeout=DEADLINE_S).json()
        )
        refusals = schema.config.checks.negative_data_rejection
        refusals.expected_statuses = [
            *refusals.expected_statuses,
            "413",
        ]  # of a body that is too large besides
        self.operations = {
            operation.name: operation
            for operation in (Operation(found.ok()) for found in schema.get_all_operations())
        }

    def send_case(self, case: Any) -> int:
        """The status of the answer to a case, after checks that it is as the document says."""
        answer = case.call(base_url=self.url, session=self._session, timeout=DEADLINE_S)
        text = answer.content.decode(errors="replace")  # it may be a picture
        check_answer(answer.status_code, {name: values[0] for name, values in answer.headers.items()}, text)
        case.validate_response(answer, checks=_CHECKS)
        return int(answer.status_code)

    def send(self, asked: Anything) -> int:
        """The status of the answer to any request."""
        answer = self._session.request(
            asked.method,
            self.url + asked.path,
            data=asked.body,
            headers=asked.headers,
            timeout=DEADLINE_S,
            allow_redirects=False,
        )
        check_answer(answer.status_code, answer.headers, answer.text)
        assert answer.status_code < 500, answer.text
        return answer.status_code

    def send_bytes(self, data: bytes) -> int:
        """The status that bytes on a connection of their own are answered with; 0 if it is just closed."""
        place = urlsplit(self.url)
        with socket.create_connection((place.hostname or "", place.port or 0), DEADLINE_S) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):  # it does not read what is too long to the end
                connection.sendall(data)
                _end(connection)
                while part := connection.recv(65536):
                    answer += part
        text = answer.decode(errors="replace")
        assert _LEAKS.search(text) is None, text
        status = re.match(r"HTTP/1\.1 (\d+)", text)
        code = 0 if status is None else int(status[1])
        assert code < 500, text
        return code


def _end(connection: socket.socket) -> None:
    """Sends no more; what the other side has reset needs no end, though that is no ConnectionError."""
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


def check_answer(status: int, headers: Mapping[str, str], text: str) -> None:
    """Every answer is served or a problem, and tells nothing of the inside."""
    assert _LEAKS.search(text) is None, text
    if status >= 400 and text and text != _NO_HTTP:
        assert headers["content-type"] == MEDIA_TYPE, text
        problem = json.loads(text)
        assert problem["status"] == status
        assert problem["request_id"] == headers["x-request-id"]


@dataclass(frozen=True)
class Anything:
    """A request that no document describes."""

    method: str
    path: str
    headers: Mapping[str, str | bytes]
    body: bytes


@st.composite
def anything(draw: st.DrawFn) -> Anything:
    """Any method, path, headers and body; the path is often one that there is."""
    method = draw(
        st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"])
    )
    path = draw(
        st.sampled_from(_PATHS) | st.text(max_size=20).map(lambda text: f"/{quote(text, errors='replace')}")
    )
    printable = st.text(
        st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"]), max_size=30
    )
    names = st.sampled_from(
        [
            "Content-Type",
            "Accept",
            "X-Request-ID",
            "traceparent",
            "Cookie",
            "Range",
            "X-Forwarded-For",
            "Origin",
        ]
    )
    values = printable | st.sampled_from(
        ["application/json", "text/xml", "multipart/form-data; boundary=", "*/*"]
    )
    headers = {name: value.encode("latin-1") for name, value in draw(st.dictionaries(names, values)).items()}
    return Anything(method, path, headers, draw(_bodies()))


def image_bodies() -> st.SearchStrategy[bytes]:
    """Requests for pictures with some of their entries replaced by anything."""
    return other_json(json.dumps(_IMAGES).encode())


def _bodies() -> st.SearchStrategy[bytes]:
    odd = st.sampled_from(
        [
            b"",
            b"{",
            b"\xff\xfe{}",
            b"[" * 5000,
            b'{"prompt": "\\ud800"}',
            b'{"seed": 1' + b"0" * 5000 + b"}",
            b" " * 70_000,
        ]
    )
    return st.binary(max_size=100) | odd | jsons().map(lambda value: json.dumps(value).encode())


@st.composite
def any_bytes(draw: st.DrawFn) -> bytes:
    """What may come over a connection, HTTP or not."""
    start = draw(st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST /v1/images/generations HTTP/1.1\r\n"]))
    lengths = [b"Content-Length: " + length for length in (b"\xb2", b"-1", b"99999999999", b"5")]
    others = [b"Host: x", b"Transfer-Encoding: chunked", b"X: " + b"x" * 70_000, b"X-Request-ID: \xff"]
    headers = draw(st.lists(st.sampled_from(lengths + others), max_size=3))
    lines = b"".join(header + b"\r\n" for header in headers)
    return start + lines + draw(st.sampled_from([b"", b"\r\n"])) + draw(st.binary(max_size=60))
