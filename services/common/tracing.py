"""Traces requests across services: OpenTelemetry spans, with W3C trace context on every call.

Off unless ``spans_to`` in the settings names a destination. Imports no torch.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import structlog
from opentelemetry import context
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.environment import filled
from services.common.errors import SettingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from services.common.converters import DeliveryRequest

_W3C = TraceContextTextMapPropagator()
_OFF = NoOpTracer()
_log = structlog.get_logger()
SPANS_BYTES, SPANS_FILES = 64 * 2**20, 3
"""Size at which a file of spans is rotated to NAME.1, and number of files kept, including the file itself."""
_tracer: Tracer = _OFF
_provider: TracerProvider | None = None


def configure(service: str, spans_to: str) -> None:
    """Configures the destination of this process's spans.

    Args:
        service: name of the service, ``service.name`` of every span.
        spans_to: empty for none; ``console``, a URL that accepts OTLP over HTTP, or the path of a file.

    Raises:
        SettingError: the file cannot be written, or a variable of OpenTelemetry is invalid.
    """
    if not spans_to:
        return
    for name in [name for name in os.environ if name.startswith("OTEL_") and name not in filled(os.environ)]:
        del os.environ[name]  # OpenTelemetry parses some empty variables as numbers
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    try:
        provider = TracerProvider(resource=Resource.create({"service.name": f"dekag-{service}"}))
        provider.add_span_processor(BatchSpanProcessor(_exporter(spans_to)))
    except ValueError as error:
        given = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        raise SettingError(f"OpenTelemetry rejects the value of one of {given}: {error}") from error
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Creates spans with ``provider`` from now on; None turns them off."""
    global _tracer, _provider
    _tracer, _provider = _OFF if provider is None else provider.get_tracer("dekag"), provider


def close() -> None:
    """Exports the remaining spans; no more are created."""
    provider = _provider
    use(None)
    if provider is not None:
        provider.shutdown()


def _exporter(spans_to: str) -> SpanExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    if spans_to.startswith(("http://", "https://")):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=spans_to)
    if spans_to == "console":
        return ConsoleSpanExporter(out=sys.stdout, formatter=_line)
    try:
        file = _SpansFile(Path(spans_to))
    except OSError as error:
        raise SettingError(f"DEKAG_SPANS_TO: the file cannot be written: {error}") from error
    return ConsoleSpanExporter(out=cast("IO[str]", file), formatter=_line)


class _SpansFile(io.TextIOBase):
    """A file to which all services append; a large one is rotated to NAME.1, that one to NAME.2, and so on.

    Whichever service finds it large renames it; the others notice that their file is no longer that of the
    name. Spans that cannot be bounded in this way are dropped.

    Args:
        path: created if missing; a pipe or a device is not rotated.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._warned = path, self._opened(path), False

    def write(self, line: str) -> int:
        """Appends a line as a whole, so that services can share the file."""
        try:
            self._renew()
        except OSError as error:  # such as a folder that is read-only, or removed
            if not self._warned:
                _log.warning("spans are dropped: their file cannot be rotated", error=str(error))
            self._warned = True
            return 0
        self._warned = False
        return self._file.write(line.encode())

    def close(self) -> None:
        self._file.close()
        super().close()

    @staticmethod
    def _opened(path: Path) -> io.FileIO:
        # non-blocking, so that a pipe without a reader is an error instead of an endless wait
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        os.set_blocking(handle, True)
        return io.FileIO(handle, "a")

    def _renew(self) -> None:
        """Opens the file of the name if that is no longer ours, or ours is large, which is rotated before."""
        ours = os.fstat(self._file.fileno())
        if not stat.S_ISREG(ours.st_mode) or (self._is_named(ours) and ours.st_size < SPANS_BYTES):
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)  # of all who find it large, the first rotates it
        try:
            if self._is_named(ours):
                old = (self._path.with_name(f"{self._path.name}.{n}") for n in range(1, SPANS_FILES))
                files = [self._path, *old]
                for older, newer in zip(reversed(files[1:]), reversed(files[:-1]), strict=True):
                    if newer.exists():
                        newer.replace(older)
            new = self._opened(self._path)
        except OSError:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            raise
        self._file.close()
        self._file = new

    def _is_named(self, ours: os.stat_result) -> bool:
        """Whether a file is the one that has the name now."""
        try:
            return os.path.samestat(ours, self._path.stat())
        except FileNotFoundError:
            return False


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


@contextmanager
def server_span(
    name: str,
    headers: Mapping[str, str],
    attributes: Mapping[str, str | int],
    kind: SpanKind = SpanKind.SERVER,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    """The span of a request that this service answers, a child of the caller's; becomes the current span.

    It is never detached: every request has its own context, and a stream may be closed from another one.

    Args:
        name: name of the span.
        headers: headers of the request, names in lower case; ``traceparent`` is used.
        attributes: attributes of the span.
        kind: CONSUMER for jobs from a queue, which run long after the caller has its response.
        links: to spans of other traces.
    """
    if _tracer is _OFF:
        yield get_current_span()
        return
    parent = _W3C.extract(headers, context.Context())
    span = _tracer.start_span(name, parent, kind, attributes, links)
    context.attach(set_span_in_context(span, parent))
    try:
        yield span
    except Exception as error:
        mark_failed(span, str(error))
        raise
    finally:
        span.end()


@contextmanager
def public_span(name: str, headers: Mapping[str, str], attributes: Mapping[str, str | int]) -> Iterator[Span]:
    """The span of a request from outside: it begins a trace of our own, linked to the client's.

    A client thus can neither join the traces of others nor keep its request from being traced.

    Args:
        name: name of the span.
        headers: headers of the request; a valid ``traceparent`` becomes a link.
        attributes: attributes of the span.
    """
    clients = get_current_span(_W3C.extract(headers, context.Context())).get_span_context()
    links = [Link(SpanContext(clients.trace_id, clients.span_id, is_remote=True))] if clients.is_valid else []
    with server_span(name, {}, attributes, links=links) as span:
        yield span


@contextmanager
def client_span(peer: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """The span of a call to ``peer``; yields the metadata that carry it, empty when tracing is off."""
    if _tracer is _OFF:
        yield ()
        return
    span = _tracer.start_span(f"call {peer}", kind=SpanKind.CLIENT)
    headers: dict[str, str] = {}
    _W3C.inject(headers, set_span_in_context(span))
    try:
        yield tuple(headers.items())
    except Exception as error:
        mark_failed(span, str(error))
        raise
    finally:
        span.end()


def outgoing() -> dict[str, str]:
    """Headers that carry the current span to a later job; empty when tracing is off."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def mark_failed(span: Span, reason: str) -> None:
    """Sets the status of ``span`` to ERROR."""
    span.set_status(Status(StatusCode.ERROR, reason))


def record_stage(stage: str, seconds: float, ago_s: float = 0.0) -> None:
    """Records the span of a stage that took ``seconds`` and ended ``ago_s`` seconds ago."""
    if _tracer is _OFF:
        return
    end = time.time_ns() - round(ago_s * 1e9)
    _tracer.start_span(stage, start_time=end - round(seconds * 1e9)).end(end)


def set_link_attributes(request: DeliveryRequest, channel_uses: int) -> None:
    """Sets attributes of the delivery and its link on the current span."""
    span = get_current_span()
    if span.is_recording():
        span.set_attributes(
            {
                "dekag.delivery": request.delivery,
                "dekag.snr_db": request.link.snr_db,
                "dekag.fading": request.link.fading,
                "dekag.channel_uses": channel_uses,
                "dekag.cbr": channel_uses / request.source_values,
            }
        )
