"""The source files of a user's own that a file of theirs imports, as results depend on them.

Files are found by their names, without running them: imports that are computed are not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}


def imported_sources(file: Path) -> list[Path]:
    """The files that a file imports, anywhere in it, and those that they import; without itself, by path.

    Neither the standard library, nor this library, nor installed packages are among them.
    """
    own = file.resolve()
    found, waiting = {own}, [own]
    while waiting:
        for path in _imports(waiting.pop()):
            if path not in found and not _INSTALLED & set(path.parts):
                found.add(path)
                waiting.append(path)
    return sorted(found - {own})


def _imports(file: Path) -> Iterator[Path]:
    """The files that one file names in its imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a file that cannot be read fails where it is imported
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # what is imported from a package may be a module of it
            named = [(node.level, f"{node.module or ''}.{alias.name}") for alias in node.names]
        else:
            continue
        for level, name in named:
            parts = [part for part in name.split(".") if part]
            for path in _candidates(file, level, parts):
                if path.suffix == ".py" and path.is_file():
                    yield path.resolve()


def _candidates(file: Path, level: int, parts: list[str]) -> Iterator[Path]:
    """Where the files of a dotted name would be; `level` is the number of dots before it."""
    if level > len(file.parents):
        return
    if level:
        folders = [file.parents[level - 1]]
    else:
        first, *parts = parts
        if first in sys.stdlib_module_names or first == __name__.partition(".")[0]:
            return
        try:
            spec = find_spec(first)
        except (ImportError, ValueError, AttributeError):
            return
        if spec is None:
            return
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        if spec.origin:
            yield Path(spec.origin)
    for part in parts:
        yield from (folder / f"{part}.py" for folder in folders)
        folders = [folder / part for folder in folders]
        yield from (folder / "__init__.py" for folder in folders)
