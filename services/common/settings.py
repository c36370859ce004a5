"""Settings that every service has; each service adds its own in its ``settings.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from services.common.errors import SettingError


class CommonSettings(BaseSettings):
    """Read from the environment, prefix ``DEKAG_``: ``DEKAG_LOG_LEVEL=debug``."""

    model_config = SettingsConfigDict(env_prefix="DEKAG_", frozen=True)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    published_on: str = Field(
        "",
        description="Where the ports of a container can be reached, since it listens on all addresses of its "
        "own: the address that they are published on, or `nowhere` for a network of trusted services only.",
    )
    tls_dir: Path | None = Field(
        None,
        description="Folder with ca.crt, tls.crt and tls.key, as `dekag credentials` makes them: turns on "
        "mutual TLS between services, and for metrics.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="Redis that serves as cache; empty turns caching off. rediss:// takes the certificates "
        "of DEKAG_TLS_DIR.",
    )
    redis_password_file: Path | None = Field(
        None, description="File that holds the password of the user that DEKAG_REDIS_URL names."
    )
    redis_timeout_s: float = Field(
        0.25, gt=0, description="Longest wait for a connection to Redis or an answer from it, s."
    )
    redis_retry_s: float = Field(
        2.0, ge=0, description="After a failure Redis is left alone for this long, s."
    )
    cache_ttl_s: int = Field(86_400, gt=0, description="Time that latents and images stay cached, s.")
    report_ttl_s: int = Field(3_600, gt=0, description="Time that link reports stay retrievable, s.")
    max_message_bytes: int = Field(
        16 * 2**20, ge=2**16, description="Largest gRPC message sent or accepted, bytes."
    )
    max_requests: int = Field(
        512, ge=1, description="gRPC requests that a service works at a time; more are turned away."
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Time that a client gets to send a request to the gateway, or to open a connection to "
        "another service, s.",
    )
    spans_to: str = Field(
        "",
        description="Where the spans of OpenTelemetry traces go: console, a URL that takes OTLP over HTTP, "
        "or a file for lines of JSON; empty makes none.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port that serves metrics to Prometheus; 0 serves none."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that serves metrics.")
    grace_s: float = Field(
        30.0, ge=0, description="Time that requests in flight are given to finish at shutdown, s."
    )

    @field_validator("redis_url")
    @classmethod
    def _is_url_of_redis(cls, url: str) -> str:
        try:
            if url:
                parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:  # whose message may show a part of the password
            raise ValueError("must be like redis://host:6379/0, rediss:// or unix://, or empty") from None
        return url

    @classmethod
    def read(cls) -> Self:
        """What the environment says; SettingError that names every variable that is not as it must be."""
        try:
            return cls()
        except ValidationError as error:
            wrong = []
            for each in error.errors():
                name = str(each["loc"][0])
                got = f"; got {str(each['input'])[:80]!r}" if cls.model_fields[name].repr else ""
                wrong.append(f"DEKAG_{name.upper()}: {each['msg']}{got}")
            raise SettingError(". ".join(wrong)) from None


class ServiceSettings(CommonSettings):
    """Settings of a gRPC service that holds models."""

    profile: str = Field(
        "embedded",
        description="Models to run: a profile's name under models/, or a folder with a profile.json.",
    )
    threads: int = Field(
        1,
        ge=0,
        description="CPU threads of each model; 0 leaves it to torch. 1 is fastest for the embedded models.",
    )
    max_queue: int = Field(
        64, ge=1, description="Requests that may wait for one model; more are turned away as exhausted."
    )
    batch_wait_s: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Time that a free model waits for more requests to share a batch with the first, s.",
    )


class GeneratorSettings(ServiceSettings):
    """Settings of a gRPC service that draws pictures."""

    generate_batch: int = Field(
        6,
        ge=1,
        le=64,
        description="Most pictures drawn at once of those that wait, each with its own prompt, seed and "
        "knowledge. Latents that share a batch differ by a few millionths from those drawn alone; with 1, "
        "the same request gives the same bits whatever else is asked.",
    )


class CodecSettings(ServiceSettings):
    """Settings of a gRPC service that encodes or decodes."""

    max_batch: int = Field(
        16,
        ge=1,
        le=64,
        description="Most transmissions that the codec takes at once of those that wait for it. "
        "No result depends on it.",
    )
    adapters_capacity: int = Field(
        4,
        ge=1,
        description="Versions of the transmission knowledge held in memory; the least recently used goes.",
    )
