"""Environment variables: empty ones are ignored, and unknown ones are reported with the closest name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

PREFIX = "DEKAG_"
CONTAINERS = ("REDIS", "CLOUD", "DISTILLER", "EDGE", "CHANNEL", "USER", "GATEWAY")
# variables that are no setting of a service, and what reads them
OTHERS: Mapping[str, str] = {
    "DEKAG_PLUGINS": "every process",
    "DEKAG_API_KEY": "clients",
    "DEKAG_CA_FILE": "clients",
    "DEKAG_HOSTNAMES": "dekag credentials",
    "DEKAG_WORLD_ASSETS": "dekag train",
    "DEKAG_TRAIN_LOG": "dekag train",
    "DEKAG_START_TIMEOUT_S": "dekag up",
    "DEKAG_GATEWAY_BIND": "docker-compose.yml",
    "DEKAG_GATEWAY_PORT": "docker-compose.yml",
    "DEKAG_MODELS": "docker-compose.yml",
    "DEKAG_START_PERIOD": "docker-compose.yml",
    "DEKAG_REDIS_MAXMEMORY": "docker-compose.yml",
    **{f"DEKAG_{service}_MEMORY": "docker-compose.yml" for service in CONTAINERS},
    "DEKAG_GPUS": "deploy/compose.gpu.yml",
    "DEKAG_MAX_ADDRESS_CONNECTIONS": "deploy/compose.secure.yml",
    "DEKAG_GATEWAY_ADDRESS": "deploy/haproxy.cfg",
    "DEKAG_PROMETHEUS_PORT": "deploy/compose.monitoring.yml",
    "DEKAG_GRAFANA_PORT": "deploy/compose.monitoring.yml",
}


def filled(environment: Mapping[str, str | None]) -> dict[str, str]:
    """The variables whose value is not blank."""
    return {name: value for name, value in environment.items() if value and not value.isspace()}


def get(name: str, default: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """The value of a variable; ``default`` if it is blank or unset."""
    value = environment.get(name, "")
    return default if not value or value.isspace() else value


def known() -> frozenset[str]:
    """Names of all variables that this project reads."""
    from services.channel.settings import ChannelSettings
    from services.cloud.settings import CloudSettings, DistillerSettings
    from services.edge.settings import EdgeSettings
    from services.gateway.settings import GatewaySettings
    from services.user.settings import UserSettings

    all_settings = (
        GatewaySettings, UserSettings, ChannelSettings, EdgeSettings, CloudSettings, DistillerSettings
    )  # fmt: skip
    return frozenset(OTHERS).union(*(settings.variables() for settings in all_settings))


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A warning for each variable with the prefix of this project that nothing reads."""
    ours = sorted(name for name in filled(environment) if name.upper().startswith(PREFIX))
    if not set(ours) - OTHERS.keys():
        return []  # without importing any settings
    names = known()
    warnings = []
    for name in ours:
        if name.upper() not in names:
            similar = difflib.get_close_matches(name.upper(), sorted(names), 1)
            hint = f"did you mean {similar[0]}?" if similar else "see docs/settings.md for all settings"
            warnings.append(f"{name} is not a setting and has no effect; {hint}")
    return warnings
