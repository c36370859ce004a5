"""Settings of all services; each service adds its own in its ``settings.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from services.common.addresses import Host, PublishedOn, RedisUrl, SpansTo
from services.common.environment import PREFIX, filled
from services.common.errors import SettingError

DAY_S = 86_400
YEAR_S = 366 * DAY_S
MANY = 1_000_000
"""Upper bound of counts; a larger value is a typing error."""


class CommonSettings(BaseSettings):
    """Read from the environment, prefix ``DEKAG_``: ``DEKAG_LOG_LEVEL=debug``.

    A blank variable counts as unset.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, allow_inf_nan=False)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level.")
    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    published_on: PublishedOn = Field(
        "",
        description="Address on which the ports of a container are published, as it listens on all of its "
        "own addresses; `nowhere` for a network of trusted services only.",
    )
    tls_dir: Path | None = Field(
        None,
        description="Folder with ca.crt, tls.crt and tls.key, made by `dekag credentials`; turns on mutual "
        "TLS between services and for metrics.",
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="URL of Redis, for caches, jobs and the catalogue of knowledge; `none` turns it off. "
        "rediss:// uses the certificates in DEKAG_TLS_DIR.",
    )
    redis_password_file: Path | None = Field(
        None, description="File with the password of the user in DEKAG_REDIS_URL."
    )
    redis_timeout_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Timeout of connections to Redis and of cache operations, s."
    )
    redis_retry_s: float = Field(
        2.0, ge=0, le=DAY_S, description="Time after a failure during which the cache does not use Redis, s."
    )
    cache_ttl_s: int = Field(
        DAY_S, gt=0, le=10 * YEAR_S, description="Lifetime of cached latents and images, s."
    )
    report_ttl_s: int = Field(3_600, gt=0, le=10 * YEAR_S, description="Lifetime of link reports, s.")
    max_message_bytes: int = Field(
        16 * 2**20, ge=2**16, le=2**30, description="Largest gRPC message sent or accepted, bytes."
    )
    max_requests: int = Field(
        512, ge=1, le=MANY, description="Concurrent gRPC requests of a service; further ones are rejected."
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        le=DAY_S,
        description="Timeout for receiving a request at the gateway, and for opening a connection to another "
        "service, s.",
    )
    spans_to: SpansTo = Field(
        "",
        description="Destination of OpenTelemetry spans: console, a URL that accepts OTLP over HTTP, or a "
        "file, which is written as JSON lines; empty turns tracing off.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of the Prometheus metrics; 0 turns them off."
    )
    metrics_host: Host = Field("127.0.0.1", description="Address of the Prometheus metrics.")
    grace_s: float = Field(
        30.0, ge=0, le=DAY_S, description="Time for running requests to finish at shutdown, s."
    )

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        named = self.redis_password_file is not None
        if named and self.redis_url and urlsplit(self.redis_url).password is not None:
            raise ValueError(
                "DEKAG_REDIS_URL contains a password and DEKAG_REDIS_PASSWORD_FILE is set, too: use only one"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments take precedence over the environment without its blank variables."""
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = filled(env_settings.env_vars)
        return init_settings, env_settings

    @classmethod
    def variables(cls) -> list[str]:
        """Names of the environment variables."""
        return [f"{PREFIX}{name.upper()}" for name in cls.model_fields]

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the environment; raises SettingError that names every invalid variable."""
        given: dict[str, Any] = {}
        if environment is not os.environ:
            full = filled(environment)
            variables = zip(cls.model_fields, cls.variables(), strict=True)
            given = {name: full[variable] for name, variable in variables if variable in full}
        try:
            return cls(**given)
        except ValidationError as error:
            problems = []
            for detail in error.errors():
                message = detail["msg"].removeprefix("Value error, ")
                if not detail["loc"]:  # about several settings, which the message names
                    problems.append(message)
                    continue
                name = str(detail["loc"][0])
                got = f"; got {str(detail['input'])[:80]!r}" if cls.model_fields[name].repr else ""
                problems.append(f"{PREFIX}{name.upper()}: {message}{got}")
            raise SettingError(". ".join(problems)) from None


class ServiceSettings(CommonSettings):
    """Settings of a gRPC service that holds models."""

    profile: str = Field(
        "embedded",
        description="Profile, which names the models: a name under models/, or a folder with a profile.json.",
    )
    threads: int = Field(
        1,
        ge=0,
        le=1024,
        description="CPU threads of each model; 0 uses torch's default. 1 is fastest for embedded models.",
    )
    max_queue: int = Field(
        64,
        ge=1,
        le=MANY,
        description="Requests that may wait for one model; further ones are rejected as exhausted.",
    )
    batch_wait_s: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Time that a free model waits for more requests to share a batch, s.",
    )


class GeneratorSettings(ServiceSettings):
    """Settings of a gRPC service that generates images."""

    generate_batch: int = Field(
        6,
        ge=1,
        le=64,
        description="Largest batch of images, each with its own prompt, seed and knowledge. Latents from a "
        "larger batch differ by a few millionths from those generated alone; with 1, a request always gives "
        "the same bits, whatever the load.",
    )


class CodecSettings(ServiceSettings):
    """Settings of a gRPC service that encodes or decodes."""

    max_batch: int = Field(
        16,
        ge=1,
        le=64,
        description="Largest batch of transmissions in the codec. It does not affect results.",
    )
    adapters_capacity: int = Field(
        4,
        ge=1,
        le=MANY,
        description="Versions of the transmission knowledge held in memory; the least recently used one is "
        "evicted.",
    )
