"""Symbols as bytes."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link.iq import bytes_to_iq, iq_to_bytes


def test_layout_is_interleaved_little_endian_float32() -> None:
    symbols = torch.tensor([[1 + 2j, -0.5 - 0.25j]], dtype=torch.complex64)
    data = iq_to_bytes(symbols)
    assert data == struct.pack("<4f", 1, 2, -0.5, -0.25)
    assert torch.equal(bytes_to_iq(data, count=2), symbols[0])
    assert iq_to_bytes(symbols.conj()) == struct.pack("<4f", 1, -2, -0.5, 0.25)


@pytest.mark.parametrize(
    ("data", "count", "allowed"),
    [
        (b"1234567", None, "multiple of 8"),
        (bytes(16), 3, "3 complex"),
        (struct.pack("<2f", math.nan, 0), 1, "finite"),
        (struct.pack("<2f", 0, math.inf), 1, "finite"),
    ],
)
def test_bad_bytes_name_the_field(data: bytes, count: int | None, allowed: str) -> None:
    with pytest.raises(InvalidInputError, match=f"symbols.iq must be .*{allowed}") as caught:
        bytes_to_iq(data, count=count, field="symbols.iq")
    assert caught.value.field == "symbols.iq"


def test_what_is_not_finite_is_not_sent() -> None:
    with pytest.raises(InvalidInputError, match="finite"):
        iq_to_bytes(torch.tensor([complex(math.inf, 0)]))
