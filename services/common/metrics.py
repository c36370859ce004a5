"""Prometheus metrics of the services. Always recorded; served only if the settings name a port.

Each service has its own process and port, so the service is not a label. Imports no torch.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

from services.common import security
from services.common.errors import SettingError

if TYPE_CHECKING:
    from services.common.settings import CommonSettings
    from services.proto.user_pb2 import LinkReport

_HOPS = frozenset(
    {"cloud-edge", "edge-channel", "channel-channel", "channel-user", "edge-user", "user-gateway"}
)
MAX_CONNECTIONS = 64
"""Upper limit of connections to the metrics port: a further one takes the place of the oldest."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MINUTES = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)  # in seconds

REQUEST_SECONDS = Histogram(
    "dekag_request_seconds",
    "Duration of a request in the service that answered it.",
    ["request", "status"],
    buckets=_SECONDS,
)
RETRIES = Counter(
    "dekag_retries", "Calls received that gRPC repeats because an earlier attempt failed.", ["request"]
)
STAGE_SECONDS = Histogram(
    "dekag_stage_seconds",
    "Duration of a stage without its wait; requests that share a batch each count the whole batch.",
    ["stage"],
    buckets=_SECONDS,
)
DELIVERIES = Counter("dekag_deliveries", "Images delivered.", ["delivery", "decoded"])
DELIVERY_SECONDS = Histogram(
    "dekag_delivery_seconds",
    "Time from the request to the user until the image is received and measured.",
    ["delivery"],
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 30, 60),
)
CHANNEL_USES = Counter("dekag_channel_uses", "Channel uses of images, including pilots.", ["delivery"])
PSNR_DB = Histogram(
    "dekag_psnr_db",
    "PSNR of the received image against the sent one, if measured.",
    ["delivery"],
    buckets=(6, 9, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 33, 36, 40, 50),
)
SNR_DB = Histogram(
    "dekag_instantaneous_snr_db",
    "Mean SNR of a transmission with its actual gains.",
    ["delivery"],
    buckets=(-20, -15, -10, -5, 0, 3, 6, 9, 12, 15, 18, 21, 25, 30, 35, 40),
)
HOP_BYTES = Counter("dekag_hop_bytes", "Bytes that crossed a hop, as in link reports.", ["hop"])
CACHE_LOOKUPS = Counter("dekag_cache_lookups", "Cache lookups in Redis.", ["kind", "found"])
WAITING = Gauge(
    "dekag_waiting", "Requests waiting for or running on a model; at the gateway, waiting.", ["line"]
)
REFUSED = Counter("dekag_refused", "Requests rejected because a queue was full or too slow.", ["line"])
BATCH_SIZE = Histogram(
    "dekag_batch_size",
    "Requests in one batch of a model.",
    ["line"],
    buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64),
)
KNOWLEDGE_LOADED = Counter(
    "dekag_knowledge_loaded", "Knowledge updates and adapters fetched into memory.", ["kind"]
)
KNOWLEDGE_FETCHED_AGAIN = Counter(
    "dekag_knowledge_fetched_again",
    "Of those, fetched before by the same process, and dropped since for lack of room.",
    ["kind"],
)
REJECTED = Counter(
    "dekag_rejected", "Values in Redis that were not used, as their signature or seal is invalid.", ["kind"]
)
REDIS_FAILURES = Counter("dekag_redis_failures", "Calls to Redis that failed.")
JOBS = Gauge("dekag_jobs", "Distillations that have not ended; unknown without Redis.", ["status"])
CERTIFICATE_ENDS = Gauge(
    "dekag_certificate_ends_timestamp_seconds",
    "End of the validity of a certificate, Unix time, s.",
    ["setting"],
)
STORE_ITEMS = Gauge("dekag_store_items", "Items in a store of the cloud; MiB if its name says so.", ["store"])
STORE_LIMIT = Gauge("dekag_store_limit", "Largest number of items in a store of the cloud.", ["store"])
DISK_FREE_BYTES = Gauge(  # with a label, as services without a data folder would say 0
    "dekag_disk_free_bytes", "Free space on the disk of the cloud's data folder.", ["folder"]
)
REDIS_MEMORY = Gauge(
    "dekag_redis_memory_bytes", "Memory of Redis, used and at most; no limit counts as 0.", ["of"]
)
DISTILLATIONS = Counter("dekag_distillations", "Distillations that have ended.", ["outcome"])
DISTILL_SECONDS = Histogram(
    "dekag_distill_seconds",
    "Duration of a stage of a distillation; after an interruption, since it resumed.",
    ["stage"],
    buckets=_MINUTES,
)
CONSISTENCY = Histogram(
    "dekag_consistency",
    "Consistency of sampled images, generated with at most one update, with the cloud's own.",
    ["topic"],
    buckets=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1),
)
CONSISTENCY_MEAN = Gauge(
    "dekag_consistency_mean",
    "Mean consistency over the first (fresh) and last (recent) images of the current version.",
    ["topic", "of"],
)
DRIFTING = Gauge("dekag_drifting", "1 if the recent mean is too far below the fresh one.", ["topic"])
WATCH_DROPPED = Counter("dekag_watch_dropped", "Sampled images that were not compared.", ["reason"])


