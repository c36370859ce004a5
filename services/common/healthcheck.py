"""Whether one service answers: ``python -m services.common.healthcheck HOST:PORT|URL`` exits 0 or 1."""

from __future__ import annotations

import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_no_proxy = build_opener(ProxyHandler({}))


def healthy(target: str, timeout_s: float = 2.0) -> bool:
    """Whether ``target`` says that it serves, within ``timeout_s`` seconds.

    Args:
        target: ``host:port`` of a service with ``grpc.health.v1``, or an ``http://`` URL that answers 2xx.
        timeout_s: longest wait, s.
    """
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
