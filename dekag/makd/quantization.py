"""The compact form of an update: fewer bits per number, and an entropy code for its LoRA.

Only the product B @ A of a layer's factors matters, so the factors are replaced by those of its singular
value decomposition, component by component: a row of A and a column of B of the same norm. Both are rounded
to multiples of one step. It is larger for weak components, so that each number costs as little of the
product's error as any other, and components below the error are left out. B is fitted again to A as rounded,
and so makes up for part of its error. The integers of rows that spread alike stand together, which suits a
Huffman code, and the order follows from the steps, so that it need not be stored.

A metaword has few numbers, so each of its vectors is rounded to four bits without an entropy code. Those of
single triggers, of which a vocabulary has many, are rounded to two.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dekag.documents import parse_json
from dekag.errors import InvalidInputError, NumericalError
from dekag.makd.config import BITS, RANGES

LAYERS, STEPS, VALUES = "layers", "steps", "values"
CODED_SHARE = 0.8
"""Bits that a number takes in a file, of those that it is rounded to; as measured on trained LoRAs."""
_ERROR = 2.25  # the relative error of B @ A is about _ERROR / 2**bits
_TOP = 127  # largest integer, so that each is a byte
_STEP_UNIT = 2.0**12  # steps are stored multiplied by it, for which float16 has normal numbers
_STEP_BITS = 7  # bits of float16 that a stored step leaves out; sign bit apart, eight remain
_STEP_CODES = range(8, 248)  # positive, finite, normal
VECTOR_BITS = 4
"""Bits of a number of a metaword."""
WORD_BITS = 2
"""Bits of a number of a trigger's own vector."""
_VECTOR_ZEROS = {VECTOR_BITS: 8.0, WORD_BITS: 1.5}  # what would be stored for 0
_VECTOR_LEAST = {VECTOR_BITS: 1, WORD_BITS: 0}  # the least that is stored, as far from 0 as the greatest
_VECTOR_MOST = 100  # about the largest step times the largest multiple
_VECTOR_SHARES = [each / 20 for each in range(20, 5, -1)]  # of the step that reaches the largest number
_MAX_RANK = int(RANGES["rank"][1])
_MAX_LAYERS_BYTES = 2**20
_MAX_VECTOR_BYTES = 2**22
_MAX_NUMBERS = 2**28
MAX_LAYERS = 2**12
"""Layers of a compact form. The denoiser of Stable Diffusion 2.1 has 272 that can be adapted, that of SDXL
about 800. A layer takes kilobytes of Python's memory, however few bytes of a file name it."""
MAX_COMPONENTS = 2**17
"""Components of all layers of a compact form of fewer than 16 bits. The updates that ship have at most a few
hundred, those of Stable Diffusion 2.1 at the default rank 1,360, and at the highest rank, 256, 69,632. Each
takes a few hundred bytes while it is unpacked, however few its numbers."""
# what the names of a denoiser's layers are made of, the most frequent last; part of the format
_DICTIONARY = (
    b'"conv_in":"conv_out":"time_embedding.linear_1":"time_embedding.linear_2":"mid_block.resnets.0.'
    b'"mid_block.attentions.0.transformer_blocks.0.attn2.to_q":[4,1280,1280],"down_blocks.0.downsamplers.0.'
    b'"up_blocks.0.upsamplers.0.conv":"up_blocks.3.resnets.2.conv_shortcut":[4,320,640,1,1],'
    b'"down_blocks.2.resnets.1.time_emb_proj":[4,64,128],"up_blocks.2.resnets.1.conv2":[5,64,64,3,3],'
    b'"up_blocks.1.resnets.0.conv1":[5,32,32,3,3],"down_blocks.1.attentions.1.proj_in":[5,64,64,1,1],'
    b'"up_blocks.1.attentions.2.proj_out":[5,64,64,1,1],'
    b'"down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj":[5,512,64],'
    b'"up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2":[5,64,256],'
    b'"up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k":[5,64,128],'
    b'"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0":[5,64,64],'
)


@dataclass(frozen=True)
class _Layer:
    """Shapes of a layer's factors: A (rank, *inputs) and B (out, rank, 1, ...)."""

    rank: int
    out: int
    inputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers in a row of A."""
        return math.prod(self.inputs)

    @property
    def numbers(self) -> int:
        """Numbers in both factors."""
        return self.rank * (self.width + self.out)

    def shaped(self, name: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both factors by name, of (rank, width) and (out, rank)."""
        ones = (1,) * (len(self.inputs) - 1)
        return {
            f"{name}.lora_A.weight": a.reshape(self.rank, *self.inputs),
            f"{name}.lora_B.weight": b.reshape(self.out, self.rank, *ones),
        }


