"""Settings that every service has; each service adds its own in its ``settings.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from dekag.errors import InvalidInputError
from dekag.generation.machine import Machine
from dekag.makd.demand import DemandPolicy
from services.common.addresses import Host, PublishedOn, RedisUrl, SpansTo
from services.common.environment import PREFIX, filled
from services.common.errors import SettingError

if TYPE_CHECKING:
    from dekag.generation.placement import Placement

DAY_S = 86_400
YEAR_S = 366 * DAY_S
MANY = 1_000_000
"""Bound of what is counted: more is a typing error."""


class CommonSettings(BaseSettings):
    """Read from the environment, prefix ``DEKAG_``: ``DEKAG_LOG_LEVEL=debug``.

    A variable that is empty or holds nothing but white space is as good as none.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, allow_inf_nan=False)

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum log level.")
    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 selects a free port.")
    published_on: PublishedOn = Field(
        "",
        description="Address on which a container's port is published, such as 127.0.0.1, or `nowhere` for "
        "ports that only the container network reaches. A container listens on all of its "
        "addresses, so it cannot know this itself.",
    )
    tls_dir: Path | None = Field(
        None,
        description="Folder with ca.crt, tls.crt and tls.key, as created by `dekag credentials`. Enables "
        "mutual TLS between services and for metrics.",
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="URL of the Redis used as cache and job queue; `none` disables Redis. rediss:// uses "
        "the certificates in DEKAG_TLS_DIR.",
    )
    redis_password_file: Path | None = Field(
        None, description="File with the password of the user in DEKAG_REDIS_URL."
    )
    cache_key_file: Path | None = Field(
        None,
        description="File with a secret that seals latents, images and reports in Redis, so that changed "
        "ones are not used; read again when it changes.",
    )
    redis_timeout_s: float = Field(
        0.25, gt=0, le=DAY_S, description="Time limit for connecting to Redis and for each response, s."
    )
    redis_retry_s: float = Field(
        2.0, ge=0, le=DAY_S, description="Time without further attempts after a failed call to Redis, s."
    )
    cache_ttl_s: int = Field(
        DAY_S, gt=0, le=10 * YEAR_S, description="Time that latents and images remain cached, s."
    )
    report_ttl_s: int = Field(
        3_600, gt=0, le=10 * YEAR_S, description="Time that link reports remain available, s."
    )
    max_message_bytes: int = Field(
        16 * 2**20, ge=2**16, le=2**30, description="Largest gRPC message that is sent or accepted, bytes."
    )
    max_requests: int = Field(
        512,
        ge=1,
        le=MANY,
        description="Upper limit of simultaneous gRPC requests at a service; further requests are refused.",
    )
    receive_timeout_s: float = Field(
        10.0,
        gt=0,
        le=DAY_S,
        description="Time limit for a client to send a request to the gateway, to take some of its response "
        "(on Linux), or to connect to another service, s.",
    )
    spans_to: SpansTo = Field(
        "",
        description="Destination of OpenTelemetry spans: `console`, an OTLP over HTTP URL, or a file for "
        "lines of JSON, which is rotated at 64 MiB. Empty disables tracing.",
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Port for Prometheus metrics; 0 disables them.")
    metrics_host: Host = Field("127.0.0.1", description="Address for Prometheus metrics.")
    grace_s: float = Field(
        30.0, ge=0, le=DAY_S, description="Time limit for requests in progress to finish at shutdown, s."
    )
    drain_s: float = Field(
        1.0,
        ge=0,
        le=DAY_S,
        description="Time at shutdown during which a service says that it no longer serves, but still "
        "accepts requests, so that none of those on the way is lost, s.",
    )
    connection_age_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="Age at which a connection from another service is renewed, s. The name of the service "
        "is then resolved again, so this is how long new replicas wait for their first request at most.",
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


class ServiceSettings(Machine, CommonSettings):
    """Settings of a gRPC service that holds models."""

    profile: str = Field(
        "stickers",
        description="Models to use: the name of a profile under models/, or a folder with a profile.json.",
    )
    threads: int = Field(
        1,
        ge=0,
        le=1024,
        description="CPU threads per model; 0 uses PyTorch's default. With 1, each model takes one core at "
        "most.",
    )
    max_queue: int = Field(
        64,
        ge=1,
        le=MANY,
        description="Upper limit of requests in the queue of a model; further requests are refused.",
    )
    batch_wait_s: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Time that a free model waits for more requests to join a batch, s.",
    )

    def placement(self, *, keep_text_encoder: bool = True, trained: bool = False) -> Placement:
        """Where models compute; SettingError if a device is not there. Imports torch."""
        try:
            return super().placement(keep_text_encoder=keep_text_encoder, trained=trained)
        except InvalidInputError as error:
            raise SettingError(str(error)) from None


class GeneratorSettings(ServiceSettings):
    """Settings of a gRPC service that draws pictures."""

    generate_batch: int = Field(
        6,
        ge=1,
        le=64,
        description="Upper limit of images in a batch, each with its own prompt, seed and knowledge. "
        "Latents of a batch differ by a few millionths from those generated alone; with 1, "
        "results never depend on other requests.",
    )
    demand_policy: DemandPolicy = Field(
        "off",
        description="What a request with `knowledge` auto gets for a topic that its prompt needs. `off`: the "
        "topic's update if there is one. `auto`: files of the cloud's image until they have cost as "
        "many bytes as the update, then the update, which is distilled if there is none. `always`: the "
        "update from the first request on. `never`: files. The same for cloud and edge.",
    )


class CodecSettings(ServiceSettings):
    """Settings of a gRPC service that encodes or decodes."""

    max_batch: int = Field(
        16,
        ge=1,
        le=64,
        description="Upper limit of transmissions in a batch of the codec. Results do not depend on it.",
    )
    adapters_capacity: int = Field(
        4,
        ge=1,
        le=MANY,
        description="Versions of the transmission knowledge kept in memory; the least recently used one is "
        "dropped first.",
    )
