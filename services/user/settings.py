"""Settings of the user service."""

from __future__ import annotations

from pydantic import Field

from services.common.addresses import Address
from services.common.settings import CodecSettings


class UserSettings(CodecSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    downlink_address: Address = Field(
        "127.0.0.1:50052",
        description="host:port of the service that provides the symbols: a channel, or an edge for an ideal "
        "channel.",
    )
