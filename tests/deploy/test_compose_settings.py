"""Settings reach the services in containers, except those that docs/settings.md names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.launcher.stack import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = sorted((ROOT / "deploy").glob("compose.*.yml"))


class ComposeLoader(yaml.SafeLoader):
    """Reads a value with Compose's tag `!override` as it is."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def environments(path: Path) -> dict[str, dict[str, Any]]:
    """The variables of each service in a Compose file; None is passed on as it is set outside."""
    services = yaml.load(path.read_text(), ComposeLoader)["services"]  # noqa: S506 - a safe one
    return {name: services.get(name, {}).get("environment") or {} for name in SETTINGS}


def is_passed_on(name: str, value: Any) -> bool:
    return value is None or re.search(rf"\$\{{{name}\b", str(value)) is not None


def named() -> tuple[set[str], set[str]]:
    """The settings that docs/settings.md says Compose does not pass on, and those that overrides set."""
    text = (ROOT / "docs" / "settings.md").read_text()
    (paragraph,) = [each for each in text.split("\n\n") if each.startswith("`docker compose up` passes")]
    lost, overridden = paragraph.split("). ", 1)
    pattern = re.compile(r"`(DEKAG_\w+)`")
    return {*pattern.findall(lost), "DEKAG_API_KEYS_FILE"}, set(pattern.findall(overridden))


@pytest.mark.parametrize("service", SETTINGS)
def test_all_settings_are_passed_on_but_those_that_the_docs_name(service: str) -> None:
    given = environments(ROOT / "docker-compose.yml")[service]
    lost = [
        name
        for name in SETTINGS[service].variables()
        if name not in given or not is_passed_on(name, given[name])
    ]
    assert set(lost) - named()[0] == set()


@pytest.mark.parametrize("file", OVERRIDES, ids=lambda path: path.name)
def test_no_override_replaces_a_setting_but_those_that_the_docs_name(file: Path) -> None:
    exceptions = set().union(*named())
    base = environments(ROOT / "docker-compose.yml")
    for service, given in environments(file).items():
        for name, value in given.items():
            if name in base[service] and not is_passed_on(name, value):
                assert name in exceptions or (service, file.name) == ("user", "compose.gpu.yml"), name


def test_what_is_passed_on_is_a_setting() -> None:
    known = {name for settings in SETTINGS.values() for name in settings.variables()} | {"DEKAG_PLUGINS"}
    for service, given in environments(ROOT / "docker-compose.yml").items():
        assert set(given) - known == set(), service
