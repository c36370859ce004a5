"""JSON and YAML as people and disks hold them: the only place that parses either.

The standard parsers keep the last of several equal keys, take NaN and 1e999 for numbers, and end in a
RecursionError where brackets are nested deeply. Here each of these is refused, with its line. YAML is read by
the core schema of YAML 1.2: `no` and `on` are text and `1:30` is no number of seconds.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from dekag.errors import InvalidInputError
from dekag.files import read_text

MAX_DEPTH = 64
"""Lists and objects inside each other."""
MAX_NODES = 1_000_000
"""Of a YAML document whose aliases are written out, and of JSON from strangers."""

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_TOKEN = re.compile(rf"{_STRING}|[\[\]{{}},]|-?Infinity|NaN|-?[0-9][0-9.eE+-]*", re.DOTALL)
_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
_HALF = "half a character (an unpaired surrogate)"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class DocumentError(InvalidInputError, ValueError):
    """A document that cannot be read, or not without losing something.

    Args:
        document: what it is: the path of a file, "body".
        problem: what is wrong, to follow the document and the line.
        line: where, from 1; None if that is not known.
        key: dotted name of the key that is concerned; empty if none is.
        allowed: what there may be in its place.
    """

    def __init__(
        self,
        document: str,
        problem: str,
        line: int | None = None,
        key: str = "",
        allowed: str = "a document that can be read without losing anything",
    ) -> None:
        super().__init__(key or document, allowed, "")
        where = document if line is None else f"{document}, line {line}"
        self.args = (f"{where}: {problem}",)
        self._made_of = (document, problem, line, key, allowed)

    def __reduce__(self) -> tuple[type[DocumentError], tuple[str, str, int | None, str, str]]:  # type: ignore[override]
        """How another process rebuilds it."""
        return type(self), self._made_of


class _Lossy(Exception):  # noqa: N818 - never leaves this module
    """There is something in a JSON text that would be lost; `_problem` says what."""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileError: it cannot be read, or is no text.
        DocumentError: as `parse_json`.
    """
    return parse_json(read_text(path), str(path))


def parse_json(data: bytes | str, document: str, *, max_nodes: int | None = None) -> Any:
    """What a JSON text holds.

    Args:
        data: UTF-8, or what its byte order mark says.
        document: what errors call it.
        max_nodes: largest number of values, each of which may take thirty times its bytes; None: any.

    Raises:
        DocumentError: no JSON, a key twice in an object, a number that is not finite, more than MAX_DEPTH
            levels, or more than `max_nodes` values.
    """
    text = _decoded(data, document)
    if max_nodes is not None and _too_many(text, max_nodes):
        raise DocumentError(document, f"more than {max_nodes} values", allowed=f"at most {max_nodes} values")
    if _too_deep(text) or _SURROGATE.search(text):
        _refuse_lossy(text, document)
    try:
        return json.loads(text, object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_constant)
    except _Lossy:
        _refuse_lossy(text, document)
        # what looked like a number that is not finite goes on, as in 1e999e9, and is none
        raise DocumentError(document, "not valid JSON") from None
    except json.JSONDecodeError as error:
        raise DocumentError(document, f"not valid JSON ({error.msg})", error.lineno) from None
    except ValueError:
        raise DocumentError(document, "an integer of too many digits") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileError: it cannot be read, or is no text.
        DocumentError: as `parse_yaml`.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(data: bytes | str, document: str) -> Any:
    """What a YAML text holds; None for an empty one.

    Args:
        data: UTF-8, or what its byte order mark says.
        document: what errors call it.

    Raises:
        DocumentError: no YAML, a key twice in a mapping, a number that is not finite, more than MAX_DEPTH
            levels, an alias of what it stands in, or more than MAX_NODES nodes.
    """
    text = _decoded(data, document)
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        key = error.key if isinstance(error, _RepeatedKeyError) else ""
        said = error.problem or error.context or "not valid YAML"
        raise DocumentError(document, said, None if mark is None else mark.line + 1, key) from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise DocumentError(document, f"not valid YAML ({said})") from None


def _decoded(data: bytes | str, document: str) -> str:
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError(document, f"not {encoding.removesuffix('-sig').upper()} text", line) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Lossy
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise _Lossy
    return value


def _no_constant(_: str) -> None:
    raise _Lossy


