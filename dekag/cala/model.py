"""CALA's model for PEFT: injects the layers, owns the trunks of the gates, and sets the gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.nn import functional as F

from dekag.cala.config import CalaConfig
from dekag.cala.layer import CalaLayer, Gating, LowRankBranch
from dekag.errors import InvalidInputError

_BASE_ALONE = Gating()


@dataclass(frozen=True)
class GatedSide:
    """One gated side of the model.

    Attributes:
        trunk: maps conditions (batch, C) to hidden units.
        layers: the adapted layers.
        branches: their low-rank branches, in the same order.
        head: concatenated weight and bias of all heads, for fast inference.
    """

    trunk: nn.Sequential
    layers: list[CalaLayer]
    branches: list[LowRankBranch]
    head: tuple[torch.Tensor, torch.Tensor] | None = None

    def gates(self, condition: torch.Tensor) -> list[torch.Tensor]:
        """The weights of each layer's components, (batch, rank), for conditions (batch, C)."""
        features = self.trunk[0].in_features
        if condition.ndim != 2 or condition.shape[1] != features:
            raise InvalidInputError("condition", f"(batch, {features})", tuple(condition.shape))
        hidden = self.trunk(condition)
        if self.head is None:
            return [part.weights(part.head(hidden)) for part in self.branches]
        numbers = F.linear(hidden, *self.head)
        ranks = [part.head.out_features for part in self.branches]
        if self.branches[0].gate_kind == "softmax":  # computed for each layer separately
            return [part.weights(n) for part, n in zip(self.branches, numbers.split(ranks, 1), strict=True)]
        return list(self.branches[0].weights(numbers).split(ranks, dim=1))

    def with_one_head(self) -> GatedSide:
        """The same side with concatenated heads."""
        heads = [part.head for part in self.branches]
        together = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
        return replace(self, head=together)


class CalaModel(BaseTuner):  # type: ignore[misc]
    """A codec with condition-aware low-rank adapters.

    A gate has a trunk for each side (encoder, decoder), which maps a condition vector to `gate_width` hidden
    units, and a linear head for each layer, which maps those to the weights of its components.
    """

    prefix = "cala_"
    tuner_layer_cls = CalaLayer
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: CalaConfig, adapter_name: str) -> None:
        if not hasattr(self, "cala_trunks"):
            self.cala_trunks = nn.ModuleDict({})
            self._fused_sides: dict[str, GatedSide] = {}
        self.cala_trunks[adapter_name] = nn.ModuleDict(
            {
                side: nn.Sequential(nn.Linear(config.condition_features, config.gate_width), nn.GELU())
                for side in config.sides
            }
        )
        self.cala_trunks[adapter_name].requires_grad_(not config.inference_mode)

    def _prepare_adapter_config(self, peft_config: CalaConfig, model_config: dict[str, Any]) -> CalaConfig:
        if peft_config.target_modules is None:
            sides = tuple(f"{side}." for side in peft_config.sides)
            peft_config.target_modules = [
                name
                for name, module in self.model.named_modules()
                if isinstance(module, nn.Conv2d) and name.startswith(sides)
            ]
        return peft_config

    def _create_and_replace(
        self,
        peft_config: CalaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        rank = peft_config.rank
        for ending, other in peft_config.rank_pattern.items():
            if current_key.endswith(ending):
                rank = other
        reads = current_key.endswith(tuple(peft_config.text_modules))
        text_rank = peft_config.text_rank if reads else 0
        if isinstance(target, CalaLayer):
            target.update_layer(adapter_name, rank, peft_config, text_rank)
        elif isinstance(target, nn.Conv2d):
            layer = CalaLayer(target, adapter_name, rank, peft_config, text_rank)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        else:
            raise InvalidInputError(
                "target_modules", "convolutions", f"{current_key}: {type(target).__name__}"
            )

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        setattr(parent, child_name, new_module)

    def _side(self, side: str) -> GatedSide:
        """The trunk, layers and heads of a side under the active adapter."""
        name = self.active_adapters[0]
        if side in self._fused_sides:
            return self._fused_sides[side]
        trunks: Any = self.cala_trunks[name]
        if side not in trunks:
            raise InvalidInputError("side", f"one of {', '.join(trunks)}", side)
        layers = [
            module
            for place, module in self.model.named_modules()
            if isinstance(module, CalaLayer) and place.startswith(f"{side}.")
        ]
        pairs = [(layer, layer.branch) for layer in layers if layer.branch is not None]
        return GatedSide(trunks[side], [layer for layer, _ in pairs], [branch for _, branch in pairs])

    def gates(self, side: str, condition: torch.Tensor) -> list[torch.Tensor]:
        """The weights of the components of each of the side's layers, (batch, rank).

        Args:
            side: which part of the model, such as "encoder".
            condition: (batch, C) float32.

        Raises:
            InvalidInputError: there is no such side, or the conditions have an invalid shape.
        """
        return self._side(side).gates(condition)

    @torch.no_grad()
    def fuse(self) -> None:
        """Prepare layers and gates for fast inference; see `CalaLayer.fuse`."""
        self._fused_sides.clear()
        trunks: Any = self.cala_trunks[self.active_adapters[0]]
        for name in trunks:
            side = self._side(name)
            for layer in side.layers:
                layer.fuse()
            self._fused_sides[name] = side.with_one_head()

    @contextmanager
    def with_condition(
        self, side: str, condition: torch.Tensor, text: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Inside the context, image i of a batch is processed for condition[i]; outside, by the base codec.

        Args:
            side: which part of the model, such as "encoder".
            condition: (batch, C) float32.
            text: states of the prompts, (batch, tokens, text_width); None if there are none.
        """
        part = self._side(side)
        for layer, gates in zip(part.layers, part.gates(condition), strict=True):
            layer.set_gating(Gating(gates, text))
        try:
            yield
        finally:
            for layer in part.layers:
                layer.set_gating(_BASE_ALONE)
