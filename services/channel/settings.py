"""Settings of the channel service."""

from __future__ import annotations

from pydantic import DirectoryPath, Field

from dekag.link.conditions import BUILT_IN_TRACES
from dekag.link.timing import AirTime
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
        BUILT_IN_TRACES,
        description="Folder of the traces that requests can use: files NAME.csv, or SigMF recordings "
        "NAME.sigmf-meta.",
    )
    max_queue: int = Field(
        256, ge=1, le=MANY, description="Upper limit of requests in the queue; further requests are refused."
    )
    air_bandwidth_hz: float = Field(
        1e6,
        gt=0,
        le=1e12,
        description="Modelled bandwidth, Hz. It determines `latency.air_s` of link reports and delays "
        "nothing; so do the other settings of the air interface.",
    )
    air_slot_s: float = Field(
        1e-3, gt=0, le=10, description="Modelled duration of a slot, s; a transmission takes whole slots."
    )
    air_overhead: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Modelled fraction of the channel uses that carry no data, such as control channels and "
        "cyclic prefixes. Pilots of the transmission are counted separately.",
    )

    def air(self) -> AirTime:
        """The modelled air interface."""
        return AirTime(self.air_bandwidth_hz, self.air_slot_s, self.air_overhead)
