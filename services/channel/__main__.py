"""Runs the channel service: ``python -m services.channel``."""

from __future__ import annotations

from services.channel.servicer import ChannelServicer
from services.channel.settings import ChannelSettings
from services.common.server import run
from services.proto.downlink_pb2_grpc import add_DownlinkServicer_to_server


def main() -> None:
    """Reads the settings and serves until stopped."""
    settings = ChannelSettings()
    run("channel", settings, lambda: ChannelServicer(settings), add_DownlinkServicer_to_server)


if __name__ == "__main__":
    main()
