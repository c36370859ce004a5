"""Settings of the edge service."""

from __future__ import annotations

from pydantic import Field

from services.common.addresses import Address
from services.common.converters import MAX_KNOWLEDGE
from services.common.settings import DAY_S, MANY, CodecSettings, GeneratorSettings


class EdgeSettings(CodecSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50053, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    cloud_address: Address = Field("127.0.0.1:50054", description="host:port of the cloud service.")
    knowledge_capacity: int = Field(
        8,
        ge=MAX_KNOWLEDGE,
        le=MANY,
        description="Knowledge updates kept in memory; the least recently used one is dropped first.",
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
