"""Settings that every service has; each service adds its own in its ``settings.py``."""

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
"""Bound of what is counted: more is a typing error."""


class CommonSettings(BaseSettings):
    """Read from the environment, prefix ``DEKAG_``: ``DEKAG_LOG_LEVEL=debug``.

    A variable that is empty or holds nothing but white space is as good as none.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, allow_inf_nan=False)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    published_on: PublishedOn = Field(
        "",
        description="Where the ports of a container can be reached, since it listens on all addresses of its "
        "own: the address that they are published on, or `nowhere` for a network of trusted services only.",
    )
    tls_dir: Path | None = Field(
        None,
        description="Folder with ca.crt, tls.crt and tls.key, as `dekag credentials` makes them: turns on "
        "mutual TLS between services, and for metrics.",
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="Redis that serves as cache; `none` turns caching off. rediss:// takes the certificates "
        "of DEKAG_TLS_DIR.",
    )
    redis_password_file: Path | None = Field(
        None, description="File that holds the password of the user that DEKAG_REDIS_URL names."
    )
    redis_timeout_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Longest wait for a connection to Redis or an answer from it, s."
    )
    redis_retry_s: float = Field(
        2.0, ge=0, le=DAY_S, description="After a failure Redis is left alone for this long, s."
    )
    cache_ttl_s: int = Field(
        DAY_S, gt=0, le=10 * YEAR_S, description="Time that latents and images stay cached, s."
    )
    report_ttl_s: int = Field(
        3_600, gt=0, le=10 * YEAR_S, description="Time that link reports stay retrievable, s."
    )
    max_message_bytes: int = Field(
        16 * 2**20, ge=2**16, le=2**30, description="Largest gRPC message sent or accepted, bytes."
    )
    max_requests: int = Field(
        512, ge=1, le=MANY, description="gRPC requests that a service works at a time; more are turned away."
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        le=DAY_S,
        description="Time that a client gets to send a request to the gateway, or to open a connection to "
        "another service, s.",
    )
    spans_to: SpansTo = Field(
        "",
        description="Where the spans of OpenTelemetry traces go: console, a URL that takes OTLP over HTTP, "
        "or a file for lines of JSON; empty makes none.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port that serves metrics to Prometheus; 0 serves none."
    )
    metrics_host: Host = Field("127.0.0.1", description="Address that serves metrics.")
    grace_s: float = Field(
        30.0, ge=0, le=DAY_S, description="Time that requests in flight are given to finish at shutdown, s."
    )

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        named = self.redis_password_file is not None
        if named and self.redis_url and urlsplit(self.redis_url).password is not None:
            raise ValueError(
                "DEKAG_REDIS_URL holds a password and DEKAG_REDIS_PASSWORD_FILE names another: give one"
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
        """What is given first, then the environment without its empty variables."""
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = filled(env_settings.env_vars)
        return init_settings, env_settings

    @classmethod
    def variables(cls) -> list[str]:
        """Names of the variables that are read."""
        return [f"{PREFIX}{name.upper()}" for name in cls.model_fields]

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """What the environment says; SettingError that names every variable that is not as it must be."""
        given: dict[str, Any] = {}
        if environment is not os.environ:
            full = filled(environment)
            variables = zip(cls.model_fields, cls.variables(), strict=True)
            given = {name: full[variable] for name, variable in variables if variable in full}
        try:
            return cls(**given)
        except ValidationError as error:
            wrong = []
            for each in error.errors():
                said = each["msg"].removeprefix("Value error, ")
                if not each["loc"]:  # of several settings, which it names
                    wrong.append(said)
                    continue
                name = str(each["loc"][0])
                got = f"; got {str(each['input'])[:80]!r}" if cls.model_fields[name].repr else ""
                wrong.append(f"{PREFIX}{name.upper()}: {said}{got}")
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
        le=1024,
        description="CPU threads of each model; 0 leaves it to torch. 1 is fastest for the embedded models.",
    )
    max_queue: int = Field(
        64,
        ge=1,
        le=MANY,
        description="Requests that may wait for one model; more are turned away as exhausted.",
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
        le=MANY,
        description="Versions of the transmission knowledge held in memory; the least recently used goes.",
    )
