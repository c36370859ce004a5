"""One's own channels, codecs, adapter methods and metrics, beside those that come with the library.

A plug-in is a class with a `name` whose base class tells its kind: `dekag.link.Channel`,
`dekag.codec.LatentCodec`, `dekag.cala.methods.Adapted` or `dekag.metrics.Metric`. It gets in through an entry
point of an installed package (groups `dekag.channels`, `dekag.codecs`, `dekag.methods`, `dekag.metrics`) or
because the person who starts the program names it, as `package.module:Name` or `path/to/file.py:Name`: on the
command line (`dekag --plugin`) or in DEKAG_PLUGINS, separated by commas, as a line of CSV: one that holds a
comma stands in double quotes. Requests can only name what is known already.

Imports neither torch nor anything else of the library before it is needed.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dekag.errors import InvalidInputError, NotFoundError

ENVIRONMENT = "DEKAG_PLUGINS"

# kind -> module, base class, and the table by name of the library's own and those that are plugged in
_KINDS = {
    "channel": ("dekag.link.registry", "Channel", "CHANNELS"),
    "codec": ("dekag.codec.jscc", "LatentCodec", "CODECS"),
    "method": ("dekag.cala.methods", "Adapted", "METHODS"),
    "metric": ("dekag.metrics.image", "Metric", "METRICS"),
}
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FORMS = "package.module:Name or path/to/file.py:Name"

_plugged_in: dict[str, dict[str, type]] = {kind: {} for kind in _KINDS}
_read: str | None = None  # what DEKAG_PLUGINS was when the environment was last read


def register(plugin: type) -> None:
    """Make a class known under its `name`; again is of no effect.

    Raises:
        InvalidInputError: it is of no kind, its name is none, or another one has it.
    """
    kind, name = _kind(plugin), _name(plugin)
    if _plugged_in[kind].get(name) is plugin:
        return
    table = _table(kind)
    # a codec's folder names its class, as diffusers writes it
    taken = [*table, *(each.__name__ for each in table.values())] if kind == "codec" else list(table)
    if clash := {name, plugin.__name__} & set(taken):
        raise InvalidInputError(f"name of a {kind}", "one that no other has", ", ".join(sorted(clash)))
    try:
        if kind == "method":
            table[name] = plugin.method()  # type: ignore[attr-defined]
        else:
            table[name] = plugin if kind == "codec" else plugin()
    except Exception as error:  # whatever its own code raises
        raise InvalidInputError(f"plug-in {name}", f"a complete {kind}", error) from error
    _plugged_in[kind][name] = plugin


def load(path: str) -> type:
    """The class at `package.module:Name` or `path/to/file.py:Name`, which is registered. Runs the code there.

    Raises:
        InvalidInputError: the path has another form, the code fails, or the class cannot be registered.
        NotFoundError: there is no such file, module or class.
    """
    place, _, name = path.strip().rpartition(":")
    if not place or not name.isidentifier():
        raise InvalidInputError("plug-in", _FORMS, path)
    module = _module(place)
    plugin = getattr(module, name, None)
    if plugin is None:
        raise NotFoundError(f"plug-in {path}: there is no {name} in {place}")
    if not isinstance(plugin, type):
        raise InvalidInputError("plug-in", f"a class, which {name} is not", path)
    register(plugin)
    return plugin


def load_from_environment() -> None:
    """Register what installed packages bring as entry points and what DEKAG_PLUGINS names.

    Does nothing if neither can have changed since it was called before.

    Raises:
        InvalidInputError, NotFoundError: as `load`.
    """
    global _read
    named = os.environ.get(ENVIRONMENT, "")
    if named == _read:
        return
    _read = named  # before, as what is loaded may ask for names itself
    try:
        for kind in _KINDS:
            for point in entry_points(group=f"dekag.{kind}s"):
                if _kind(load(point.value)) != kind:
                    raise InvalidInputError(f"entry point {point.name}", f"a {kind}", point.value)
        for path in split(named):
            load(path)
    except BaseException:
        _read = None
        raise


def split(named: str) -> list[str]:
    """The plug-ins in a value of DEKAG_PLUGINS; InvalidInputError if a quote is not closed."""
    try:
        rows = csv.reader(io.StringIO(named, newline=""), skipinitialspace=True, strict=True)
        return [path for row in rows for path in map(str.strip, row) if path]
    except csv.Error:
        raise InvalidInputError(ENVIRONMENT, "plug-ins, separated by commas", named) from None


def join(paths: Iterable[str]) -> str:
    """What DEKAG_PLUGINS must be to name these plug-ins."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(paths)
    return text.getvalue().removesuffix("\r\n")


def get(kind: str, name: str) -> Any:
    """What is known under that name: a Channel, a class of codecs, a Method, or a Metric.

    Args:
        kind: "channel", "codec", "method" or "metric".
        name: of the library's own or of a plug-in.

    Raises:
        InvalidInputError: says which names are known.
    """
    table = _table(kind)
    if name not in table:
        load_from_environment()
    if name not in table:
        raise InvalidInputError(kind, f"one of {', '.join(table)}", name)
    return table[name]


def names(kind: str) -> list[str]:
    """Names that `get` knows, the library's own first."""
    load_from_environment()
    return list(_table(kind))


def plugged_in(kind: str) -> dict[str, Any]:
    """What `get` gives for each name that is not the library's own."""
    table = _table(kind)
    return {name: table[name] for name in _plugged_in[kind]}


def code_hashes() -> dict[str, str]:
    """SHA-256 (hex) of the file of every plug-in, by kind and name: results depend on it.

    What that file imports is not hashed. A class that no file holds is known by its name alone.
    """
    return {
        f"{kind} {name}": _code_hash(plugin)
        for kind, known in _plugged_in.items()
        for name, plugin in known.items()
    }


def _code_hash(plugin: type) -> str:
    try:
        code = Path(inspect.getfile(plugin)).read_bytes()
    except (OSError, TypeError):
        code = plugin.__qualname__.encode()
    return hashlib.sha256(code).hexdigest()


def _table(kind: str) -> dict[str, Any]:
    if kind not in _KINDS:
        raise InvalidInputError("kind", f"one of {', '.join(_KINDS)}", kind)
    module, _, table = _KINDS[kind]
    found: dict[str, Any] = getattr(importlib.import_module(module), table)
    return found


def _kind(plugin: type) -> str:
    for kind, (module, base, _) in _KINDS.items():
        # a base class that nobody has imported is no base of anything
        if module in sys.modules and issubclass(plugin, getattr(sys.modules[module], base)):
            return kind
    bases = ", ".join(base for _, base, _ in _KINDS.values())
    raise InvalidInputError("plug-in", f"a subclass of one of {bases}", plugin.__qualname__)


def _name(plugin: type) -> str:
    name = plugin.__dict__.get("name")  # its own: one that is inherited is another's
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "lower-case letters, digits, - and _, at most 63, a letter first"
        raise InvalidInputError(f"name of {plugin.__qualname__}", allowed, name)
    return name


def _module(place: str) -> ModuleType:
    try:
        return _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (NotFoundError, InvalidInputError):
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise NotFoundError(f"plug-in {place}: there is no module {error.name}") from error
        failed = f"code that can be imported; {place} fails"
        raise InvalidInputError("plug-in", failed, f"{type(error).__name__}: {error}") from error


def _file(path: Path) -> ModuleType:
    """The module in that file, run once."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise NotFoundError(f"plug-in {path}: there is no such file")
    name = f"dekag_plugin_{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InvalidInputError("plug-in", _FORMS, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
