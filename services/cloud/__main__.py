"""Runs the cloud service: ``python -m services.cloud``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cloud.settings import CloudSettings
from services.common.server import run
from services.proto.cloud_pb2_grpc import add_CloudServicer_to_server

if TYPE_CHECKING:
    from services.cloud.servicer import CloudServicer


def build(settings: CloudSettings) -> CloudServicer:
    """The servicer; imported here, as its libraries are most of the start."""
    from services.cloud.servicer import CloudServicer

    return CloudServicer(settings)


def main() -> None:
    """Reads the settings and serves until stopped."""
    run("cloud", CloudSettings, build, add_CloudServicer_to_server)


if __name__ == "__main__":
    main()
