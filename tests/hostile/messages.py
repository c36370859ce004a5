"""Hostile protobuf messages, made from the descriptors: a field that is added later is covered at once."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_Message = TypeVar("_Message", bound=Message)
_Value = TypeVar("_Value")
_DEPTH = 2  # of messages in messages
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NUMBERS = (0, 1, 2, 4, 8, 31, 32, 64, 96, 128, 256, 257, 1000, 2**16, 2**22, 2**31, 2**53, 2**63 - 1, 2**63)
_FLOATS = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1e-300, 1e300, -1e300, 1e-9, 1 / 768, 1 / 96,
    1 / 6, 0.1667, -20.0, -20.000001, 40.0, 40.000001, 5.0, 60.0, 150.0, 86_400.0, 2.0**53, 1e-4,
)  # fmt: skip
_NAMES = (
    "", " ", "\0", "a", "none", "auto", "neon", "walk", "../../etc/passwd", "a/b", "x" * 33, "a red boat",
    "{a|b}" * 150, "{" * 900, "a{|}" * 250, "%s%n%d", "\u202eright to left", "e\u0301" * 400, "\u200b" * 50,
    "\U0001f98a" * 200, "\ufeff", "\uffff\ufffe", "\r\nX-Evil: 1", "'; drop table", "neon " * 200, "ſK",
    "\U000e0041" * 300, "0" * 64, "٣", "²",
)  # fmt: skip
_IQ = struct.pack("<8f", 1, 0, 0, 1, -1, 0, 0, -1)
_BYTES = (
    b"", b"\0", b"\xff" * 7, _IQ, _IQ * 64, _IQ[:-1], struct.pack("<2f", math.nan, 0),
    struct.pack("<2f", math.inf, 0), struct.pack("<2f", 3e38, 3e38), struct.pack("<2f", 1e-38, 0),
    b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBP", b"{}", b"\x80\x04pickle",
)  # fmt: skip


def _one_of(values: Sequence[_Value]) -> st.SearchStrategy[_Value]:
    """As ``sampled_from``, but strategies of it do not print all of the values."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


def texts() -> st.SearchStrategy[str]:
    """Text of every kind that a protobuf string can hold, and some that a request often holds."""
    free = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
    long = st.builds(lambda text, times: text * times, free, st.integers(1, 400))
    return _one_of(_NAMES) | free | long


def floats() -> st.SearchStrategy[float]:
    """Not finite, huge, tiny and negative ones, and the edges of what is allowed."""
    return _one_of(_FLOATS) | st.floats(-25, 45) | st.floats()


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of one element of a field."""
    kind = field.cpp_type
    if kind in _BITS:
        low, high = _BITS[kind]
        return st.sampled_from([n for n in _NUMBERS if low <= n <= high]) | st.integers(low, high)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return floats()
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([each.number for each in field.enum_type.values]) | st.integers(-3, 2**31 - 1)
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return _of(field.message_type, depth - 1)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _one_of(_BYTES) | st.binary(max_size=200)
    return texts()


def _set(message: Any, field: FieldDescriptor, value: Any) -> None:
    """Gives a field of ``message`` a value of ``_contents``."""
    message.ClearField(field.name)
    held = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        for key, each in value.items():
            if entry.fields_by_name["value"].cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                held[key].CopyFrom(each)
            else:
                held[key] = each
    elif field.is_repeated:
        held.extend(value)
    elif entry is not None:
        held.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _contents(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Values of a whole field."""
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return st.dictionaries(_values(key, depth), _values(value, depth), max_size=3)
    if field.is_repeated:
        return st.lists(_values(field, depth), max_size=5)
    return _values(field, depth)


def _of(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Any]:
    """Messages of that type, each field unset or with any value."""
    fields = [field for field in descriptor.fields if depth > 0 or field.message_type is None]
    chosen = st.fixed_dictionaries({}, optional={field.name: _contents(field, depth) for field in fields})

    def build(values: dict[str, Any]) -> Message:
        message = GetMessageClass(descriptor)()
        for name, value in values.items():
            _set(message, descriptor.fields_by_name[name], value)
        return message

    return chosen.map(build)


def any_of(kind: type[_Message]) -> st.SearchStrategy[_Message]:
    """Messages of that type with any value in any field."""
    return _of(kind.DESCRIPTOR, _DEPTH)


@st.composite
def spoiled(draw: st.DrawFn, valid: _Message, most: int = 3) -> _Message:
    """``valid`` with up to ``most`` of its fields, or of the messages in it, set to any value."""
    message: Any = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(1, most))):
        place, descriptor = message, message.DESCRIPTOR
        field = draw(st.sampled_from(list(descriptor.fields)))
        while field.message_type is not None and not field.is_repeated and draw(st.booleans()):
            place, descriptor = getattr(place, field.name), field.message_type
            field = draw(st.sampled_from(list(descriptor.fields))) if descriptor.fields else None
            if field is None:
                break
        if field is not None:
            _set(place, field, draw(_contents(field, _DEPTH)))
    return message


def wire(message: st.SearchStrategy[Message]) -> st.SearchStrategy[bytes]:
    """Bytes that mostly are no message: garbage, and messages cut off, doubled or with bytes flipped."""
    whole = message.map(lambda each: each.SerializeToString())

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(whole))
        how = draw(st.sampled_from(["cut", "flip", "double", "append"]))
        if how == "cut" and data:
            del data[draw(st.integers(0, len(data) - 1)) :]
        elif how == "flip" and data:
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        elif how == "double":
            data *= 2
        else:
            data += draw(st.binary(min_size=1, max_size=20))
        return bytes(data)

    return st.binary(max_size=300) | damaged()
