"""CALA as PEFT sees it: puts the layers in, holds the gates' trunks, and sets the gates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from dekag.cala.config import CalaConfig
from dekag.cala.layer import CalaLayer
from dekag.errors import InvalidInputError


class CalaModel(BaseTuner):  # type: ignore[misc]
    """A codec with condition-aware low-rank adapters.

    A gate is a trunk for each side (encoder, decoder), which turns a condition vector into `gate_width`
    hidden units, and a linear head for each layer, which turns those into the weights of its components.
    """

    prefix = "cala_"
    tuner_layer_cls = CalaLayer
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: CalaConfig, adapter_name: str) -> None:
        if not hasattr(self, "cala_trunks"):
            self.cala_trunks = nn.ModuleDict({})
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
        if isinstance(target, CalaLayer):
            target.update_layer(adapter_name, rank, peft_config)
        elif isinstance(target, nn.Conv2d):
            layer = CalaLayer(target, adapter_name, rank, peft_config)
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

    def _layers(self, side: str) -> list[CalaLayer]:
        return [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, CalaLayer) and name.startswith(f"{side}.")
        ]

    def gates(self, side: str, condition: torch.Tensor) -> list[torch.Tensor]:
        """The weights of the components of each of the side's layers, (batch, rank).

        Args:
            side: which part of the model, such as "encoder".
            condition: (batch, C) float32.

        Raises:
            InvalidInputError: there is no such side, or the conditions have another shape.
        """
        name = self.active_adapters[0]
        trunks: Any = self.cala_trunks[name]
        if side not in trunks:
            raise InvalidInputError("side", f"one of {', '.join(trunks)}", side)
        features = trunks[side][0].in_features
        if condition.ndim != 2 or condition.shape[1] != features:
            raise InvalidInputError("condition", f"(batch, {features})", tuple(condition.shape))
        hidden = trunks[side](condition)
        return [
            layer.components.gates(hidden) for layer in self._layers(side) if layer.components is not None
        ]

    def fuse(self) -> None:
        """Make all layers ready for quick inference; see `CalaLayer.fuse`."""
        for module in self.model.modules():
            if isinstance(module, CalaLayer):
                module.fuse()

    @contextmanager
    def conditioned(self, side: str, condition: torch.Tensor) -> Iterator[None]:
        """Inside, image i of a batch meets the side's layers as condition[i] asks; outside, the base codec.

        Args:
            side: which part of the model, such as "encoder".
            condition: (batch, C) float32.
        """
        layers = [layer for layer in self._layers(side) if layer.components is not None]
        for layer, gates in zip(layers, self.gates(side, condition), strict=True):
            layer.gates = gates
        try:
            yield
        finally:
            for layer in layers:
                layer.gates = None
