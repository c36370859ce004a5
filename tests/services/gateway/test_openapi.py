"""The gateway's OpenAPI document shows what each field may look like, and what it shows is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from dekag.api import schemas
from dekag.makd.config import DistillConfig
from dekag.makd.topics import topic_prompts
from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings

MODELS = {
    name: kind
    for name, kind in vars(schemas).items()
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel
}
SHOWN = [
    ("post", "/v1/images/generations", schemas.ImagesRequest),
    ("post", "/v1/knowledge", schemas.KnowledgeRequest),
    ("post", "/v1/pictures", schemas.PictureRequest),
    ("put", "/v1/knowledge/{topic}", schemas.PublishRequest),
    ("put", "/v1/transmission", schemas.PublishRequest),
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(GatewaySettings(redis_url="")).openapi()


def is_shown(node: Mapping[str, Any]) -> bool:
    """Whether a reader of this schema sees a value that it may have."""
    if any(word in node for word in ("example", "examples", "enum", "const", "$ref")):
        return True
    if node.get("default") is not None:
        return True
    return any(is_shown(each) for each in [node.get("items", {}), *node.get("anyOf", [])] if each)


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_reference_has_a_target(document: dict[str, Any]) -> None:
    targets = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    events = {
        f"#/components/schemas/{kind}" for kind in ("PartialImageEvent", "CompletedEvent", "ErrorEvent")
    }
    assert events <= set(references(document)) <= targets


def test_every_field_has_an_example(document: dict[str, Any]) -> None:
    bare = [
        f"{model}.{name}"
        for model, schema in document["components"]["schemas"].items()
        for name, node in schema.get("properties", {}).items()
        if not is_shown(node)
    ]
    assert bare == []


def test_every_parameter_has_an_example(document: dict[str, Any]) -> None:
    bare = [
        f"{name} {parameter['name']}"
        for name, operation in operations(document)
        for parameter in operation.get("parameters", [])
        if not is_shown(parameter) and not is_shown(parameter["schema"])
    ]
    assert bare == []


def test_a_body_is_shown_by_examples_that_are_allowed(document: dict[str, Any]) -> None:
    taking = {name for name, operation in operations(document) if "requestBody" in operation}
    assert taking == {f"{method.upper()} {path}" for method, path, _ in SHOWN}
    for method, path, model in SHOWN:
        content = document["paths"][path][method]["requestBody"]["content"]["application/json"]
        assert len(content["examples"]) > 1
        for example in content["examples"].values():
            assert example["summary"]
            asked = model.model_validate_json(json.dumps(example["value"]))
            if isinstance(asked, schemas.KnowledgeRequest):  # the cloud refuses too few prompts
                count = asked.images or DistillConfig().images
                topic_prompts(asked.topic, prompts=asked.prompts, count=count, held_out=8, seed=0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_example_of_a_field_is_one_that_it_may_have(name: str) -> None:
    for field, info in MODELS[name].model_fields.items():
        for example in info.examples or []:
            try:
                kind = TypeAdapter(Annotated[info.annotation, Field(), *info.metadata])
                kind.validate_json(json.dumps(example), strict=True)
            except ValueError as error:
                pytest.fail(f"{field}: {error}")
