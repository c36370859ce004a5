"""Runs the user service: ``python -m services.user``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.common.server import run
from services.proto.user_pb2_grpc import add_UserServicer_to_server
from services.user.settings import UserSettings

if TYPE_CHECKING:
    from services.user.servicer import UserServicer


def build(settings: UserSettings) -> UserServicer:
    """The servicer; imported here, as its libraries are most of the start."""
    from services.user.servicer import UserServicer

    return UserServicer(settings)


def main() -> None:
    """Reads the settings and serves until stopped."""
    run("user", UserSettings, build, add_UserServicer_to_server)


if __name__ == "__main__":
    main()
