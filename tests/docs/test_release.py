"""Files that name the version name the same one, and the release has notes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_names_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    chart = yaml.safe_load((ROOT / "deploy/helm/dekag/Chart.yaml").read_text())
    tags = [
        tag for service in compose["services"].values() for tag in service.get("build", {}).get("tags", ())
    ]
    assert (citation["version"], tags, chart["version"]) == (version, [f"dekag:{version}"], version)
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version in headings, "release notes"
    assert headings[0] in ("Unreleased", version)
