"""Reference pages that are made from code: settings, command line, REST interface, gRPC contracts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from dekag.evaluation.pages import fill_page, row

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

SETTINGS_PAGE = Path("docs/settings.md")
CLI_PAGE = Path("docs/cli.md")
REST_PAGE = Path("docs/rest.md")
GRPC_PAGE = Path("docs/grpc.md")
SECURITY_PAGE = Path("docs/security.md")
REQUESTS = ("ImagesRequest", "PictureRequest", "KnowledgeRequest")
ANSWERS = ("ImagesResponse", "LinkReport", "Job", "KnowledgeManifest", "Demand", "Transmission", "Problem")
_EXACT = 2**53  # beyond it a bound in a JSON schema is only nearly what it was

Fields = Mapping[str, Mapping[str, Any]]


def write_settings_page(services: Mapping[str, type[BaseModel]], page: Path = SETTINGS_PAGE) -> None:
    """Write the tables of docs/settings.md: what all services share, then what each adds."""
    fields: dict[str, Fields] = {name: _fields(settings) for name, settings in services.items()}
    first = next(iter(fields.values()))
    shared = {
        name: field
        for name, field in first.items()
        if all(each.get(name) == field for each in fields.values())
    }
    fill_page(page, "all", _settings_table(shared))
    for name, own in fields.items():
        fill_page(page, name, _settings_table({f: what for f, what in own.items() if f not in shared}))


def write_cli_page(app: typer.Typer, page: Path = CLI_PAGE) -> None:
    """Write docs/cli.md's commands: Typer's own Markdown, without its lists of sentences cut short."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="dekag")
    text = get_docs_for_click(obj=command, ctx=context, name="dekag", title="Command line")
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)
    _, _, commands = text.strip().partition("\n\n")
    fill_page(page, "commands", commands.splitlines())


def write_rest_page(document: Mapping[str, Any], page: Path = REST_PAGE) -> None:
    """Write the tables of docs/rest.md from the gateway's OpenAPI document."""
    fill_page(page, "operations", _operations(document))
    for name in REQUESTS:
        fill_page(page, name, _request_table(name, document))
    for name in ANSWERS:
        fill_page(page, name, _answer_table(name, document))


def write_grpc_page(services: Sequence[tuple[ServiceDescriptor, type]], page: Path = GRPC_PAGE) -> None:
    """Write the table of docs/grpc.md from the services' descriptors and the classes generated for them."""
    lines = ["| RPC | request | response | |", "|---|---|---|---|"]
    for service, servicer in services:
        for method in service.methods:
            said = inspect.getdoc(getattr(servicer, method.name)) or ""
            said = "" if said.startswith("Missing associated") else " ".join(said.split())
            many = "stream of " if method.server_streaming else ""
            answer = f"{many}`{method.output_type.name}`"
            lines.append(
                row([f"`{service.name}.{method.name}`", f"`{method.input_type.name}`", answer, _cell(said)])
            )
    fill_page(page, "rpcs", lines)


def write_security_page(
    callers: Mapping[str, Mapping[str, Sequence[str]]], page: Path = SECURITY_PAGE
) -> None:
    """Write the table of docs/security.md: what each certificate may call, by the called service."""
    lines = ["| certificate of | may call | methods |", "|---|---|---|"]
    for caller, services in callers.items():
        for service, methods in services.items():
            lines.append(row([f"`{caller}`", f"`{service}`", ", ".join(f"`{each}`" for each in methods)]))
    fill_page(page, "callers", lines)


def _operations(document: Mapping[str, Any]) -> list[str]:
    lines = ["| operation | | status |", "|---|---|---|"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            said = " ".join(operation["description"].split())
            statuses = ", ".join(operation["responses"])
            lines.append(row([f"`{method.upper()} {path}`", _cell(said), statuses]))
    return lines


def _request_table(name: str, document: Mapping[str, Any]) -> list[str]:
    lines, ignored = ["| field | default | allowed | meaning |", "|---|---|---|---|"], []
    for field, what in _flat(name, document):
        if what["description"].startswith("Ignored"):
            ignored.append(f"`{field}`")
            continue
        default = "" if what.get("default") is None else f"`{_plain(what['default'])}`"
        lines.append(row([f"`{field}`", default, _allowed(what), _cell(what["description"])]))
    return [*lines, "", f"Accepted and ignored: {', '.join(ignored)}."] if ignored else lines


def _answer_table(name: str, document: Mapping[str, Any]) -> list[str]:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for field, what in _flat(name, document):
        lines.append(row([f"`{field}`", _kind(what), _cell(what.get("description", ""))]))
    return lines


def _flat(name: str, document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields of a schema, those of the objects in it after them with dots in their names."""
    schemas = document["components"]["schemas"]
    for field, what in _without_null(schemas[name]["properties"]).items():
        held = what.get("items", what)
        inner = held.get("$ref", "").rpartition("/")[2]
        shown = f"{prefix}{field}" + ("[]" if held is not what and inner else "")
        said = {"description": schemas[inner].get("description", "")} if inner else {}
        yield shown, {**said, **what}
        if inner and inner not in ANSWERS:
            yield from _flat(inner, document, f"{shown}.")


def _kind(what: Mapping[str, Any]) -> str:
    if "enum" in what:
        return _allowed(what)
    held = what.get("items", {})
    kind = "object" if "$ref" in what or "$ref" in held else str(what.get("type", ""))
    if what.get("type") == "array":
        kind = "list" if "type" not in held else f"list of {held['type']}s"
        kind = "pairs of numbers" if "prefixItems" in held else kind
    return kind


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(settings: type[BaseModel]) -> Fields:
    """The settings' JSON schemas by name."""
    return _without_null(settings.model_json_schema()["properties"])


def _without_null(fields: Fields) -> Fields:
    """The same schemas; of fields that may be null, or one of several things, that of the first other one."""
    return {
        name: {**field, **next((one for one in field.get("anyOf", ()) if one.get("type") != "null"), {})}
        for name, field in fields.items()
    }


def _settings_table(fields: Fields, prefix: str = "DEKAG_") -> list[str]:
    lines = ["| variable | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = _default(field.get("default"))
        lines.append(row([f"`{prefix}{name.upper()}`", default, _allowed(field), field["description"]]))
    return lines


def _default(value: object) -> str:
    if value is None or value == "":
        return ""
    root = Path(__file__).resolve().parents[2]
    path = Path(str(value))
    return f"`{path.relative_to(root) if path.is_absolute() and path.is_relative_to(root) else value}`"


def _allowed(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    bounds = {name: field[name] for name in words if name in field and field[name] < _EXACT}
    said = [f"{words[name]} {_plain(bound)}" for name, bound in bounds.items()]
    if "maxLength" in field:
        said.append(f"{field.get('minLength', 0)} to {field['maxLength']} characters")
    if "maxItems" in field:
        said.append(f"at most {field['maxItems']} items")
    if "const" in field:
        said.append(f"`{_plain(field['const'])}`")
    return ", ".join(said)


def _plain(value: Any) -> str:
    """A value as JSON, strings without their quotes; 1/96 instead of many decimals."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:.10g}"
        fraction = Fraction(value).limit_denominator(1000)
        return str(fraction) if len(text) > len("0.00000001") and float(fraction) == value else text
    return value if isinstance(value, str) else json.dumps(value)
