"""The reference that is committed says what the code says, and the picture of the architecture shows it."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from dekag.api.client import Client, DistillOptions
from dekag.evaluation.pages import fill_page
from services.cli.book import grpc_services, openapi, settings_of_services
from services.cli.main import app
from services.cli.reference import (
    write_cli_page,
    write_grpc_page,
    write_rest_page,
    write_security_page,
    write_settings_page,
)
from services.common.callers import MAY_CALL

ROOT = Path(__file__).resolve().parents[2]
STALE = "run `dekag results book` and commit what it writes"
TEST = re.compile(r"`((?:\w+/)+(?:test_\w+\.py)?)`")
LINK = re.compile(r"\]\((?!https?:)([^)\s#]+)")


@pytest.mark.parametrize(
    ("page", "write"),
    [
        ("settings.md", lambda page: write_settings_page(settings_of_services(), page)),
        ("cli.md", lambda page: write_cli_page(app, page)),
        ("rest.md", lambda page: write_rest_page(openapi(), page)),
        ("grpc.md", lambda page: write_grpc_page(grpc_services(), page)),
        ("security.md", lambda page: write_security_page(MAY_CALL, page)),
    ],
)
def test_a_committed_reference_page_is_what_the_code_says(
    tmp_path: Path, page: str, write: Callable[[Path], None]
) -> None:
    committed = (ROOT / "docs" / page).read_text()
    (tmp_path / page).write_text(committed)
    write(tmp_path / page)
    assert (tmp_path / page).read_text() == committed, STALE


def test_the_page_of_clients_lists_every_method_with_its_arguments() -> None:
    text = (ROOT / "docs" / "clients.md").read_text()
    described = dict(re.findall(r"`(\w+)\(([^)]*)\)`", text[text.index("| method |") :]))
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if name.startswith("_") or name == "close":
            continue
        arguments = [each for each in inspect.signature(method).parameters if each not in ("self", "config")]
        listed = [each.strip(" =") for each in described[name].split(",")] if described[name] else []
        if name == "distill":
            arguments += DistillOptions.__annotations__
        assert listed == arguments or (name == "start" and listed == ["topic", "..."]), name


def test_the_tutorial_names_what_the_web_page_shows() -> None:
    tutorial = (ROOT / "docs" / "getting-started.md").read_text()
    web = ROOT / "services" / "gateway" / "web"
    page = " ".join(" ".join(path.read_text() for path in web.glob("*.[hj][ts]*")).split())
    named = re.findall(r"(?<!\*)\*([^*\n]+(?:\n[^*\n]+)?)\*(?!\*)", tutorial)
    assert len(named) > 8
    assert [name for name in named if " ".join(name.split()) not in page] == []
    cards = re.findall(r'^  "?[a-z-]+"?: "([^"]+)",$', (web / "cards.js").read_text(), re.MULTILINE)
    assert re.findall(r"^\* \*\*(.+?)\*\*", tutorial, re.MULTILINE) == cards


def test_the_tables_hold_every_field_and_every_command() -> None:
    rest, commands = ((ROOT / "docs" / name).read_text() for name in ("rest.md", "cli.md"))
    for name in (
        "link.reported_snr_db",
        "knowledge",
        "data[].details.constellation.sent",
        "hops[].sent_bytes",
    ):
        assert f"| `{name}` |" in rest
    assert "| `link.cbr` | `1/96` | above 0, at most 1/6 |" in rest
    assert "## `dekag image`" in commands
    assert "### `dekag train cala`" in commands
    assert "**Commands**" not in commands  # lists whose sentences are cut short


def test_a_part_that_a_page_lacks_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- mine -->\n<!-- /mine -->\n")
    fill_page(page, "mine", ["here"])
    assert page.read_text() == "<!-- mine -->\n\nhere\n\n<!-- /mine -->\n"
    with pytest.raises(ValueError, match="has 0 parts yours"):
        fill_page(page, "yours", [])


def test_links_out_of_pages_that_are_not_in_the_book_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = LINK.findall((ROOT / page).read_text())
        assert not [link for link in links if not (ROOT / link).exists()], page


def test_tests_that_the_security_page_names_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    _, table = page.split("| test, in `tests/` |")
    named = {path for row in table.splitlines() if row.startswith("|") for path in TEST.findall(row)}
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / "tests" / path).exists()]


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """scripts/draw_architecture.py."""
    path = ROOT / "scripts" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compose() -> dict[str, Any]:
    """docker-compose.yml, to be changed."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return read


def test_the_picture_of_the_architecture_is_what_the_code_says() -> None:
    script = ROOT / "scripts" / "draw_architecture.py"
    found = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_the_picture_shows_who_calls_whom(drawing: ModuleType, compose: dict[str, Any]) -> None:
    services = {each.name: each for each in drawing.read(compose)}
    assert list(services) == ["gateway", "user", "channel", "edge", "cloud", "distiller"]
    assert services["gateway"].calls["user"] == ["Receive", "ReceiveWithPreviews"]
    assert "Distill" in services["gateway"].calls["cloud"]
    assert "Generate" not in services["gateway"].calls["cloud"]
    assert services["edge"].calls["cloud"][0] == "Generate"
    assert [name for name, each in services.items() if not each.redis] == ["channel"]
    assert [name for name, each in services.items() if each.volumes] == ["cloud", "distiller"]
    assert services["gateway"].port == 8080


def test_the_picture_changes_with_the_chain(drawing: ModuleType, compose: dict[str, Any]) -> None:
    before = drawing.draw(drawing.read(compose))
    compose["services"]["user"]["environment"]["DEKAG_DOWNLINK_ADDRESS"] = "edge:50053"
    assert drawing.draw(drawing.read(compose)) != before
    compose["services"]["stranger"] = {"command": ["services.stranger"], "environment": {}}
    with pytest.raises(ValueError, match="stranger"):
        drawing.read(compose)
