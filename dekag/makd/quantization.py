"""Quantisation of LoRA factors to four or eight bits per number, which makes updates smaller.

Every row of a factor has a float16 scale; its numbers become integers from -(2**(bits-1) - 1) to 2**(bits-1)
- 1 times that scale. All factors are stored in one flat tensor, and their names are compressed, as names
would otherwise dominate the size of a small update.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import torch
from safetensors.torch import load, save

from dekag.documents import parse_json

BITS = (4, 8)
MAX_NAMES_BYTES = 2**24
# scales are stored multiplied by it, so that small ones keep the full precision of float16
SCALE_UNIT = 2.0**12
HALF = torch.finfo(torch.float16)


def pack(factors: Mapping[str, torch.Tensor], bits: int, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of `factors`, each of at least two dimensions, in 4 or 8 `bits` per number."""
    top = 2 ** (bits - 1) - 1
    values, scales = [], []
    for factor in factors.values():
        rows = factor.float().flatten(1)
        # divided by the stored scale, so that its rounding adds no error when reading
        scale = (rows.abs().amax(1) / top * SCALE_UNIT).clamp(HALF.tiny, HALF.max).half()
        integers = (rows / (scale.float() / SCALE_UNIT)[:, None]).round().clamp(-top, top)
        values.append((integers + top).to(torch.uint8).flatten())
        scales.append(scale)
    flat = torch.cat(values)
    if bits == 4:
        flat = torch.cat([flat, flat.new_zeros(len(flat) % 2)])
        flat = flat[::2] * 16 + flat[1::2]
    shapes = {"bits": bits, "shapes": {name: list(factor.shape) for name, factor in factors.items()}}
    names = zlib.compress(json.dumps(shapes, separators=(",", ":")).encode(), 9)
    named = torch.frombuffer(bytearray(names), dtype=torch.uint8)
    return save({"names": named, "scales": torch.cat(scales), "values": flat}, metadata)


def unpack(data: bytes) -> dict[str, torch.Tensor]:
    """The factors, float32, in a file of `pack`, to the precision of its bits.

    Raises:
        ValueError, KeyError, TypeError, zlib.error, RuntimeError, SafetensorError: the file is invalid.
    """
    tensors = load(data)
    inflater = zlib.decompressobj()
    text = inflater.decompress(tensors["names"].numpy().tobytes(), MAX_NAMES_BYTES)
    listed = parse_json(text, "names")
    bits, flat, scales = listed["bits"], tensors["values"], tensors["scales"]
    if bits not in BITS or flat.dtype != torch.uint8 or scales.dtype != torch.float16:
        raise ValueError("neither four nor eight bits")
    if bits == 4:
        flat = torch.stack([flat // 16, flat % 16], dim=1).flatten()
    factors = {}
    at = row = 0
    for name, shape in listed["shapes"].items():
        size = torch.Size(shape)
        if len(size) < 2 or min(size) < 1:
            raise ValueError(name)
        integers = flat[at : at + size.numel()].float() - (2 ** (bits - 1) - 1)
        scale = scales[row : row + size[0]].float() / SCALE_UNIT
        factors[name] = (integers.view(size[0], -1) * scale[:, None]).view(size)
        at, row = at + size.numel(), row + size[0]
    if row != len(scales) or not 0 <= len(flat) - at <= (bits == 4):
        raise ValueError("numbers left over")
    return factors
