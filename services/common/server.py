"""Runs a servicer as a process: health, reflection, errors, request context, logs, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from dekag import plugins
from dekag.errors import InvalidInputError, NumericalError, UnavailableError
from services.common import callers, errors, metrics, security, tracing
from services.common.addresses import join
from services.common.certificates import TLS_DIR, certificates_in, serve_metrics, server_credentials
from services.common.clients import Peer
from services.common.errors import CallerError, SettingError
from services.common.health import CHAIN, REASON_KEY, check_health
from services.common.process import errors_logged
from services.common.request_context import REQUEST_ID_KEY, begin_request, configure_logging
from services.common.settings import CommonSettings

_log = structlog.get_logger()
FOLLOW_S, FOLLOW_UNHEALTHY_S = 1.0, 0.2
"""Polling intervals for the health of the next service, s: while it serves, and while the chain waits for it.

The first is also the longest wait for its response.
"""
_REASON_CHARS = 300
_ATTEMPTS_KEY = "grpc-previous-rpc-attempts"  # metadata that gRPC adds to a repeated call
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_INFRASTRUCTURE = (f"/{HEALTH_NAME}/", f"/{reflection.SERVICE_NAME}/")  # need no models and are not logged
_WATCH = f"/{HEALTH_NAME}/Watch"
MAX_ARRIVING = 64
"""Upper limit of calls whose message has not arrived; the oldest makes room for another."""
MAX_CHECKS = 32
"""Upper limit of simultaneous health checks; further ones are refused."""
MAX_REFLECTIONS = 32
"""Upper limit of streams of reflection; see _Places."""
MAX_CONNECTIONS = 256
"""Upper limit of connections to a service, and of watches of its health (see _Places).

Each of its clients keeps one or two connections, and watches the health with one of them.
"""
_IDLE_S = 600.0  # longest time that a connection without calls stays open, if it may become so old


class Servicer(Protocol):
    """A gRPC servicer that can be run: constructed on the event loop without models, which ``load`` loads.

    A servicer that depends on another service has an attribute ``downstream``, that service; the health of
    its chain follows that service's. A servicer with parts that can fail on their own has an async method
    ``parts``, which returns the problem of each part by name, empty if it works. The health of each part can
    be queried.
    """

    def load(self) -> None:
        """Loads the models; called once, in a thread. Requests are rejected until it returns."""

    async def close(self) -> None:
        """Closes channels, caches and threads; called once, after the last request."""


_S = TypeVar("_S", bound=Servicer)
_Settings = TypeVar("_Settings", bound=CommonSettings)


class _Health(health_aio.HealthServicer):
    """The health service, with the reason if unhealthy; it ends its Watch streams at shutdown.

    Otherwise they would delay the shutdown by the whole grace period. The other services watch the health
    without a name, and call only replicas that serve (clients.open_channel).

    Args:
        parts: see Servicer.
    """

    def __init__(self, parts: Callable[[], Awaitable[Mapping[str, str]]] | None = None) -> None:
        super().__init__()
        self._watchers: set[asyncio.Task[None]] = set()
        self._parts = parts
        self.reasons: dict[str, str] = {}

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> Any:
        if request.service and self._parts is not None:
            for part, problem in (await self._parts()).items():
                await self.set_reason(part, problem)
        if reason := self.reasons.get(request.service):
            context.set_trailing_metadata(((REASON_KEY, reason[:_REASON_CHARS].encode()),))
        return await super().Check(request, context)

    async def set_reason(self, part: str, reason: str) -> None:
        """Sets why a part is unhealthy, empty if it is healthy; see health.CHAIN."""
        self.reasons[part] = reason
        await self.set(part, _NOT_SERVING if reason else health_pb2.HealthCheckResponse.SERVING)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        watching = asyncio.create_task(super().Watch(request, context))
        self._watchers.add(watching)
        try:
            await asyncio.wait({watching})
            if not watching.cancelled():
                watching.result()
        finally:
            self._watchers.discard(watching)
            watching.cancel()

    @property
    def watched(self) -> bool:
        """Whether a client follows the health."""
        return bool(self._watchers)

    def end_watches(self) -> None:
        """Ends the Watch streams."""
        for watching in self._watchers:
            watching.cancel()


class _Reflection(reflection.aio.ReflectionServicer):
    """The reflection service; it ends its streams at shutdown, as some clients keep them open for hours."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self._stopping = asyncio.Event()

    async def ServerReflectionInfo(  # type: ignore[override] # the stub does not declare a generator
        self, request_iterator: AsyncIterable[ServerReflectionRequest], unused_context: Any
    ) -> AsyncIterator[ServerReflectionResponse]:
        requests, stop = aiter(request_iterator), asyncio.create_task(self._stopping.wait())

        async def until_stop() -> AsyncIterator[ServerReflectionRequest]:
            while True:
                request = asyncio.ensure_future(anext(requests))
                try:
                    await asyncio.wait({request, stop}, return_when=asyncio.FIRST_COMPLETED)
                    if not request.done():
                        return
                    yield request.result()
                except StopAsyncIteration:
                    return
                finally:
                    request.cancel()

        try:
            responses = cast("AsyncIterator[Any]", super().ServerReflectionInfo(until_stop(), unused_context))
            async for response in responses:
                yield response
        finally:
            stop.cancel()

    def enter_graceful_shutdown(self) -> None:
        self._stopping.set()