def serve(settings: CommonSettings) -> ssl.SSLContext | None:
    """Serves the metrics in a thread if the settings name a port; with mutual TLS if they name credentials.

    Returns:
        The context of mutual TLS; None without it.

    Raises:
        SettingError: the port is in use, or would be exposed beyond loopback without mutual TLS.
    """
    if not settings.metrics_port:
        return None
    folder = settings.tls_dir
    security.check_exposure(
        settings,
        settings.metrics_host,
        "the metrics",
        safe=folder is not None,
        fix="set DEKAG_TLS_DIR to a folder that `dekag credentials` makes",
    )
    tls = None if folder is None else security.server_context(folder, "DEKAG_TLS_DIR")
    try:
        server = _Server(settings, tls)
    except OSError as error:
        raise SettingError(
            f"DEKAG_METRICS_PORT: port {settings.metrics_port} of {settings.metrics_host} must be free; each "
            f"process needs its own: {error}"
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return tls


class _Handler(WSGIRequestHandler):
    """Closes a connection that is silent for too long, and logs nothing."""

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()  # in this thread, where it keeps nobody else waiting
        super().handle()


class _Server(ThreadingMixIn, WSGIServer):
    """Serves the metrics with bounds that prometheus_client's own server does not have.

    Args:
        settings: address, and the time limit for a request.
        tls: for mutual TLS, if required.
    """

    daemon_threads = True

    def __init__(self, settings: CommonSettings, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._lock, self._open = threading.Lock(), dict[Any, None]()  # connections, the oldest first
        host, port = settings.metrics_host.strip("[]"), settings.metrics_port
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        handler = type("_TimedHandler", (_Handler,), {"timeout": settings.receive_timeout_s})
        super().__init__((host, port), handler)
        self.set_app(_guarded(make_wsgi_app(), {settings.metrics_host.lower()}))

    def server_bind(self) -> None:
        # not WSGIServer's, which asks a name server for the host's name
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:  # the oldest is silent: an answer takes milliseconds
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):  # it has ended
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)  # not TLS's, which its thread may use
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave, stay silent or have no certificate are not errors of this service."""


def _guarded(app: Callable[..., Iterable[bytes]], hosts: set[str]) -> Callable[..., Iterable[bytes]]:
    """Refuses requests that a browser sends for a web page, also by DNS rebinding.

    Args:
        app: what to guard.
        hosts: names that are served besides addresses, and names without dots, such as those of containers.
    """

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if _is_of_a_page(environ, hosts):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"metrics are not served to web pages, nor under names with dots: use the address\n"]
        return app(environ, start_response)

    return guarded


def _is_of_a_page(environ: dict[str, Any], hosts: set[str]) -> bool:
    if "HTTP_ORIGIN" in environ or environ.get("HTTP_SEC_FETCH_SITE", "none") != "none":
        return True
    try:
        name = (urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or "").lower()
    except ValueError:
        return True
    if name in hosts or not {".", ":"}.intersection(name):  # no public site has a name without a dot
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def record_delivery(report: LinkReport, delivery: str, seconds: float) -> None:
    """Records a delivery, decoded or not.

    Args:
        report: its finished link report.
        delivery: delivery mode of the request.
        seconds: time since the request, s.
    """
    DELIVERIES.labels(delivery, str(report.decoded).lower()).inc()
    DELIVERY_SECONDS.labels(delivery).observe(seconds)
    CHANNEL_USES.labels(delivery).inc(report.channel_uses + report.pilot_uses)
    if report.HasField("psnr_db"):
        PSNR_DB.labels(delivery).observe(report.psnr_db)
    if report.HasField("instantaneous_snr_db"):
        SNR_DB.labels(delivery).observe(report.instantaneous_snr_db)
    for traffic in report.hops:  # which a peer names
        HOP_BYTES.labels(traffic.hop if traffic.hop in _HOPS else "other").inc(traffic.sent_bytes)
