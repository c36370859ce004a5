"""Runs the gateway: ``python -m services.gateway``."""

from __future__ import annotations

import structlog

from dekag import plugins
from services.common import tracing
from services.common.certificates import serve_metrics
from services.common.process import errors_logged
from services.common.request_context import configure_logging
from services.common.security import check_exposure, exposed_on
from services.gateway.app import create_app
from services.gateway.server import make_server
from services.gateway.settings import GatewaySettings

_log = structlog.get_logger()


def main() -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are finished first."""
    with errors_logged("gateway"):
        settings = GatewaySettings.read()
        configure_logging("gateway", settings.log_level)
        tracing.configure("gateway", settings.spans_to)
        check_exposure(
            settings,
            settings.host,
            "the gateway",
            safe=settings.api_keys_file is not None,
            fix="make an API key with `dekag key NAME >> api-keys` and set DEKAG_API_KEYS_FILE=api-keys",
        )
        serve_metrics(settings)
        plugins.load_from_environment()
        for plugin, reason in plugins.broken().items():
            _log.warning("plug-in not loaded", plugin=plugin, error=reason)
        server = make_server(create_app(settings))
    if settings.https_dir is None and exposed_on(settings, settings.host) is not None:
        _log.warning("API keys come in the clear unless a proxy ends TLS; DEKAG_HTTPS_DIR serves HTTPS")
    server.run()


if __name__ == "__main__":
    main()