class _ServiceNames:
    """Stands in for a server to record the full name of a service; gRPC has no other way to get it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Part of a server's interface."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, object]) -> None:
        self.names.append(service)


def unknown_fields(message: Message, path: str = "") -> Iterator[str]:
    """Numbers of the fields that this release does not know, in a message and the messages within it."""
    fields: Iterable[Any] = UnknownFieldSet(message)  # type: ignore[assignment]  # the stub lacks it
    for field in fields:
        yield f"{path}{field.field_number}"
    for known, value in message.ListFields():
        if known.message_type is not None and not known.message_type.GetOptions().map_entry:
            for inner in value if known.is_repeated else [value]:
                yield from unknown_fields(inner, f"{path}{known.name}.")


class _Places:
    """Places for streams that last, such as watches of the health; the newest always gets one.

    If all are taken, a stream makes room: of the certificates, the one with the most streams gives up one; of
    its addresses, the one with the most; of its streams, the oldest. Whoever holds many keeps nobody out.

    Args:
        most: number of places.
        longest_s: time after which a stream ends, s.
    """

    def __init__(self, most: int, longest_s: float) -> None:
        self._most, self._longest_s = most, longest_s
        self._held: dict[asyncio.Timeout, tuple[frozenset[str], str]] = {}  # the oldest first

    @asynccontextmanager
    async def one(self, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        """A place for the current call, which is aborted when it has to make room or has had its time."""
        owner = _common_names(context), context.peer().rpartition(":")[0]
        if len(self._held) >= self._most:
            self._make_room(owner)
        place = asyncio.timeout(self._longest_s)
        try:
            async with place:
                self._held[place] = owner
                yield
        except TimeoutError:
            if place in self._held:
                reason = f"the stream has lasted for {self._longest_s:g} s; open it again"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
            reason = f"{self._most} such streams are open, which is the limit; this one made room for another"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        finally:
            self._held.pop(place, None)

    def _make_room(self, newest: tuple[frozenset[str], str]) -> None:
        """Ends a stream, so that one of this owner can begin."""
        names = Counter(name for name, _ in (*self._held.values(), newest))
        owners = Counter((*self._held.values(), newest))
        oldest = max(self._held, key=lambda place: (names[self._held[place][0]], owners[self._held[place]]))
        del self._held[oldest]
        if not oldest.expired():
            oldest.reschedule(asyncio.get_running_loop().time())


@dataclass
class _Traffic:
    """Bytes of the messages of one call, without gRPC's framing and headers."""

    received_bytes: int = 0
    sent_bytes: int = 0


