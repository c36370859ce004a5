"""Plug-ins: user-defined channels, codecs, adaptation methods, metrics and policies.

A plug-in is a class with a `name` whose base class determines its kind: `dekag.link.Channel`,
`dekag.codec.LatentCodec`, `dekag.pixel_modules.PixelModules`, `dekag.cala.methods.AdaptedCodec`,
`dekag.metrics.Metric` or `dekag.simulation.policies.Policy`. It is loaded from an entry point of an installed
package (groups `dekag.channels`, `dekag.codecs`, `dekag.pixel_codecs`, `dekag.methods`, `dekag.metrics`,
`dekag.policies`), or from a path
`package.module:Name` or `path/to/file.py:Name` on the command line (`dekag --plugin`) or in DEKAG_PLUGINS.
The latter is a line of CSV: paths are separated by commas, and a path with a comma is quoted. Requests can
only name plug-ins that are already loaded.

Imports torch and other modules of the library only when they are needed.
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

# kind -> module, base class, and the registry of built-in and plugged-in classes by name
_KINDS = {
    "channel": ("dekag.link.registry", "Channel", "CHANNELS"),
    "codec": ("dekag.codec.jscc", "LatentCodec", "CODECS"),
    "pixel_codec": ("dekag.pixel_modules", "PixelModules", "PIXEL_CODECS"),
    "method": ("dekag.cala.methods", "AdaptedCodec", "METHODS"),
    "metric": ("dekag.metrics.image", "Metric", "METRICS"),
    "policy": ("dekag.simulation.policies", "Policy", "POLICIES"),
}
_GROUPS = {kind: f"dekag.{kind}s" for kind in _KINDS} | {"policy": "dekag.policies"}
_CODECS = ("codec", "pixel_codec")  # whose folders name their class, as written by diffusers
_CLASSES = (*_CODECS, "policy")  # whose registries hold classes, as each use makes its own object
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FORMS = "package.module:Name or path/to/file.py:Name"

_plugged_in: dict[str, dict[str, type]] = {kind: {} for kind in _KINDS}
_broken: dict[str, str] = {}  # entry point -> why it could not be loaded
_last_read: str | None = None  # value of DEKAG_PLUGINS when the environment was last read


def register(plugin: type) -> None:
    """Register a class under its `name`; registering it again has no effect.

    Raises:
        InvalidInputError: it has none of the base classes, or its name is invalid or taken.
    """
    kind, name = _kind(plugin), _name(plugin)
    if _plugged_in[kind].get(name) is plugin:
        return
    table = _table(kind)
    taken = [*table, *(each.__name__ for each in table.values())] if kind in _CODECS else list(table)
    if clash := {name, plugin.__name__} & set(taken):
        raise InvalidInputError(f"name of a {kind}", "unique", ", ".join(sorted(clash)))
    try:
        if kind == "method":
            table[name] = plugin.method()  # type: ignore[attr-defined]
        elif inspect.isabstract(plugin):  # instances say so themselves, classes do not
            raise TypeError(f"{plugin.__name__} lacks {', '.join(sorted(plugin.__abstractmethods__))}")  # type: ignore[attr-defined]
        else:
            table[name] = plugin if kind in _CLASSES else plugin()
    except Exception as error:  # anything that the plug-in raises
        raise InvalidInputError(f"plug-in {name}", f"a complete {kind}", error) from error
    _plugged_in[kind][name] = plugin


def load(path: str) -> type:
    """Import and register the class at `package.module:Name` or `path/to/file.py:Name`.

    Raises:
        InvalidInputError: the path is malformed, the code fails, or the class cannot be registered.
        NotFoundError: there is no such file, module or class.
    """
    location, _, name = path.strip().rpartition(":")
    if not location or not name.isidentifier():
        raise InvalidInputError("plug-in", _FORMS, path)
    module = _module(location)
    plugin = getattr(module, name, None)
    if plugin is None:
        raise NotFoundError(f"plug-in {path}: there is no {name} in {location}")
    if not isinstance(plugin, type):
        raise InvalidInputError("plug-in", f"a class, which {name} is not", path)
    register(plugin)
    return plugin


def load_from_environment() -> None:
    """Register the entry points of installed packages and the plug-ins in DEKAG_PLUGINS.

    Does nothing if neither can have changed since the last call. An entry point that cannot be loaded stops
    only what names it: `broken` lists it, and errors of `get` mention it.

    Raises:
        InvalidInputError, NotFoundError: as `load`, for a plug-in in DEKAG_PLUGINS.
    """
    global _last_read
    value = os.environ.get(ENVIRONMENT, "")
    if value == _last_read:
        return
    _last_read = value  # first, since a plug-in may look up names while it is loaded
    try:
        for kind in _KINDS:
            for point in entry_points(group=_GROUPS[kind]):
                try:
                    if _kind(load(point.value)) != kind:
                        raise InvalidInputError(f"entry point {point.name}", f"a {kind}", point.value)
                    _broken.pop(point.name, None)
                except (InvalidInputError, NotFoundError) as error:
                    _broken[point.name] = str(error)
        for path in split(value):
            load(path)
    except BaseException:
        _last_read = None
        raise


def split(value: str) -> list[str]:
    """The paths in a value of DEKAG_PLUGINS; InvalidInputError if a quote is not closed."""
    try:
        rows = csv.reader(io.StringIO(value, newline=""), skipinitialspace=True, strict=True)
        return [path for row in rows for path in map(str.strip, row) if path]
    except csv.Error:
        raise InvalidInputError(ENVIRONMENT, "plug-ins, separated by commas", value) from None


def join(paths: Iterable[str]) -> str:
    """The value of DEKAG_PLUGINS for these paths."""
    text = io.StringIO(newline="")
    csv.writer(text).writerow(paths)
    return text.getvalue().removesuffix("\r\n")


def get(kind: str, name: str) -> Any:
    """The entry with that name: a Channel, a codec class, a Method, a Metric or a policy class.

    Args:
        kind: "channel", "codec", "pixel_codec", "method", "metric" or "policy".
        name: name of a built-in or a plug-in.

    Raises:
        InvalidInputError: the name is unknown; lists the known names.
    """
    table = _table(kind)
    if name not in table:
        load_from_environment()
    if name not in table:
        broken = "".join(f" (plug-in {each} is not loaded: {why})" for each, why in _broken.items())
        raise InvalidInputError(kind, f"one of {', '.join(table)}{broken}", name)
    return table[name]


def broken() -> dict[str, str]:
    """Entry points of installed packages that could not be loaded, with the reasons."""
    return dict(_broken)


def names(kind: str) -> list[str]:
    """Names that `get` knows, built-in ones first."""
    load_from_environment()
    return list(_table(kind))


def plugged_in(kind: str) -> dict[str, Any]:
    """The entries of plug-ins by name, without built-in ones."""
    table = _table(kind)
    return {name: table[name] for name in _plugged_in[kind]}


def code_hashes() -> dict[str, str]:
    """SHA-256 (hex) of the source file of every plug-in, by kind and name: results depend on it.

    Imports of that file are not hashed. For a class without a source file, its name is hashed.
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
    registry: dict[str, Any] = getattr(importlib.import_module(module), table)
    return registry


def _kind(plugin: type) -> str:
    for kind, (module, base, _) in _KINDS.items():
        # if the module of a base class is not imported, no class derives from it
        if module in sys.modules and issubclass(plugin, getattr(sys.modules[module], base)):
            return kind
    bases = ", ".join(base for _, base, _ in _KINDS.values())
    raise InvalidInputError("plug-in", f"a subclass of one of {bases}", plugin.__qualname__)


def _name(plugin: type) -> str:
    name = plugin.__dict__.get("name")  # not an inherited one
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        allowed = "lower-case letters, digits, - and _, at most 63, a letter first"
        raise InvalidInputError(f"name of {plugin.__qualname__}", allowed, name)
    return name


def _module(location: str) -> ModuleType:
    try:
        return _file(Path(location)) if location.endswith(".py") else importlib.import_module(location)
    except (NotFoundError, InvalidInputError):
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{location}.".startswith(f"{missing}."):
            raise NotFoundError(f"plug-in {location}: there is no module {missing}") from error
        allowed = f"code that can be imported; {location} fails"
        raise InvalidInputError("plug-in", allowed, f"{type(error).__name__}: {error}") from error


def _file(path: Path) -> ModuleType:
    """The module in that file, which is executed only once."""
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
