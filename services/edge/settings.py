"""Settings of the edge service."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings


class EdgeSettings(ServiceSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50053, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    cloud_address: str = Field("127.0.0.1:50054", description="host:port of the cloud service.")