def pack(factors: Mapping[str, torch.Tensor], bits: int) -> dict[str, torch.Tensor]:
    """The compact form of a LoRA; the same factors always have the same.

    Args:
        factors: by name, "<layer>.lora_A.weight" (rank, in) or (rank, in, k, k) and "<layer>.lora_B.weight"
            (out, rank) or (out, rank, 1, 1), both of each layer.
        bits: how exact it is, one of BITS: the error of B @ A halves with each. 16 stores the factors
            themselves, in float16.

    Returns:
        "layers": names and shapes, compressed; "values": the numbers; "steps" of the components, unless
        `bits` is 16. Components that rounding leaves nothing of are missing.

    Raises:
        InvalidInputError: `bits` is another.
        NumericalError: a number is not finite.
    """
    if bits not in BITS:
        raise InvalidInputError("bits", f"one of {', '.join(map(str, BITS))}", bits)
    for name, factor in factors.items():
        if not torch.isfinite(factor).all():
            raise NumericalError(f"the LoRA has a number that is not finite in {name}")
    names = sorted(name.removesuffix(".lora_A.weight") for name in factors if ".lora_A." in name)
    pairs = {name: (factors[f"{name}.lora_A.weight"], factors[f"{name}.lora_B.weight"]) for name in names}
    layers: dict[str, _Layer] = {}
    exact, rows, steps = [], [], []
    for name, (a, b) in pairs.items():
        layer = _Layer(a.shape[0], b.shape[0], tuple(a.shape[1:]))
        if bits == 16:
            exact += [a.half().flatten(), b.half().flatten()]
        else:
            codes, rounded_a, rounded_b = _rounded(a.flatten(1).double(), b.flatten(1).double(), bits)
            layer = _Layer(len(codes), layer.out, layer.inputs)
            steps += codes.tolist()
            rows += [*rounded_a, *rounded_b.T]
        if layer.rank:
            layers[name] = layer
    if bits == 16:
        return {LAYERS: _pack_layers(layers), VALUES: torch.cat(exact)}
    if not rows:
        return {}
    ordered = torch.cat([rows[i] for i in _order(layers, steps)])
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    coded = coder.compress((ordered + _TOP).to(torch.uint8).numpy().tobytes()) + coder.flush()
    return {
        LAYERS: _pack_layers(layers),
        STEPS: torch.tensor(steps, dtype=torch.uint8),
        VALUES: _as_tensor(coded),
    }


