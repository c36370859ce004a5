"""Settings of the cloud service."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings


class CloudSettings(ServiceSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(50054, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
