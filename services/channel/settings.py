"""Settings of the channel service."""

from __future__ import annotations

from pydantic import DirectoryPath, Field

from dekag.link.conditions import BUILT_IN_TRACES
from services.common.addresses import Address
from services.common.settings import MANY, CommonSettings


class ChannelSettings(CommonSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50052, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    downlink_address: Address = Field(
        "127.0.0.1:50053",
        description="host:port of the Downlink that provides the symbols: an edge or another channel.",
    )
    traces: DirectoryPath = Field(
        BUILT_IN_TRACES,
        description="Folder of the traces, NAME.csv each, that requests may have played back.",
    )
    max_queue: int = Field(
        256, ge=1, le=MANY, description="Requests that may wait for the channel; further ones are rejected."
    )
