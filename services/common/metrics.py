"""Prometheus metrics of the services. Always recorded; served only if the settings name a port.

Each service has its own process and port, so the service is not a label. Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services.common import security
from services.common.errors import SettingError

if TYPE_CHECKING:
    from services.common.settings import CommonSettings
    from services.proto.user_pb2 import LinkReport

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
REDIS_FAILURES = Counter("dekag_redis_failures", "Calls to Redis that failed.")
JOBS = Gauge("dekag_jobs", "Distillations that have not ended; unknown without Redis.", ["status"])
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


def serve(settings: CommonSettings) -> None:
    """Serves the metrics in a thread if the settings name a port; with mutual TLS if they name credentials.

    Raises:
        SettingError: the port is in use, or would be exposed beyond loopback without mutual TLS.
    """
    if not settings.metrics_port:
        return
    folder = settings.tls_dir
    security.check_exposure(
        settings,
        settings.metrics_host,
        "the metrics",
        safe=folder is not None,
        fix="set DEKAG_TLS_DIR to a folder that `dekag credentials` makes",
    )
    tls: dict[str, Any] = {}
    if folder is not None:
        security.check_pair(folder, "DEKAG_TLS_DIR")
        tls = {
            "certfile": str(folder / security.CERTIFICATE),
            "keyfile": str(folder / security.KEY),
            "client_cafile": str(folder / security.CA),
            "client_auth_required": True,
        }
    try:
        start_http_server(settings.metrics_port, settings.metrics_host, **tls)
    except OSError as error:
        raise SettingError(
            f"DEKAG_METRICS_PORT: port {settings.metrics_port} of {settings.metrics_host} must be free; each "
            f"process needs its own: {error}"
        ) from error


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
    for traffic in report.hops:
        HOP_BYTES.labels(traffic.hop).inc(traffic.sent_bytes)
