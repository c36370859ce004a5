"""Runs the channel service: ``python -m services.channel``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.channel.settings import ChannelSettings
from services.common.server import run
from services.proto.downlink_pb2_grpc import add_DownlinkServicer_to_server

if TYPE_CHECKING:
    from services.channel.servicer import ChannelServicer


def build(settings: ChannelSettings) -> ChannelServicer:
    """The servicer; imported here, as its libraries are most of the start."""
    from services.channel.servicer import ChannelServicer

    return ChannelServicer(settings)


def main() -> None:
    """Reads the settings and serves until stopped."""
    run("channel", ChannelSettings, build, add_DownlinkServicer_to_server)


if __name__ == "__main__":
    main()
