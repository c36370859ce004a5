"""Runs the cloud service: ``python -m services.cloud``."""

from __future__ import annotations

from services.cloud.servicer import CloudServicer
from services.cloud.settings import CloudSettings
from services.common.server import run
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server


def main() -> None:
    """Reads the settings and serves until stopped."""
    settings = CloudSettings()
    run("cloud", settings, lambda: CloudServicer(settings), add_CloudServicer_to_server)


if __name__ == "__main__":
    main()
