"""Settings of the edge service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dekag.api.limits import MAX_KNOWLEDGE
from dekag.link.timing import BackhaulTime
from services.common.addresses import Address
from services.common.settings import DAY_S, MANY, CodecSettings, GeneratorSettings


class EdgeSettings(CodecSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50053, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    cloud_address: Address = Field("127.0.0.1:50054", description="host:port of the cloud service.")
    trusted_keys_file: Path | None = Field(
        None,
        description="File with the public keys, one in each line, of which one must have signed the "
        "knowledge that is used; read again when it changes. Without it, no signature is required.",
    )
    knowledge_capacity: int = Field(
        8,
        ge=MAX_KNOWLEDGE,
        le=MANY,
        description="Knowledge updates kept in memory ready to draw with; the least recently used one is "
        "dropped first. Ready, an update takes many times the bytes of its files.",
    )
    knowledge_mib: int = Field(
        256,
        ge=0,
        le=2**20,
        description="Memory for knowledge updates as they arrived, MiB, from which they are made ready to "
        "draw with; the least recently used one is dropped first, and crosses the backhaul again when it is "
        "needed again.",
    )
    knowledge_keep_s: float = Field(
        2.0,
        ge=0,
        le=DAY_S,
        description="Time that the cloud's catalogue of knowledge is cached if Redis does not have it, s.",
    )
    knowledge_timeout_s: float = Field(
        2.0, gt=0, le=DAY_S, description="Time limit for the cloud to return the catalogue of knowledge, s."
    )
    backhaul_rate_bit_s: float = Field(
        1e9,
        gt=0,
        le=1e15,
        description="Modelled rate between edge and cloud, bit/s. It determines `latency.backhaul_s` of link "
        "reports and delays nothing; so do the other settings of the backhaul.",
    )
    backhaul_delay_s: float = Field(
        0.005, ge=0, le=60, description="Modelled delay between edge and cloud in one direction, s."
    )
    backhaul_jitter_s: float = Field(
        0.001,
        ge=0,
        le=60,
        description="Mean of the modelled random delay beyond DEKAG_BACKHAUL_DELAY_S, exponentially "
        "distributed, s.",
    )
    backhaul_loss: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Modelled probability that a packet between edge and cloud is lost and sent again.",
    )

    def backhaul(self) -> BackhaulTime:
        """The modelled hop to the cloud."""
        return BackhaulTime(
            self.backhaul_rate_bit_s, self.backhaul_delay_s, self.backhaul_jitter_s, self.backhaul_loss
        )
