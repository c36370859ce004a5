"""Whether one service is well: ``python -m services.common.healthcheck TARGET`` exits 0 or 1.

The target is ``HOST:PORT``, ``http://...`` or ``file:PATH``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

FRESH_S = 15.0
_no_proxy = build_opener(ProxyHandler({}))


def healthy(target: str, timeout_s: float = 2.0) -> bool:
    """Whether ``target`` says that it serves, within ``timeout_s`` seconds.

    Args:
        target: ``host:port`` of a service with ``grpc.health.v1``, an ``http://`` URL that answers 2xx, or
            ``file:`` and the path of a file that the service touches at least every 15 s.
        timeout_s: longest wait, s.
    """
    if target.startswith("file:"):
        try:
            return time.time() - Path(target.removeprefix("file:")).stat().st_mtime < FRESH_S
        except OSError:
            return False
    if target.startswith("http://"):
        try:
            with _no_proxy.open(target, timeout=timeout_s) as answer:
                return bool(200 <= answer.status < 300)
        except (URLError, OSError):
            return False
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(not healthy(sys.argv[1]))
