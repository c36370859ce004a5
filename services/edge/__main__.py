"""Runs the edge service: ``python -m services.edge``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.server import run
from services.edge.settings import EdgeSettings
from services.proto.downlink_pb2_grpc import add_DownlinkServicer_to_server

if TYPE_CHECKING:
    from services.edge.servicer import EdgeServicer


def build(settings: EdgeSettings) -> EdgeServicer:
    """The servicer; imported here, as its libraries are most of the start."""
    from services.edge.servicer import EdgeServicer

    return EdgeServicer(settings)


def main() -> None:
    """Reads the settings and serves until stopped."""
    run("edge", EdgeSettings, build, add_DownlinkServicer_to_server)


if __name__ == "__main__":
    main()
