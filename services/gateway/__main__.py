"""Runs the gateway: ``python -m services.gateway``."""

from __future__ import annotations

import math

import uvicorn

from services.common.requests import configure_logging
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings


def main() -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished first."""
    settings = GatewaySettings()
    configure_logging("gateway", settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.grace_s),
    )


if __name__ == "__main__":
    main()