def _too_many(text: str, most: int) -> bool:
    """Whether a JSON text has more values; each but the first follows a comma or an opening bracket."""
    if text.count(",") + text.count("[") + text.count("{") <= most:
        return False
    before = (match for match in _TOKEN.finditer(text) if match[0] in (",", "[", "{"))
    return next(islice(before, most, None), None) is not None


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            return True
    return False


@dataclass
class _Level:
    """A list or object that is open."""

    is_object: bool
    keys: set[str] = field(default_factory=set)
    at: str | int = 0
    key_next: bool = True


def _refuse_lossy(text: str, document: str) -> None:
    """DocumentError for the first thing in a JSON text that would be lost; nothing if there is none."""
    levels: list[_Level] = []

    def refuse(problem: str, match: re.Match[str], allowed: str) -> None:
        named = ".".join(str(level.at) for level in levels)
        line = text.count("\n", 0, match.start()) + 1
        raise DocumentError(document, problem, line, named, allowed)

    for match in _TOKEN.finditer(text):
        token = match[0]
        level = levels[-1] if levels else None
        if token in ("[", "{"):
            if len(levels) == MAX_DEPTH:
                levels.clear()  # its name would be as long
                problem = f"more than {MAX_DEPTH} levels of lists and objects"
                refuse(problem, match, f"at most {MAX_DEPTH} levels")
            levels.append(_Level(token == "{"))
        elif token in ("]", "}"):
            if levels:
                levels.pop()
        elif token == ",":
            if level is not None and level.is_object:
                level.key_next = True
            elif level is not None:
                level.at = int(level.at) + 1
        elif token[0] == '"':
            said = _unescaped(token)
            if said is not None and not said.isprintable() and any("\ud800" <= c <= "\udfff" for c in said):
                refuse(_HALF, match, "whole characters")
            if level is not None and level.is_object and level.key_next and said is not None:
                level.at, level.key_next = said, False
                if said in level.keys:
                    refuse(f"the key {said[:80]!r} stands there twice", match, "said once")
                level.keys.add(said)
        elif "N" in token or "y" in token or not _is_finite(token):
            refuse(f"{token[:20]} is no finite number", match, "a finite number")


def _unescaped(token: str) -> str | None:
    try:
        return str(json.loads(token))
    except ValueError:
        return None


def _is_finite(token: str) -> bool:
    try:
        return math.isfinite(float(token))
    except ValueError:  # not a number at all, which the parser says better
        return True


class _RepeatedKeyError(yaml.constructor.ConstructorError):
    """A key that stands twice in a mapping."""

    def __init__(self, key: str, mark: yaml.Mark) -> None:
        super().__init__(None, None, f"the key {key[:80]!r} stands there twice", mark)
        self.key = key


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader by the core schema of YAML 1.2, that loses nothing and ends."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML has it

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # nodes and levels of a node that is complete

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node with all that is in it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        self._depth += 1
        self._check(self._depth, 0, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "an alias of what it stands in", mark)
            children: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                children = [each for pair in node.value for each in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes = [self._sizes[id(child)] for child in children]
            nodes, levels = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
            self._check(levels, nodes, mark)
            self._sizes[id(node)] = nodes, levels
        return node

    @staticmethod
    def _check(levels: int, nodes: int, mark: yaml.Mark) -> None:
        if levels > MAX_DEPTH + 1:  # a scalar is a level, too
            problem = f"more than {MAX_DEPTH} levels of lists and mappings"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        if nodes > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"aliases that stand for over {MAX_NODES} nodes", mark
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping; what `<<` merges into it may be said again."""
        seen: set[Hashable] = set()
        for name, _ in node.value:
            if name.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(name, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", name.start_mark)
            if key in seen:
                raise _RepeatedKeyError(str(key), name.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text; escapes that are the two halves of one character become that character."""
        text = str(self.construct_scalar(node))
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise yaml.constructor.ConstructorError(None, None, _HALF, node.start_mark) from None

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        """A number; NaN and infinity are none."""
        text = str(self.construct_scalar(node))
        if text.lstrip("+-").lower() in (".inf", ".nan") or not math.isfinite(value := float(text)):
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:20]} is no finite number", node.start_mark
            )
        return value

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """An integer, decimal or as 0o17 and 0xff."""
        text = str(self.construct_scalar(node))
        try:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:20]!r} is no integer", node.start_mark
            ) from None


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.\d+|\d+\.\d*|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    ("merge", r"^(?:<<)$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern, re.ASCII), _first)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_finite)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
