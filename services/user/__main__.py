"""Runs the user service: ``python -m services.user``."""

from __future__ import annotations

from services.common.server import run
from services.proto.user_pb2_grpc import add_UserServicer_to_server
from services.user.servicer import UserServicer
from services.user.settings import UserSettings


def main() -> None:
    """Reads the settings and serves until stopped."""
    settings = UserSettings()
    run("user", settings, lambda: UserServicer(settings), add_UserServicer_to_server)


if __name__ == "__main__":
    main()
