"""What the library imports, it requires."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROUGHT = {"pydantic_core", "scipy", "tokenizers"}
"""What pydantic, sionna and transformers require themselves."""


def imported(folder: Path) -> Iterator[str]:
    """The packages that modules below `folder` import when they are imported themselves."""
    for path in folder.rglob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import):
                yield from (each.name.partition(".")[0] for each in statement.names)
            elif isinstance(statement, ast.ImportFrom) and statement.level == 0:
                yield str(statement.module).partition(".")[0]


def required(extra: str) -> set[str]:
    """Names of the packages that are installed with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, found = [*project["dependencies"], f"dekag[{extra}]"], set()
    while lines:
        name, extras = re.match(r"([\w-]+)(?:\[([\w,]+)\])?", lines.pop()).groups()  # type: ignore[union-attr]
        found.add(name)
        if name == "dekag":
            lines += [line for each in extras.split(",") for line in project["optional-dependencies"][each]]
    return found


@pytest.mark.parametrize(
    ("part", "extra"),
    [(name, "train") for name in ("cala", "codec", "generation", "link", "makd", "metrics", "training")]
    + [("evaluation", "eval")],
)
def test_a_part_of_the_library_imports_only_what_its_extra_brings(part: str, extra: str) -> None:
    installed = packages_distributions()
    named = {
        dist.lower()
        for package in set(imported(ROOT / "dekag" / part)) - sys.stdlib_module_names
        for dist in installed.get(package, [package])
    }
    assert not named - BROUGHT - required(extra)
