"""Runs the edge service: ``python -m services.edge``."""

from __future__ import annotations

from services.common.server import run
from services.edge.servicer import EdgeServicer
from services.edge.settings import EdgeSettings
from services.proto.downlink_pb2_grpc import add_DownlinkServicer_to_server


def main() -> None:
    """Reads the settings and serves until stopped."""
    settings = EdgeSettings()
    run("edge", settings, lambda: EdgeServicer(settings), add_DownlinkServicer_to_server)


if __name__ == "__main__":
    main()