def unpack(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The factors, float32, in what `pack` returned, to the precision of its bits.

    A byte of `tensors` holds at most eight numbers, and `tensors` at most 2**28; layers and components are
    limited, too. So unpacking takes at most about 50 bytes of memory for each byte of `tensors`, 32 of them
    for the factors, and some tens of megabytes.

    Raises:
        ValueError, LookupError, TypeError, zlib.error, RuntimeError: it is invalid.
    """
    layers, values = _unpack_layers(tensors[LAYERS]), tensors[VALUES]
    numbers = sum(layer.numbers for layer in layers.values())
    exact = STEPS not in tensors
    # no Huffman code has less than a bit for each number
    if numbers > _MAX_NUMBERS or numbers > len(values) * (1 if exact else 8):
        raise ValueError("more numbers than there can be")
    if values.dtype != (torch.float16 if exact else torch.uint8):
        raise ValueError(VALUES)
    if exact:
        if len(values) != numbers:
            raise ValueError("numbers left over")
        # trained factors may have more than a decomposition has, but no layer of a denoiser so many channels
        if any(layer.rank > max(_MAX_RANK, min(layer.width, layer.out)) for layer in layers.values()):
            raise ValueError("more components than there can be")
        return _exact_factors(layers, values.float())
    codes, components = tensors[STEPS], sum(layer.rank for layer in layers.values())
    # no decomposition has more
    if components > MAX_COMPONENTS or any(each.rank > min(each.width, each.out) for each in layers.values()):
        raise ValueError("more components than there can be")
    if codes.dtype != torch.uint8 or codes.shape != (components,):
        raise ValueError(STEPS)
    listed = codes.tolist()
    if not all(code in _STEP_CODES for code in listed):
        raise ValueError(STEPS)
    decoder = zlib.decompressobj(-15)
    data = decoder.decompress(_as_bytes(values), numbers + 1)
    if len(data) != numbers or not decoder.eof or decoder.unused_data:
        raise ValueError(VALUES)
    return _factors(layers, listed, np.frombuffer(data, dtype=np.uint8))


def pack_vectors(vectors: torch.Tensor, bits: int = VECTOR_BITS) -> torch.Tensor:
    """Vectors rounded to multiples of a step each, uint8: the step's code, then two or four numbers a byte.

    The relative error is about a tenth with four bits. With two, which hold odd multiples of half a step, it
    is about a third. Rows that would not fill whole bytes with two bits have four. If they do not fill them
    with four either, or a number is above 100, the vectors are returned in float16.

    Example:
        >>> import torch
        >>> from dekag.makd.quantization import pack_vectors, unpack_vectors
        >>> packed = pack_vectors(torch.tensor([[0.5, -1.0, 0.25, 1.0]]))
        >>> packed.shape, unpack_vectors(packed, 4).shape
        (torch.Size([1, 3]), torch.Size([1, 4]))

    Args:
        vectors: (rows, width).
        bits: VECTOR_BITS or WORD_BITS.
    """
    if bits == WORD_BITS and vectors.shape[1] % (8 // WORD_BITS):
        bits = VECTOR_BITS
    if vectors.shape[1] % (8 // bits) or (vectors.abs() > _VECTOR_MOST).any():
        return vectors.half().contiguous()
    zero, least, greatest = _VECTOR_ZEROS[bits], _VECTOR_LEAST[bits], 2**bits - 1
    exact = vectors.double()
    largest = exact.abs().amax(1) / (greatest - zero)
    tried = torch.stack([_step_codes(largest * share) for share in _VECTOR_SHARES])  # (shares, rows)
    steps = _steps(tried).double()[:, :, None]
    stored = (exact / steps + zero).round().clamp(least, greatest)
    best = (exact - (stored - zero) * steps).square().sum(2).argmin(0)
    rows = torch.arange(len(vectors))
    numbers = stored[best, rows].to(torch.uint8).unflatten(1, (-1, 8 // bits))
    together = (numbers << _shifts(bits)).sum(2, dtype=torch.uint8)
    return torch.cat([tried[best, rows][:, None], together], dim=1)


def unpack_vectors(packed: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """The vectors in what `pack_vectors` returned, (rows, width) float16.

    Args:
        packed: the vectors.
        width: numbers of a vector, which tells two bits from four; None: they have four.

    Raises:
        ValueError: it is invalid.
    """
    if packed.ndim != 2 or packed.dtype not in (torch.float16, torch.uint8):
        raise ValueError("vectors")
    if packed.dtype == torch.float16:
        return packed
    taken = packed.shape[1] - 1
    if taken < 1 or packed.numel() > _MAX_VECTOR_BYTES:
        raise ValueError("vectors")
    codes = packed[:, 0]
    if ((codes < _STEP_CODES[0]) | (codes > _STEP_CODES[-1])).any():
        raise ValueError("steps of vectors")
    bits = WORD_BITS if width == taken * 8 // WORD_BITS else VECTOR_BITS
    numbers = (packed[:, 1:, None] >> _shifts(bits)) % 2**bits
    vectors: torch.Tensor = (numbers.flatten(1).float() - _VECTOR_ZEROS[bits]) * _steps(codes)[:, None]
    return vectors.half()


def _shifts(bits: int) -> torch.Tensor:
    """How far the numbers of a byte are shifted, the first the farthest."""
    return torch.arange(8 - bits, -1, -bits, dtype=torch.uint8)


def _rounded(a: torch.Tensor, b: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The codes of the steps (components,), and integers (components, in) and (out, components).

    `a` and `b` are float64, (rank, in) and (out, rank).
    """
    left, left_rest = torch.linalg.qr(b)
    right, right_rest = torch.linalg.qr(a.T)
    u, strengths, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    norms = strengths.sqrt()
    even_a, even_b = (right @ v.T * norms).T, left @ u * norms
    # an error of step**2 / 12 in each number adds up to _ERROR / 2**bits of the norm of B @ A
    share = _ERROR / 2**bits * math.sqrt(12 / (len(norms) * (a.shape[1] + b.shape[0])))
    largest = torch.maximum(even_a.abs().amax(1), even_b.abs().amax(0))
    codes = _step_codes(torch.maximum(share * strengths.norm() / norms, largest / (_TOP - 1)))
    steps = _steps(codes).double()
    rounded_a = (even_a / steps[:, None]).round().clamp(-_TOP, _TOP)
    kept = (rounded_a != 0).any(1)
    codes, steps, rounded_a = codes[kept], steps[kept], rounded_a[kept]
    fitted_b = b @ (a @ torch.linalg.pinv(rounded_a * steps[:, None]))
    rounded_b = (fitted_b / steps).round().clamp(-_TOP, _TOP)
    kept = (rounded_b != 0).any(0)
    return codes[kept], rounded_a[kept], rounded_b[:, kept]


def _step_codes(steps: torch.Tensor) -> torch.Tensor:
    """The nearest steps that are stored: the upper bits of float16 numbers, (n,) uint8."""
    bounded = (steps.nan_to_num(math.inf) * _STEP_UNIT).clamp(2.0**-14, 1.875 * 2.0**15)
    halves: torch.Tensor = bounded.half().view(torch.int16).int() + 2 ** (_STEP_BITS - 1)
    return (halves >> _STEP_BITS).clamp(_STEP_CODES[0], _STEP_CODES[-1]).to(torch.uint8)


def _steps(codes: torch.Tensor) -> torch.Tensor:
    """The steps with these codes, float32."""
    halves: torch.Tensor = codes.to(torch.int16) << _STEP_BITS
    return halves.view(torch.float16).float() / _STEP_UNIT


def _order(layers: Mapping[str, _Layer], codes: list[int]) -> list[int]:
    """The order of the rows in the file, those first whose integers are expected to spread most.

    Rows are numbered layer by layer, the rows of A before the columns of B. Products and sums of Python's
    numbers, unlike powers and torch's sums, come out the same on every machine.
    """
    steps = _steps(torch.tensor(codes, dtype=torch.uint8)).tolist()
    spreads: list[float] = []
    first = 0
    for layer in layers.values():
        # a component's strength is as 1 / step**2; its integers spread as strength**2 / numbers in the row
        weights = [1 / (step * step * step * step) for step in steps[first : first + layer.rank]]
        first += layer.rank
        for length in (layer.width, layer.out):
            scale = (layer.width + layer.out) / length / sum(weights)
            spreads += [scale * weight for weight in weights]
    return sorted(range(len(spreads)), key=lambda row: -spreads[row])


def _factors(
    layers: Mapping[str, _Layer], codes: list[int], stored: npt.NDArray[np.uint8]
) -> dict[str, torch.Tensor]:
    """The factors of these steps, and of rows in the order of the file, as they are stored.

    Rows are copied to their place one by one: in a list, each would be an object of far more bytes than a
    hostile file has for it.
    """
    lengths = [
        length
        for layer in layers.values()
        for length in (*[layer.width] * layer.rank, *[layer.out] * layer.rank)
    ]
    starts, start = [0] * len(lengths), 0
    for row in _order(layers, codes):
        starts[row] = start
        start += lengths[row]
    steps = _steps(torch.tensor(codes, dtype=torch.uint8)).numpy()
    factors: dict[str, torch.Tensor] = {}
    first = 0
    for name, layer in layers.items():
        own = steps[first : first + layer.rank]
        a = np.empty((layer.rank, layer.width), np.float32)
        b = np.empty((layer.out, layer.rank), np.float32)
        for i in range(layer.rank):
            of_a, of_b = starts[2 * first + i], starts[2 * first + layer.rank + i]
            a[i] = stored[of_a : of_a + layer.width]
            b[:, i] = stored[of_b : of_b + layer.out]
        for factor, scale in ((a, own[:, None]), (b, own)):
            factor -= _TOP
            factor *= scale
        factors |= layer.shaped(name, torch.from_numpy(a), torch.from_numpy(b))
        first += layer.rank
    return factors


def _exact_factors(layers: Mapping[str, _Layer], values: torch.Tensor) -> dict[str, torch.Tensor]:
    factors: dict[str, torch.Tensor] = {}
    parts = iter(
        values.split(
            [n for layer in layers.values() for n in (layer.rank * layer.width, layer.rank * layer.out)]
        )
    )
    for name, layer in layers.items():
        factors |= layer.shaped(name, next(parts), next(parts))
    return factors


def _pack_layers(layers: Mapping[str, _Layer]) -> torch.Tensor:
    listed = {name: [layer.rank, layer.out, *layer.inputs] for name, layer in layers.items()}
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    return _as_tensor(coder.compress(json.dumps(listed, separators=(",", ":")).encode()) + coder.flush())


def _unpack_layers(tensor: torch.Tensor) -> dict[str, _Layer]:
    decoder = zlib.decompressobj(-15, zdict=_DICTIONARY)
    text = decoder.decompress(_as_bytes(tensor), _MAX_LAYERS_BYTES)
    if not decoder.eof or decoder.unused_data:
        raise ValueError(LAYERS)
    listed = parse_json(text, LAYERS).items()
    if len(listed) > MAX_LAYERS:
        raise ValueError("more layers than there can be")
    layers = {}
    for name, (rank, out, *inputs) in listed:
        sizes = (rank, out, *inputs)
        if len(inputs) not in (1, 3) or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(name)
        layers[name] = _Layer(rank, out, tuple(inputs))
    if not layers:
        raise ValueError(LAYERS)
    return layers


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: torch.Tensor) -> bytes:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError("no bytes")
    return tensor.numpy().tobytes()
