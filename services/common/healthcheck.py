"""Health check of one service: ``python -m services.common.healthcheck TARGET`` exits with 0 or 1.

The target is ``HOST:PORT``, ``http://...``, ``https://...`` or ``file:PATH``.
"""

from __future__ import annotations

import ssl
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.environment import get
from services.common.errors import SettingError
from services.common.security import channel_credentials

FRESH_S = 15.0
# The check connects to an address of this machine, which certificates of public authorities do not contain.
_any_certificate = ssl.create_default_context()
_any_certificate.check_hostname = False
_any_certificate.verify_mode = ssl.CERT_NONE
_no_proxy = build_opener(ProxyHandler({}), HTTPSHandler(context=_any_certificate))


def healthy(target: str, timeout_s: float = 2.0, tls_dir: str | None = None) -> bool:
    """Whether ``target`` is healthy.

    Args:
        target: ``host:port`` of a service with ``grpc.health.v1``, a URL that returns 2xx, or ``file:`` and
            the path of a file that the service touches at least every 15 s.
        timeout_s: longest wait, s.
        tls_dir: folder with the client's credentials for mutual TLS.
    """
    if target.startswith("file:"):
        try:
            age_s = time.time() - Path(target.removeprefix("file:")).stat().st_mtime
            return abs(age_s) < FRESH_S  # a time to come is one from before the clock was set back
        except OSError:
            return False
    if target.startswith(("http://", "https://")):
        try:
            with _no_proxy.open(target, timeout=timeout_s) as answer:
                return bool(200 <= answer.status < 300)
        except (URLError, OSError):
            return False
    try:
        credentials = channel_credentials(Path(tls_dir) if tls_dir else None)
    except SettingError:
        return False
    options = [("grpc.enable_http_proxy", 0)]
    channel = (
        grpc.insecure_channel(target, options)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )
    with channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(not healthy(sys.argv[1], tls_dir=get("DEKAG_TLS_DIR")))