class _RequestInterceptor(aio.ServerInterceptor):
    """Bounds calls in number and in time; adds context, span, log line and error status to requests.

    Args:
        name: name of the service.
        max_requests: upper limit of simultaneous requests whose message has arrived.
        receive_timeout_s: time limit for the message of a request, s.
        connection_age_s: age at which connections are renewed, s.
        mutual_tls: whether callers show certificates, which decide what they may call.
    """

    def __init__(
        self,
        name: str,
        max_requests: int,
        receive_timeout_s: float,
        connection_age_s: float,
        *,
        mutual_tls: bool = False,
    ) -> None:
        self._name, self.ready, self._mutual_tls = name, False, mutual_tls
        self._receive_timeout_s = receive_timeout_s
        self._limits = {"requests": max_requests, "checks": MAX_CHECKS}
        # a client with a renewed connection watches anew; gRPC varies the age by a tenth
        longest_s = 2 * connection_age_s + 1
        self._watches = _Places(MAX_CONNECTIONS, longest_s)
        self._reflections = _Places(MAX_REFLECTIONS, longest_s)
        self._calls: Counter[str] = Counter()
        self._arriving: dict[object, asyncio.Timeout] = {}  # by call, the oldest first

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return handler
        kind = _kind(details.method)
        if kind == "watches":
            return self._watched(handler)
        if kind == "reflections":
            return self._reflected(handler)
        if kind == "checks":
            return self._received(kind, handler.unary_unary, None, handler)
        headers = dict(details.invocation_metadata or ())
        if _ATTEMPTS_KEY in headers:
            metrics.RETRIES.labels(f"{self._name}.{details.method.rpartition('/')[2]}").inc()
        traffic = _Traffic()

        def deserialize(data: bytes) -> Any:  # here and not in gRPC, so that errors belong to the request
            traffic.received_bytes += len(data)
            try:
                message = handler.request_deserializer(data)
            except DecodeError:
                allowed = f"a valid message for {details.method}"
                raise InvalidInputError("request", allowed, f"{len(data)} bytes") from None
            if unknown := sorted(set(unknown_fields(message))):
                _log.warning("fields of a newer caller are ignored", method=details.method, fields=unknown)
            return message

        def serialize(message: Any) -> bytes:  # here and not in gRPC, so that the log line has its size
            data: bytes = handler.response_serializer(message)
            traffic.sent_bytes += len(data)
            return data

        async def check(context: aio.ServicerContext[Any, Any]) -> None:
            try:
                callers.check_call(_common_names(context), self._name, details.method.rpartition("/")[2])
            except CallerError as error:  # answered and logged like any other refusal
                async with self._request(details.method, headers, context, traffic):
                    raise error from None

        async def unary(data: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
            async with self._request(details.method, headers, context, traffic):
                return serialize(await handler.unary_unary(deserialize(data), context))

        async def stream(data: bytes, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
            async with (
                self._request(details.method, headers, context, traffic),
                aclosing(handler.unary_stream(deserialize(data), context)) as messages,
            ):
                async for message in messages:
                    yield serialize(message)

        streams = handler.unary_stream is not None
        return self._received(
            kind, unary, stream if streams else None, check=check if self._mutual_tls else None
        )

    def _watched(self, handler: Any) -> Any:
        """A handler of watches of the health, each of which takes a place."""

        async def watch(requests: AsyncIterable[Any], context: aio.ServicerContext[Any, Any]) -> None:
            async with self._watches.one(context):
                try:
                    async with asyncio.timeout(self._receive_timeout_s):
                        request = await anext(aiter(requests))
                except (TimeoutError, StopAsyncIteration):
                    reason = f"the message did not arrive within {self._receive_timeout_s:g} s"
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
                await handler.unary_stream(request, context)

        return grpc.stream_stream_rpc_method_handler(
            watch,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _reflected(self, handler: Any) -> Any:
        """A handler of streams of reflection, each of which takes a place."""

        async def reflect(requests: AsyncIterable[Any], context: aio.ServicerContext[Any, Any]) -> None:
            async with (
                self._reflections.one(context),
                aclosing(handler.stream_stream(requests, context)) as answers,
            ):
                async for answer in answers:
                    await context.write(answer)  # not `yield`, so that a slow reader makes room, too

        return grpc.stream_stream_rpc_method_handler(
            reflect,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _admit(self, kind: str) -> str:
        """Counts the current call as one of its kind until it ends; otherwise says why it is refused."""
        if (calls := self._calls[kind]) >= self._limits[kind]:
            return f"{calls} {kind} are in progress, which is the limit"
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._calls[kind] += 1
        task.add_done_callback(lambda _: self._calls.subtract([kind]))
        return ""

    async def _arrival(self, requests: AsyncIterable[Any]) -> Any:
        """The message of a call; TimeoutError if it does not arrive in time.

        If more than MAX_ARRIVING calls wait for theirs, the oldest has no more time: clients send a call and
        its message together, so it is held on purpose, and must not take the place of others.
        """
        call = object()
        try:
            async with asyncio.timeout(self._receive_timeout_s) as limit:
                self._arriving[call] = limit
                if len(self._arriving) > MAX_ARRIVING:
                    oldest = self._arriving.pop(next(iter(self._arriving)))
                    if not oldest.expired():
                        oldest.reschedule(asyncio.get_running_loop().time())
                return await anext(aiter(requests))
        finally:
            self._arriving.pop(call, None)

    def _received(self, kind: str, unary: Any, stream: Any, messages: Any = None, check: Any = None) -> Any:
        """A handler that passes the message on if it arrives in time.

        gRPC's own handlers of unary requests wait for it without a limit, before any of our code runs.

        Args:
            kind: what the call counts as from the arrival of its message on.
            unary: handles the message, if it is not to be answered with a stream.
            stream: handles the message, if it is.
            messages: a handler with the serialisers of the messages; None: they are bytes.
            check: awaited with the context before the message is; refuses callers.
        """
        convert = {
            "request_deserializer": messages and messages.request_deserializer,
            "response_serializer": messages and messages.response_serializer,
        }

        async def message(requests: AsyncIterable[Any], context: aio.ServicerContext[Any, Any]) -> Any:
            if check is not None:
                await check(context)
            try:
                arrived = await self._arrival(requests)
            except TimeoutError:
                reason = f"the message did not arrive within {self._receive_timeout_s:g} s, or others waited"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
            except StopAsyncIteration:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is missing")
            if reason := self._admit(kind):
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
            return arrived

        if stream is None:

            async def to_unary(requests: Any, context: aio.ServicerContext[Any, Any]) -> Any:
                return await unary(await message(requests, context), context)

            return grpc.stream_unary_rpc_method_handler(to_unary, **convert)

        async def to_stream(requests: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with aclosing(stream(await message(requests, context), context)) as parts:
                async for part in parts:
                    yield part

        return grpc.stream_stream_rpc_method_handler(to_stream, **convert)

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        headers: dict[str, Any],
        context: aio.ServicerContext[Any, Any],
        traffic: _Traffic,
    ) -> AsyncIterator[None]:
        request_id = begin_request(headers.get(REQUEST_ID_KEY), context.time_remaining())
        start, status = time.perf_counter(), "OK"
        name = f"{self._name}.{method.rpartition('/')[2]}"
        try:
            with tracing.server_span(name, headers, {"dekag.request_id": request_id}):
                if not self.ready:
                    raise UnavailableError("the service is still loading its models; try again later")
                yield
        except (asyncio.CancelledError, GeneratorExit):
            status = "CANCELLED"
            raise
        except Exception as error:
            shown = errors.public(error, request_id)
            status = errors.grpc_status(shown).name
            if isinstance(shown, errors.InternalError) and shown is not error:
                _log.exception("request failed", method=method)
            elif isinstance(shown, NumericalError) and not isinstance(error.__cause__, grpc.RpcError):
                _log.error("value not finite", method=method, error=str(shown))
            await context.abort(errors.grpc_status(shown), str(shown)[:300], errors.to_metadata(shown))
        finally:
            seconds = time.perf_counter() - start
            metrics.REQUEST_SECONDS.labels(name, status).observe(seconds)
            _log.info(
                "request",
                method=method,
                status=status,
                seconds=round(seconds, 4),
                received_bytes=traffic.received_bytes,
                sent_bytes=traffic.sent_bytes,
            )


def _common_names(context: aio.ServicerContext[Any, Any]) -> frozenset[str]:
    """The common names in the caller's certificate."""
    shown = context.auth_context().get("x509_common_name", ())
    return frozenset(name.decode(errors="replace") for name in shown)


def _kind(method: str) -> str:
    """What a call counts as: "requests", "checks" and "watches" of health, or "reflections"."""
    if not method.startswith(_INFRASTRUCTURE):
        return "requests"
    if method == _WATCH:
        return "watches"
    return "checks" if method.startswith(f"/{HEALTH_NAME}/") else "reflections"


class Server:
    """One servicer on one port.

    Args:
        settings: address, limits and grace period.
        servicer: servicer to run.
        add: the generated ``add_...Servicer_to_server``.
        name: name of the service, for spans and metrics.
    """

    def __init__(
        self,
        settings: CommonSettings,
        servicer: _S,
        add: Callable[[_S, aio.Server], None],
        name: str = "service",
    ) -> None:
        self._settings, self._servicer, self._requests = (
            settings,
            servicer,
            _RequestInterceptor(
                name,
                settings.max_requests,
                settings.receive_timeout_s,
                settings.connection_age_s,
                mutual_tls=settings.tls_dir is not None,
            ),
        )
        self._name, self._health = name, _Health(getattr(servicer, "parts", None))
        self._server = aio.server(
            interceptors=[self._requests],
            maximum_concurrent_rpcs=2  # refused ones count, too
            * (settings.max_requests + MAX_ARRIVING + MAX_CHECKS + MAX_CONNECTIONS + MAX_REFLECTIONS),
            options=[
                *security.METADATA_OPTIONS,
                ("grpc.server_handshake_timeout_ms", round(settings.receive_timeout_s * 1000)),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
                ("grpc.max_connection_idle_ms", round(_IDLE_S * 1000)),
                ("grpc.max_connection_age_ms", round(settings.connection_age_s * 1000)),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 2_500),
                ("grpc.http2.max_ping_strikes", 2),
            ],
        )
        add(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        recorder = _ServiceNames()
        add(servicer, cast("aio.Server", recorder))
        self._following: asyncio.Task[None] | None = None
        self._reflection = _Reflection([*recorder.names, HEALTH_NAME, reflection.SERVICE_NAME])
        add_ServerReflectionServicer_to_server(self._reflection, self._server)  # type: ignore[no-untyped-call]

    async def start(self) -> int:
        """Starts to listen, at first only for health and reflection; returns the port.

        Raises:
            SettingError: the address does not exist, its port is in use, it would be exposed beyond loopback
                without mutual TLS, or the certificate is that of another service.
        """
        folder = self._settings.tls_dir
        callers.check_own(folder, self._name)
        certificates = None if folder is None else certificates_in(folder, TLS_DIR)
        credentials = None if certificates is None else server_credentials(certificates)
        security.check_exposure(
            self._settings,
            self._settings.host,
            "this service",
            safe=credentials is not None,
            fix="set DEKAG_TLS_DIR to a folder made by `dekag credentials`",
        )
        for part in ("", CHAIN):
            await self._health.set_reason(part, f"{self._name}: still loading its models")
        address = join(self._settings.host, self._settings.port)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise SettingError(
                f"cannot listen on {address}: DEKAG_PORT must be free, DEKAG_HOST an address of this machine"
            ) from error
        if certificates is not None:
            certificates.watch()
        await self._server.start()
        return port

    async def load(self) -> None:
        """Loads the models and starts to accept requests."""
        await asyncio.to_thread(self._servicer.load)
        self._requests.ready = True
        await self._health.set_reason("", "")
        peer: Peer | None = getattr(self._servicer, "downstream", None)
        if peer is None:
            await self._health.set_reason(CHAIN, "")
        else:
            await self._check_downstream(peer)
            self._following = asyncio.create_task(self._follow(peer))

    async def _follow(self, peer: Peer) -> None:
        while True:
            await asyncio.sleep(FOLLOW_UNHEALTHY_S if self._health.reasons[CHAIN] else FOLLOW_S)
            await self._check_downstream(peer)

    async def _check_downstream(self, peer: Peer) -> None:
        """Makes the health of the chain follow that of the service that this one depends on."""
        health = await check_health(peer, f"{self._name}: the next service", FOLLOW_S, CHAIN)
        await self._health.set_reason(CHAIN, health.reason)

    async def stop(self) -> None:
        """Drains the service, then closes everything.

        Its health says first that it no longer serves. For ``drain_s``, calls that clients sent before they
        learnt it are still accepted, unless no client follows the health. Then new ones are rejected, and
        running ones have up to ``grace_s`` to finish.
        """
        if self._following is not None:
            self._following.cancel()
        await self._health.enter_graceful_shutdown()
        if self._requests.ready and self._health.watched:
            await asyncio.sleep(self._settings.drain_s)
        self._health.end_watches()
        self._reflection.enter_graceful_shutdown()
        await self._server.stop(self._settings.grace_s)
        await self._servicer.close()


def run(
    name: str,
    settings_class: type[_Settings],
    build: Callable[[_Settings], _S],
    add: Callable[[_S, aio.Server], None],
) -> None:
    """Runs a service until SIGTERM or SIGINT; called by every ``__main__``.

    Args:
        name: name of the service, for logs, spans and metrics.
        settings_class: class of the settings, which are read from the environment.
        build: imports and constructs the servicer; called on the event loop.
        add: the generated ``add_...Servicer_to_server``.
    """
    # Modules and models are never freed. Garbage collection would only slow down the start, and later every
    # full collection would delay a request, so it is off until they are loaded and frozen.
    gc.disable()

    async def serve(settings: _Settings) -> None:
        tracing.configure(name, settings.spans_to)
        serve_metrics(settings)
        plugins.load_from_environment()
        for plugin, reason in plugins.broken().items():
            _log.warning("plug-in not loaded", plugin=plugin, error=reason)
        start, stop = time.perf_counter(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is signal.SIG_IGN:  # by whoever started this process
                continue
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = Server(settings, build(settings), add, name)
        port = await server.start()
        _log.info("listening", host=settings.host, port=port)
        loading, stopping = asyncio.create_task(server.load()), asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            if loading.exception() is None:
                gc.collect()
                gc.freeze()
                gc.enable()
                _log.info("ready", seconds=round(time.perf_counter() - start, 3))
                await stopping
            stopping.cancel()
        _log.info("stopping")
        await asyncio.gather(loading, return_exceptions=True)
        await server.stop()
        _log.info("stopped")
        loading.result()

    with errors_logged(name), contextlib.closing(tracing):
        settings = settings_class.read()
        configure_logging(name, settings.log_level)
        asyncio.run(serve(settings))
