"""The variables of the environment: an empty one says nothing; of an unknown one the nearest name is told."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

PREFIX = "DEKAG_"
# those that are no setting of a service, and who reads them
OTHERS: Mapping[str, str] = {
    "DEKAG_PLUGINS": "every process",
    "DEKAG_API_KEY": "clients",
    "DEKAG_CA_FILE": "clients",
    "DEKAG_HOSTNAMES": "dekag credentials",
    "DEKAG_WORLD_ASSETS": "dekag train",
    "DEKAG_GATEWAY_BIND": "docker-compose.yml",
    "DEKAG_GATEWAY_PORT": "docker-compose.yml",
    "DEKAG_PROMETHEUS_PORT": "deploy/compose.monitoring.yml",
    "DEKAG_GRAFANA_PORT": "deploy/compose.monitoring.yml",
}


def filled(environment: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that hold more than white space."""
    return {name: value for name, value in environment.items() if value and not value.isspace()}


def get(name: str, default: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """The value of a variable, ``default`` if it holds nothing."""
    value = environment.get(name, "")
    return default if not value or value.isspace() else value


def known() -> frozenset[str]:
    """Names of all variables that anything here reads."""
    from services.channel.settings import ChannelSettings
    from services.cloud.settings import CloudSettings, DistillerSettings
    from services.edge.settings import EdgeSettings
    from services.gateway.settings import GatewaySettings
    from services.user.settings import UserSettings

    every = (
        GatewaySettings, UserSettings, ChannelSettings, EdgeSettings, CloudSettings, DistillerSettings
    )  # fmt: skip
    return frozenset(OTHERS).union(*(each.variables() for each in every))


def unknown(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable with our prefix that nothing reads, with the name that may be meant."""
    ours = sorted(name for name in filled(environment) if name.upper().startswith(PREFIX))
    if not set(ours) - OTHERS.keys():
        return []  # and none of the settings had to be imported
    names = known()
    told = []
    for name in ours:
        if name.upper() not in names:
            near = difflib.get_close_matches(name.upper(), sorted(names), 1)
            meant = f": is {near[0]} meant?" if near else "; docs/settings.md names all"
            told.append(f"{name} is no setting and says nothing here{meant}")
    return told
