"""Low-rank adapters (LoRA) of a denoiser, different ones for each row of a batch.

Where all rows of a batch have the same adapters, they can be merged: added to the weights for as long as the
batch takes. That costs a product of the factors, and nothing for each step of the sampler.

Otherwise, PEFT runs the adapters of a layer one after another, each on its rows. Here, the factors of all
adapters of a batch are stacked into one pair of matrices, and a mask selects the ranks of each row: two
products per layer for any number of topics in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dekag.errors import MismatchError

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # layer -> A (r, in, ...), B (out, r, ...)


class BatchedLora:
    """Adapters for the linear layers and convolutions of a denoiser, which is unchanged outside `active`.

    Args:
        denoiser: its layers have other weights, or forward hooks, while adapters are active.
        merge: whether adapters are merged into the weights if all rows have the same.
    """

    def __init__(self, denoiser: nn.Module, *, merge: bool = False) -> None:
        self._merge = merge
        self._layers = {
            name: module
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        self._loaded: dict[str, Factors] = {}

    def add(self, name: str, lora: Mapping[str, torch.Tensor]) -> None:
        """Load an adapter.

        Args:
            name: its name in `active`.
            lora: `LAYER.lora_A.weight` (r, in) or (r, in, k, k) and `LAYER.lora_B.weight` (out, r) or
                (out, r, 1, 1) for each adapted layer.

        Raises:
            MismatchError: a factor does not fit its layer.
        """
        self._loaded[name] = self._fitting(lora)

    def check(self, lora: Mapping[str, torch.Tensor]) -> None:
        """Raises MismatchError unless `add` would load that adapter; thread-safe."""
        self._fitting(lora)

    def _fitting(self, lora: Mapping[str, torch.Tensor]) -> Factors:
        """The factors by layer; MismatchError if one does not fit its layer."""
        factors: Factors = {}
        for key in lora:
            layer, which = key.rsplit(".lora_", 1)
            if which == "A.weight":
                factors[layer] = (lora[key].float(), lora[f"{layer}.lora_B.weight"].float())
        for layer, (a, b) in factors.items():
            weight = self._layers[layer].weight if layer in self._layers else torch.zeros(0)
            fits = a.ndim == b.ndim == weight.ndim and a.shape[1:] == weight.shape[1:]
            if not fits or b.shape[0] != weight.shape[0] or b.shape[1] != a.shape[0] or b[0, 0].numel() != 1:
                raise MismatchError(f"the LoRA does not fit layer {layer[:80]!r}")
        return factors

    def remove(self, name: str) -> None:
        """Unload an adapter, if it is loaded."""
        self._loaded.pop(name, None)

    @contextmanager
    def active(self, rows: Sequence[Sequence[str]], scale: float = 1.0) -> Iterator[None]:
        """Inside the context, adapters rows[i] apply to row i, and again to each repetition of the rows.

        Args:
            rows: names of loaded adapters for each row; several are added, and none leaves the row unchanged.
            scale: factor of what the adapters add.
        """
        names = sorted({name for row in rows for name in row})
        chosen = [(self._loaded[name], [name in row for row in rows]) for name in names]
        restores = []
        try:
            for name in {name: None for factors, _ in chosen for name in factors}:
                layer = self._layers[name]
                pairs = [factors[name] for factors, _ in chosen if name in factors]
                selected = torch.tensor([which for factors, which in chosen if name in factors])
                if self._merge and selected.all():
                    restores.append(_merged(layer, pairs, scale))
                else:
                    stacked = _Stacked(pairs, selected, scale)
                    restores.append(layer.register_forward_hook(stacked).remove)
            yield
        finally:
            for restore in restores:
                restore()


@torch.inference_mode(False)
@torch.no_grad()
def _merged(
    layer: nn.Module, factors: Sequence[tuple[torch.Tensor, torch.Tensor]], scale: float
) -> Callable[[], None]:
    """Adds adapters to the weights of a layer; returns what takes them away, to the bit."""
    weight: Any = layer.weight
    before: torch.Tensor = weight.data
    a, b = torch.cat([each for each, _ in factors]), torch.cat([each for _, each in factors], dim=1)
    weight.data = before + scale * (b.flatten(1) @ a.flatten(1)).view_as(before)

    def restore() -> None:
        weight.data = before

    return restore


class _Stacked:
    """The adapters of one layer: its forward hook.

    Args:
        factors: A and B of each.
        selected: (adapters, rows) bool, whether an adapter applies to a row.
        scale: factor of B.
    """

    def __init__(
        self, factors: Sequence[tuple[torch.Tensor, torch.Tensor]], selected: torch.Tensor, scale: float
    ) -> None:
        self._a = torch.cat([a for a, _ in factors])
        self._b = torch.cat([b for _, b in factors], dim=1) * scale
        ranks = torch.tensor([len(a) for a, _ in factors])
        self._mask = (
            None if selected.all() else selected.float().T.repeat_interleave(ranks, dim=1)
        )  # (rows, ranks)

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        x = inputs[0]
        # on the layer's device and in its number format, of which the first call tells
        self._a, self._b = self._a.to(x), self._b.to(x)
        self._mask = self._mask if self._mask is None else self._mask.to(x)
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, self._a, None, layer.stride, layer.padding, layer.dilation)
            return output + F.conv2d(self._own(low, (-1, 1, 1)), self._b)
        low = F.linear(x, self._a)
        return output + F.linear(self._own(low, (1,) * (x.ndim - 2) + (-1,)), self._b)

    def _own(self, low: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Masks the ranks of each row; `shape` is a row's, with -1 for the ranks and 1 elsewhere."""
        if self._mask is None:
            return low
        times = len(low) // len(self._mask)
        return low * self._mask.repeat(times, 1).reshape(len(low), *shape)
