"""What models of written documents have in common. Imports nothing but pydantic."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Document(BaseModel):
    """A model of what people write: true and false are no numbers, which pydantic takes for 1 and 0.

    That is so for fields that are numbers, or lists of numbers.

    Example:
        >>> from dekag.schema import Document
        >>> class Size(Document):
        ...     width: int
        >>> Size.model_validate({"width": 1}).width
        1

    Raises:
        pydantic.ValidationError: names the field.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _flags_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        found = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, bool) for each in found):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation) - {type(None), ...}
            if kinds and kinds <= {int, float}:  # other fields say themselves what they take
                raise PydanticCustomError("number", "must be a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types within an annotation."""
    if hasattr(annotation, "__metadata__"):
        return _kinds(annotation.__origin__)
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}
