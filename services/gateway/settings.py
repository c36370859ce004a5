"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.addresses import Address, Hosts, Origins
from services.common.settings import DAY_S, MANY, CommonSettings


class GatewaySettings(CommonSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    user_address: Address = Field("127.0.0.1:50051", description="host:port of the user service.")
    cloud_address: Address = Field(
        "127.0.0.1:50054", description="host:port of the cloud service, for knowledge and jobs."
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=DAY_S,
        description="Time at shutdown during which `/readyz` fails but requests are still accepted, s; as "
        "long as a load balancer in front of several gateways takes to notice.",
    )
    profile: str = Field("stickers", description="Profile whose own topics the web page offers.")
    deadline_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Time limit of one REST request, s. A client has the same time again, and 1 s for each "
        "16 KiB, to take the part of a response that waits for it; then its connection is closed.",
    )
    stream_deadline_s: float = Field(
        3600.0,
        gt=0,
        le=DAY_S,
        description="Time after which an event stream ends, s; clients can open it again.",
    )
    max_in_flight: int = Field(
        16,
        ge=1,
        le=MANY,
        description="Upper limit of image requests in progress; further ones wait.",
    )
    max_waiting: int = Field(
        8,
        ge=0,
        le=MANY,
        description="Upper limit of waiting image requests; further ones are refused with status 429 and "
        "Retry-After. Clients below their fair share are still admitted, up to twice this "
        "number.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, one line each as printed by `dekag key`. If set, every request "
        "except health checks and pages needs a key. Required to listen beyond loopback.",
    )
    key_requests_per_minute: int = Field(
        120,
        ge=1,
        le=MANY,
        description="Limit of requests per minute and API key, unless the key's line overrides it.",
    )
    key_concurrency: int = Field(
        8,
        ge=1,
        le=MANY,
        description="Limit of simultaneous requests per API key, unless the key's line overrides it.",
    )
    https_dir: Path | None = Field(None, description="Folder with tls.crt and tls.key; enables HTTPS.")
    allowed_hosts: Hosts = Field(
        "localhost",
        description="Host names that a gateway without API keys accepts, separated by commas; IP addresses "
        "are always accepted. Prevents web pages from reaching it by DNS rebinding.",
    )
    allowed_origins: Origins = Field(
        "",
        description="Origins of web pages that may use the interface from a browser (CORS), such as "
        "https://example.org, separated by commas; * allows all. Such pages send the API key like any other "
        "client; without API keys, an allowed page can use everything that this gateway offers.",
    )
    max_connections: int = Field(
        512, ge=1, le=MANY, description="Upper limit of connections; further ones are closed with status 503."
    )
    max_header_bytes: int = Field(
        16 * 1024, ge=1024, le=2**20, description="Largest request line and headers accepted, bytes."
    )
    max_body_bytes: int = Field(
        64 * 1024,
        ge=1024,
        le=2**30,
        description="Largest request body accepted, bytes. Bodies with "
        "knowledge, pictures or a topic to distil have limits of their own.",
    )
    max_upload_bytes: int = Field(
        8 * 2**20,
        ge=1024,
        le=2**28,
        description="Largest knowledge that can be published over REST, all files together, bytes; in any "
        "case at most DEKAG_MAX_MESSAGE_BYTES minus 64 KiB.",
    )
    ready_timeout_s: float = Field(1.0, gt=0, le=DAY_S, description="Time limit of each check of /readyz, s.")
    watch_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Fraction of the delivered images that the drift watch compares with the cloud's own; 0 "
        "disables it.",
    )
    watch_min_psnr_db: float = Field(
        20.0,
        ge=0,
        le=100,
        description="Lowest PSNR of an image that the drift watch compares, dB. Below it, the link affects "
        "consistency more than the knowledge does.",
    )
