"""Runs the gateway: ``python -m services.gateway``."""

from __future__ import annotations

import math
import socket

import uvicorn

from dekag import plugins
from services.common import metrics, tracing
from services.common.requests import configure_logging
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the event streams first, which would hold up the shutdown for the whole grace."""
        self.config.app.state.stopping.set()  # type: ignore[union-attr]
        await super().shutdown(sockets)
        tracing.close()  # here, since uvicorn ends the process by the signal that it got


def main() -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished first."""
    settings = GatewaySettings()
    configure_logging("gateway", settings.log_level)
    tracing.configure("gateway", settings.spans_to)
    metrics.serve(settings)
    plugins.load_from_environment()
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_s),
    )
    _Server(config).run()


if __name__ == "__main__":
    main()
