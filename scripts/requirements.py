"""Print what extras and groups of pyproject.toml require, one per line: requirements.py NAME...

The lines hold what dekag itself requires, without dekag. Needs nothing that is not in Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_OWN_EXTRAS = re.compile(r"dekag\[(.+)\]")


def requirements(names: Sequence[str], pyproject: Path = PYPROJECT) -> list[str]:
    """The requirements of dekag with these extras and groups.

    Raises:
        KeyError: there is neither an extra nor a group of that name.
    """
    project = tomllib.loads(pyproject.read_text())
    found = dict.fromkeys(project["project"]["dependencies"])
    for name in names:
        found |= dict.fromkeys(_of(name, project))
    return sorted(found)


def _of(name: str, project: dict[str, Any]) -> Iterator[str]:
    extras = project["project"]["optional-dependencies"]
    for each in extras[name] if name in extras else project["dependency-groups"][name]:
        if isinstance(each, dict):
            yield from _of(each["include-group"], project)
        elif own := _OWN_EXTRAS.fullmatch(each):
            for extra in own[1].split(","):
                yield from _of(extra, project)
        else:
            yield each


if __name__ == "__main__":
    print(*requirements(sys.argv[1:]), sep="\n")  # noqa: T201
