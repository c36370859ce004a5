"""Smaller forms of a trained update, and which of them does the job.

What a training makes first is the full form. A smaller one has fewer bits, or only the components of B @ A
that change most (by singular value decomposition), which are trained further, or no LoRA at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from dekag.generation.models import Generator


@dataclass(frozen=True)
class Form:
    """A form of an update.

    Attributes:
        rank: size of its LoRA, as the rank that all layers would have for it; 0: no LoRA.
        bits: as in `DistillConfig`.
    """

    rank: float
    bits: int

    def __str__(self) -> str:
        return f"rank {self.rank:g}, {self.bits} bits" if self.rank else "metaword alone"


METAWORD_ALONE = Form(0, 4)
SMALLEST_RANK = 0.2
SMALLER_BITS = 3


def smaller_forms(rank: int, bits: int, *, metaword: bool) -> tuple[Form, ...]:
    """The forms smaller than the full one of that rank and so many bits, the largest first.

    Each rank but the full one is at most half of the one before.

    Example:
        >>> from dekag.makd.ladder import smaller_forms
        >>> [str(form) for form in smaller_forms(1, 4, metaword=True)]
        ['rank 1, 3 bits', 'rank 0.4, 3 bits', 'rank 0.2, 3 bits', 'metaword alone']

    Args:
        rank: of the trained LoRA.
        bits: of the full form.
        metaword: whether the update has a metaword, and is still something without its LoRA.
    """
    fewer = min(bits, SMALLER_BITS)
    halvings = int(math.log2(rank / 2 / SMALLEST_RANK))
    ranks = [rank, *(SMALLEST_RANK * 2**halving for halving in range(halvings, -1, -1))]
    found = [Form(each, fewer) for each in ranks] + ([METAWORD_ALONE] if metaword else [])
    return tuple(form for form in found if form != Form(rank, bits))


def layer_gains(edge: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, float]:
    """How strongly each layer turns a change of its weights into a change of its output, by layer.

    The gain is the mean square of a layer's inputs over the summed mean squares of its outputs, while images
    are drawn. `gain * (B @ A) ** 2`, summed over all weights, is then the change of the output by an update,
    relative to the output, if inputs are uncorrelated.

    Args:
        edge: draws the images; must not be traced.
        prompts, seeds: of the images; two are enough.
    """
    found: dict[str, list[float]] = {}

    def observe(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...], said: torch.Tensor) -> None:
            outputs = said.shape[1] if said.ndim == 4 else said.shape[-1]
            change = given[0].float().square().mean() / (outputs * said.float().square().mean() + 1e-12)
            found.setdefault(name, []).append(float(change))

        return hook

    layers = edge.pipeline.unet.named_modules()
    hooks = [
        layer.register_forward_hook(observe(name))
        for name, layer in layers
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        edge.batch(list(prompts), list(seeds))
    finally:
        for each in hooks:
            each.remove()
    return {name: fmean(changes) for name, changes in found.items()}


@dataclass(frozen=True)
class LayerComponents:
    """The singular value decomposition of B @ A of a layer, the strongest component first.

    Attributes:
        down: rows of A, (rank, in) or (rank, in, k, k) float32, each with the root of its strength.
        up: columns of B, (out, rank) or (out, rank, 1, 1) float32, likewise.
        strengths: singular values, (rank,) float64.
    """

    down: torch.Tensor
    up: torch.Tensor
    strengths: torch.Tensor

    @property
    def numbers(self) -> int:
        """That one component takes."""
        return self.down[0].numel() + self.up.shape[0]


def components(lora: Mapping[str, torch.Tensor]) -> dict[str, LayerComponents]:
    """The components of a LoRA, by layer.

    Args:
        lora: "<layer>.lora_A.weight" (rank, in) or (rank, in, k, k), "<layer>.lora_B.weight" (out, rank) or
            (out, rank, 1, 1).
    """
    found = {}
    for key, a in lora.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        b = lora[f"{layer}.lora_B.weight"]
        # of the small factors: the product may have millions of numbers, but has no higher rank
        left, left_inner = torch.linalg.qr(b.double().flatten(1))
        right, right_inner = torch.linalg.qr(a.double().flatten(1).T)
        inner_left, strengths, inner_right = torch.linalg.svd(left_inner @ right_inner.T)
        count, roots = len(strengths), strengths.sqrt()
        down = (roots[:, None] * (inner_right[:count] @ right.T)).reshape(count, *a.shape[1:])
        up = (left @ inner_left[:, :count] * roots).reshape(b.shape[0], count, *b.shape[2:])
        found[layer] = LayerComponents(down.float(), up.float(), strengths)
    return found


def strongest(
    layers: Mapping[str, LayerComponents], numbers: float, gains: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """The LoRA of the components that change the outputs of their layers most, for each number they take.

    Layers keep different numbers of components, and some none: an update hardly changes many of them.

    Example:
        >>> import torch
        >>> from dekag.makd.ladder import components, strongest
        >>> lora = {"a.lora_A.weight": torch.randn(5, 8), "a.lora_B.weight": torch.randn(6, 5)}
        >>> strongest(components(lora), 14, {"a": 1.0})["a.lora_B.weight"].shape
        torch.Size([6, 1])

    Args:
        layers: from `components`.
        numbers: that what is kept may take.
        gains: of each layer, from `layer_gains`.
    """
    change = [
        (float(strength**2) * gains[name] / each.numbers, name)
        for name, each in layers.items()
        for strength in each.strengths
    ]
    left = numbers
    kept = dict.fromkeys(layers, 0)
    for _, name in sorted(change, key=lambda each: -each[0]):  # a layer's components are in their order
        if layers[name].numbers <= left:
            kept[name] += 1
            left -= layers[name].numbers
    found: dict[str, torch.Tensor] = {}
    for name, count in kept.items():
        if count:
            found[f"{name}.lora_A.weight"] = layers[name].down[:count]
            found[f"{name}.lora_B.weight"] = layers[name].up[:, :count].contiguous()
    return found


@dataclass(frozen=True)
class Rung:
    """A form of an update and what it costs and gives.

    Attributes:
        form: which.
        size_bytes: of the update.
        gains: in consistency over the edge without an update, of each held-out prompt.
    """

    form: Form
    size_bytes: int
    gains: Sequence[float]

    @property
    def gain(self) -> float:
        """The mean gain."""
        return fmean(self.gains)


def smallest_enough(rungs: Sequence[Rung], keep: float) -> Rung:
    """The smallest rung that gains `keep` times what the best of them does, as far as the prompts can tell.

    It may fall short of that by one standard error of the shortfall, which few prompts cannot tell from none:
    the rule of one standard error of Breiman et al., "Classification and Regression Trees", 1984.

    If none gains anything, it is the smallest of all: whoever publishes it anyway pays as little as can be.

    Example:
        >>> from dekag.makd.ladder import Form, Rung, smallest_enough
        >>> small, full = Rung(Form(1, 2), 17_000, [0.4, 0.56]), Rung(Form(5, 4), 140_000, [0.4, 0.6])
        >>> smallest_enough([small, full], keep=0.95).form
        Form(rank=1, bits=2)

    Args:
        rungs: to choose from, at least one.
        keep: above 0 and up to 1; at 1, the best is chosen.
    """
    best = max(rungs, key=lambda rung: rung.gain)

    def is_enough(rung: Rung) -> bool:
        missing = [keep * most - gain for most, gain in zip(best.gains, rung.gains, strict=True)]
        error = stdev(missing) / math.sqrt(len(missing)) if len(missing) > 1 and keep < 1 else 0.0
        return fmean(missing) <= error

    enough = [rung for rung in rungs if rung is best or is_enough(rung)] if best.gain > 0 else rungs
    return min(enough, key=lambda rung: rung.size_bytes)
