"""Settings of the channel service."""

from __future__ import annotations

from pydantic import DirectoryPath, Field

from dekag.link.conditions import BUILT_IN_TRACES
from services.common.addresses import Address
from services.common.settings import MANY, CommonSettings


class ChannelSettings(CommonSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50052, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    downlink_address: Address = Field(
        "127.0.0.1:50053",
        description="host:port of the service that provides the symbols: an edge or another channel.",
    )
    traces: DirectoryPath = Field(
        BUILT_IN_TRACES, description="Folder of the traces that requests can use, as files NAME.csv."
    )
    max_queue: int = Field(
        256, ge=1, le=MANY, description="Upper limit of requests in the queue; further requests are refused."
    )
