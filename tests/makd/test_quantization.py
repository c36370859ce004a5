"""The compact form of a LoRA: its error, its size, and what is no such thing."""

from __future__ import annotations

import json
import math
import resource
import zlib

import pytest
import torch

from dekag.documents import read_json
from dekag.errors import InvalidInputError
from dekag.evaluation.registry import RESULTS
from dekag.makd.config import BITS, RANGES
from dekag.makd.quantization import (
    _DICTIONARY,
    MAX_COMPONENTS,
    MAX_LAYERS,
    WORD_BITS,
    pack,
    pack_vectors,
    unpack,
    unpack_vectors,
)

COARSE = [bits for bits in BITS if bits < 16]
SHAPES = {  # layer: shapes of A and B
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": ((5, 64), (64, 5)),
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": ((5, 64), (512, 5)),
    "down_blocks.0.resnets.0.conv1": ((5, 32, 3, 3), (64, 5, 1, 1)),
    "mid_block.narrow": ((5, 3), (64, 5)),
}


def factors(seed: int = 1, decay: float = 0.7) -> dict[str, torch.Tensor]:
    """A LoRA whose components are of different strength, as training makes it."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer, (a, b) in SHAPES.items():
        made[f"{layer}.lora_A.weight"] = torch.randn(a, generator=generator)
        strengths = (decay ** torch.arange(float(b[1]))).view(-1, *(1,) * (len(b) - 2))
        made[f"{layer}.lora_B.weight"] = 0.01 * torch.randn(b, generator=generator) * strengths
    return made


def product(lora: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """B @ A of a layer."""
    a, b = lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"]
    return b.flatten(1).double() @ a.flatten(1).double()


def errors(lora: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[float]:
    """The relative error of B @ A of each layer."""
    layers = [name.removesuffix(".lora_A.weight") for name in lora if ".lora_A." in name]
    pairs = [(product(lora, layer), product(found, layer)) for layer in layers]
    return [float((other - own).norm() / own.norm()) for own, other in pairs]


def size(packed: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


@pytest.mark.parametrize(("bits", "most"), [(2, 0.64), (3, 0.32), (4, 0.16), (8, 0.04), (16, 0.001)])
def test_each_bit_halves_the_error_of_every_layer(bits: int, most: float) -> None:
    lora = factors()
    found = unpack(pack(lora, bits))
    assert found.keys() == lora.keys()
    for name, factor in found.items():
        assert factor.ndim == lora[name].ndim
        assert factor.dtype == torch.float32
    assert max(errors(lora, found)) < most


@pytest.mark.parametrize("bits", COARSE)
def test_fewer_bits_take_fewer_bytes(bits: int) -> None:
    lora = factors()
    numbers = sum(factor.numel() for factor in lora.values())
    assert 8 * pack(lora, bits)["values"].numel() < bits * numbers
    finer = BITS[BITS.index(bits) + 1]
    assert size(pack(lora, bits)) < size(pack(lora, finer))


def rounded_by_row(factor: torch.Tensor, bits: int) -> torch.Tensor:
    """A factor with a scale for each row, the plain way."""
    rows = factor.flatten(1)
    scale = (rows.abs().amax(1) / (2 ** (bits - 1) - 1))[:, None]
    found: torch.Tensor = (rows / scale).round() * scale
    return found.view(factor.shape)


@pytest.mark.parametrize("bits", [3, 4])
def test_it_is_smaller_and_no_worse_than_a_scale_for_each_row(bits: int) -> None:
    lora = {name: factor for name, factor in factors().items() if "narrow" not in name}
    plain = {name: rounded_by_row(factor, bits) for name, factor in lora.items()}
    packed = pack(lora, bits)
    scales = sum(2 * len(factor) for factor in lora.values())
    numbers = sum(factor.numel() for factor in lora.values())
    assert size(packed) < 0.75 * (numbers * bits / 8 + scales)
    mine, theirs = errors(lora, unpack(packed)), errors(lora, plain)
    assert sum(mine) < sum(theirs)


@pytest.mark.parametrize("bits", COARSE)
def test_scale_and_basis_of_the_factors_do_not_matter(bits: int) -> None:
    lora = factors()
    other = {name: factor * (100 if ".lora_A." in name else 0.01) for name, factor in lora.items()}
    assert max(errors(lora, unpack(pack(other, bits)))) < 1.1 * max(errors(lora, unpack(pack(lora, bits))))
    for factor in (1e-3, 1e3):
        louder = {name: each * (factor if ".lora_B." in name else 1) for name, each in lora.items()}
        assert max(errors(louder, unpack(pack(louder, bits)))) < 1.1 * 0.6


@pytest.mark.parametrize("bits", COARSE)
def test_what_is_zero_takes_no_bytes(bits: int) -> None:
    lora = factors()
    silent = {name: 0 * factor if "narrow" in name else factor for name, factor in lora.items()}
    found = unpack(pack(silent, bits))
    assert not any("narrow" in name for name in found)
    assert pack({name: 0 * factor for name, factor in lora.items()}, bits) == {}


def test_a_weak_component_is_left_out() -> None:
    lora = factors(decay=0.01)
    found = unpack(pack(lora, 2))
    assert all(found[name].shape[0] < 5 for name in found if ".lora_A." in name)
    assert max(errors(lora, found)) < 0.6


@pytest.mark.parametrize("bits", [0, 1, 5, 32])
def test_other_bits_are_refused(bits: int) -> None:
    with pytest.raises(InvalidInputError, match="one of 2, 3, 4, 8, 16"):
        pack(factors(), bits)


def layers_of(listed: object) -> torch.Tensor:
    """What says which layers there are."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_DICTIONARY)
    data = coder.compress(json.dumps(listed).encode()) + coder.flush()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize(
    "listed",
    [
        {},
        [],
        {"x": 1},
        {"x": [1]},
        {"x": [1, 2]},
        {"x": [1, 2, 3, 3]},
        {"x": [0, 2, 3]},
        {"x": [True, 2, 3]},
        {"x": [1.0, 2, 3]},
        {"x": [1, -2, 3]},
        {"x": [1, 2, "3"]},
        {"x": [10**30, 10**30, 10**30]},
    ],
)
def test_layers_that_cannot_be_are_refused(listed: object) -> None:
    packed = pack(factors(), 4)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        unpack({**packed, "layers": layers_of(listed)})


