"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.common.addresses import Address, Hosts
from services.common.settings import DAY_S, MANY, CommonSettings


class GatewaySettings(CommonSettings):
    """Read from the environment, prefix ``DEKAG_``."""

    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    user_address: Address = Field("127.0.0.1:50051", description="host:port of the user service.")
    cloud_address: Address = Field(
        "127.0.0.1:50054", description="host:port of the cloud service, for knowledge and jobs."
    )
    deadline_s: float = Field(
        60.0, gt=0, le=3600, description="Time that one REST request may take in all, s."
    )
    stream_deadline_s: float = Field(
        3600.0,
        gt=0,
        le=DAY_S,
        description="Time after which an event stream ends; it may be asked for again, s.",
    )
    max_in_flight: int = Field(
        16,
        ge=1,
        le=MANY,
        description="Requests for images that are worked at a time; more wait for their turn.",
    )
    max_waiting: int = Field(
        8,
        ge=0,
        le=MANY,
        description="Requests for images that may wait; more are refused with status 429 and Retry-After. "
        "Clients with less than their fair share still get in, up to twice as many.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, a line each as `dekag key` prints it; with it every request but those "
        "for health and pages needs one. Needed to be reached beyond loopback.",
    )
    key_requests_per_minute: int = Field(
        120,
        ge=1,
        le=MANY,
        description="Requests of one API key in any minute, where its line says nothing else.",
    )
    key_concurrency: int = Field(
        8, ge=1, le=MANY, description="Requests of one API key at a time, where its line says nothing else."
    )
    https_dir: Path | None = Field(
        None, description="Folder with tls.crt and tls.key: REST is served over HTTPS with them."
    )
    allowed_hosts: Hosts = Field(
        "localhost",
        description="Names, separated by commas, that this gateway answers to while it needs no API keys; "
        "it always answers to IP addresses. Keeps web pages that a browser shows from reaching it.",
    )
    max_connections: int = Field(
        512, ge=1, le=MANY, description="Connections at a time; more are closed with status 503."
    )
    max_header_bytes: int = Field(
        16 * 1024, ge=1024, le=2**20, description="Largest request line and headers accepted, bytes."
    )
    max_body_bytes: int = Field(
        64 * 1024, ge=1024, le=2**30, description="Largest request body accepted, bytes."
    )
    max_upload_bytes: int = Field(
        8 * 2**20,
        ge=1024,
        le=2**28,
        description="Largest knowledge that may be published over REST, its files together, bytes; at most "
        "64 KiB less than DEKAG_MAX_MESSAGE_BYTES in any case.",
    )
    ready_timeout_s: float = Field(1.0, gt=0, le=DAY_S, description="Time that /readyz gives each check, s.")
    watch_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of the delivered images that are compared with the cloud's own in the background, "
        "to see whether knowledge drifts; 0 turns it off.",
    )
    watch_min_psnr_db: float = Field(
        20.0,
        ge=0,
        le=100,
        description="Least PSNR of an image that is compared, dB; those below tell of the link more than of "
        "the knowledge.",
    )
