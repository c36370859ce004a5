"""Settings of the edge service."""

from __future__ import annotations

from pydantic import Field

from services.common.addresses import Address
from services.common.converters import MAX_KNOWLEDGE
from services.common.settings import DAY_S, MANY, CodecSettings, GeneratorSettings


class EdgeSettings(CodecSettings, GeneratorSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50053, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    cloud_address: Address = Field("127.0.0.1:50054", description="host:port of the cloud service.")
    knowledge_capacity: int = Field(
        8,
        ge=MAX_KNOWLEDGE,
        le=MANY,
        description="Knowledge updates held in memory; the least recently used one is evicted.",
    )
    knowledge_keep_s: float = Field(
        2.0,
        ge=0,
        le=DAY_S,
        description="Time that the cloud's list of knowledge is kept if Redis has none, s.",
    )
    knowledge_timeout_s: float = Field(
        2.0, gt=0, le=DAY_S, description="Timeout of queries to the cloud for the list of knowledge, s."
    )