def silent(listed: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The compact form of layers whose numbers are all 0."""
    ranks = sum(rank for rank, *_ in listed.values())
    numbers = sum(rank * (out + math.prod(inputs)) for rank, out, *inputs in listed.values())
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    data = coder.compress(b"\x7f" * numbers) + coder.flush()
    return {
        "layers": layers_of(listed),
        "steps": torch.full((ranks,), 100, dtype=torch.uint8),
        "values": torch.frombuffer(bytearray(data), dtype=torch.uint8),
    }


@pytest.mark.parametrize(
    "listed",
    [
        {"x": [2, 1, 9]},
        {"x": [3, 9, 2]},
        {"x": [10, 99, 1, 3, 3]},
        {"x": [1, 2, 3], "y": [4, 3, 5]},
        {f"{i}": [64, 64, 64] for i in range(MAX_COMPONENTS // 64 + 1)},
    ],
)
def test_more_components_than_there_can_be_are_refused(listed: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="components"):
        unpack({**silent({"x": [1, 1, 1]}), "layers": layers_of(listed), "values": torch.zeros(2**22).byte()})


def test_more_layers_than_there_can_be_are_refused() -> None:
    listed = {f"{i}": [1, 1, 1] for i in range(MAX_LAYERS)}
    assert len(unpack(silent(listed))) == 2 * MAX_LAYERS
    with pytest.raises(ValueError, match="layers"):
        unpack(silent(listed | {"x": [1, 1, 1]}))


@pytest.mark.parametrize("layer", [[4, 4, 9], [4, 9, 4], [9, 9, 1, 3, 3], [1, 1, 1]])
def test_as_many_components_as_a_layer_has_are_read(layer: list[int]) -> None:
    rank, out, *inputs = layer
    found = unpack(silent({"x": layer}))
    assert found["x.lora_A.weight"].shape == (rank, *inputs)
    assert found["x.lora_B.weight"].shape == (out, rank, *(1 for _ in inputs[1:]))
    assert not any(factor.any() for factor in found.values())


def test_the_largest_updates_that_can_be_made_are_within_the_limits() -> None:
    """Those of Stable Diffusion 2.1, with all layers and the highest rank."""
    rows = read_json(RESULTS / "real-models" / "bench-update-size.json")["rows"]
    layers = max(row["adapted_layers"] for row in rows if "adapted_layers" in row)
    assert layers < MAX_LAYERS / 8
    assert layers * RANGES["rank"][1] < MAX_COMPONENTS / 1.5


def test_factors_of_16_bits_may_have_a_rank_above_their_widths() -> None:
    lora = {"x.lora_A.weight": torch.randn(5, 3), "x.lora_B.weight": torch.randn(4, 5)}
    assert unpack(pack(lora, 16))["x.lora_A.weight"].shape == (5, 3)
    many = {"x.lora_A.weight": torch.randn(257, 3), "x.lora_B.weight": torch.randn(4, 257)}
    with pytest.raises(ValueError, match="components"):
        unpack(pack(many, 16))


def bomb(mebibytes: int, *, names: bool = False) -> torch.Tensor:
    """Zeros, or spaces as names of layers, that were compressed as well as can be."""
    dictionary = _DICTIONARY if names else b""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=dictionary)
    data = b"".join(coder.compress((b" " if names else b"\0") * 2**20) for _ in range(mebibytes))
    return torch.frombuffer(bytearray(data + coder.flush()), dtype=torch.uint8)


def test_a_file_that_swells_is_refused_before_it_does() -> None:
    mebibytes = 1024
    values, names = bomb(mebibytes), bomb(mebibytes, names=True)
    steps = torch.full((1,), 100, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for layers in ({"x": [1, 2**30 - 1, 1]}, {"x": [1, 8 * len(values) - 1, 1]}, {"x": [1, 1, 1]}):
        with pytest.raises(ValueError, match=r"numbers|values"):
            unpack({"layers": layers_of(layers), "steps": steps, "values": values})
    with pytest.raises(ValueError, match="layers"):
        unpack({"layers": names, "steps": steps, "values": values})
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kibibytes < mebibytes * 1024 / 8


@pytest.mark.parametrize("scale", [1e-5, 1.0, 20.0])
@pytest.mark.parametrize("width", [2, 16, 128])
def test_four_bits_say_a_vector_to_about_a_tenth(width: int, scale: float) -> None:
    torch.manual_seed(width)
    vectors = scale * torch.randn(64, width)
    packed = pack_vectors(vectors)
    assert (packed.dtype, packed.shape) == (torch.uint8, (64, 1 + width // 2))
    found = unpack_vectors(packed).float()
    assert (found - vectors).norm() / vectors.norm() < 0.13
    again = unpack_vectors(pack_vectors(found)).float()
    assert torch.equal(again, found), "packing once more changes nothing"


@pytest.mark.parametrize(("width", "scale"), [(8, 1.0), (128, 0.03), (1024, 10.0)])
def test_two_bits_say_a_vector_to_about_a_third(width: int, scale: float) -> None:
    torch.manual_seed(width)
    vectors = scale * torch.randn(64, width)
    packed = pack_vectors(vectors, WORD_BITS)
    assert (packed.dtype, packed.shape) == (torch.uint8, (64, 1 + width // 4))
    found = unpack_vectors(packed, width).float()
    # no four evenly spaced levels leave less than 0.1188 of the power of normal numbers: Max, 1960
    error = (found - vectors).norm() / vectors.norm()
    assert error < 0.37
    assert width < 128 or error**2 > 0.11
    assert all(len(row.abs().unique()) <= 2 for row in found), "one and three halves of a step"
    assert torch.equal(unpack_vectors(pack_vectors(found, WORD_BITS), width).float(), found)


def test_vectors_of_zeros_of_odd_width_and_of_great_size_survive() -> None:
    zeros = torch.zeros(2, 8)
    assert torch.equal(unpack_vectors(pack_vectors(zeros)), zeros.half())
    odd = torch.randn(3, 7)
    assert torch.equal(unpack_vectors(pack_vectors(odd)), odd.half())
    large = torch.tensor([[101.0, -2.0]])
    assert torch.equal(unpack_vectors(pack_vectors(large)), large.half())
    assert unpack_vectors(pack_vectors(torch.zeros(0, 8))).shape == (0, 8)
    few = pack_vectors(zeros, WORD_BITS)
    assert few.shape == (2, 3)
    assert unpack_vectors(few, 8).abs().max() < 1e-6
    for width in (6, 130):
        partly = torch.randn(2, width)
        assert torch.equal(pack_vectors(partly, WORD_BITS), pack_vectors(partly)), (
            "not whole bytes of two bits"
        )
        assert unpack_vectors(pack_vectors(partly, WORD_BITS), width).shape == (2, width)
    assert torch.equal(unpack_vectors(pack_vectors(odd, WORD_BITS), 7), odd.half())
