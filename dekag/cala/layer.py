"""One adapted convolution: W + s B diag(g) A, with a gate g for each image of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from dekag.cala.config import CalaConfig, GateKind


class Components(nn.Module):
    """The low-rank components of one layer and the head of its gate.

    Component i maps the input's channels to one map with row i of A, adds the constant `offset[i]`, is
    weighted with g_i, and goes to the output's channels by column i of B. B starts at zero: an untrained
    adapter changes nothing.

    Args:
        base: the convolution that is adapted.
        rank: number of components.
        config: everything else.
    """

    def __init__(self, base: nn.Conv2d, rank: int, config: CalaConfig) -> None:
        super().__init__()
        height, width = base.kernel_size
        self.gate_kind: GateKind = config.gate
        self.scale = config.scale
        self.size = (height, width)
        sizes = {"full": (height, width), "pointwise": (1, 1), "separable": (1, 1)}[config.kernel]
        self.down = nn.Parameter(torch.empty(rank, base.in_channels, *sizes))
        self.up = nn.Parameter(torch.zeros(base.out_channels, rank))
        self.taps = (
            nn.Parameter(torch.empty(rank, 1, height, width)) if config.kernel == "separable" else None
        )
        self.offset = nn.Parameter(torch.zeros(rank)) if config.gated_bias else None
        self.head = nn.Linear(config.gate_width, rank)
        self.reset()

    def reset(self) -> None:
        """Draw new factors."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if self.taps is not None:
            nn.init.normal_(self.taps, std=1 / math.sqrt(self.taps[0].numel()))
        nn.init.zeros_(self.up)
        if self.offset is not None:
            nn.init.zeros_(self.offset)
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.zeros_(self.head.bias)

    def gates(self, hidden: torch.Tensor) -> torch.Tensor:
        """The weights g (batch, rank) from what the trunk made of the conditions (batch, gate_width)."""
        numbers: torch.Tensor = self.head(hidden)
        if self.gate_kind == "sigmoid":
            return 2 * torch.sigmoid(numbers)
        if self.gate_kind == "softplus":
            return F.softplus(numbers) / math.log(2)
        if self.gate_kind == "softmax":
            return numbers.shape[-1] * torch.softmax(numbers, dim=-1)
        return 1 + numbers

    def kernels(self) -> torch.Tensor:
        """A as kernels: (rank, in, height, width)."""
        if self.taps is not None:
            return self.down * self.taps
        if self.down.shape[2:] == self.size:
            return self.down
        height, width = self.size
        return F.pad(self.down, (width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2))

    def forward(self, x: torch.Tensor, gates: torch.Tensor, base: nn.Conv2d) -> torch.Tensor:
        """What is added to the base layer's output for inputs x (batch, in, h, w) and gates (batch, rank)."""
        if self.taps is None:
            maps = _convolve(x, self.kernels(), self.offset, base)
        else:  # the same as with kernels(), in a third of the time
            maps = _convolve(F.conv2d(x, self.down), self.taps, self.offset, base, groups=len(self.taps))
        weighted = maps * (self.scale * gates)[:, :, None, None].to(maps.dtype)
        return F.conv2d(weighted, self.up[:, :, None, None])


class CalaLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A convolution with the components of one or more adapters, of which one is active.

    `CalaModel.conditioned` sets the gates; without them the layer is its base layer.
    """

    adapter_layer_names = ("cala_components",)

    def __init__(self, base_layer: nn.Conv2d, adapter_name: str, rank: int, config: CalaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.cala_components = nn.ModuleDict({})
        self.gates: torch.Tensor | None = None
        self._fused: tuple[torch.Tensor, torch.Tensor] | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = adapter_name
        self.update_layer(adapter_name, rank, config)

    def update_layer(self, adapter_name: str, rank: int, config: CalaConfig) -> None:
        """Add another adapter's components."""
        self.cala_components[adapter_name] = Components(self.base_layer, rank, config)
        self._peft._move_adapter_to_device_of_base_layer(adapter_name)
        self._peft.set_adapter(self._peft.active_adapters, inference_mode=config.inference_mode)

    @property
    def _peft(self) -> Any:
        """This layer, for what PEFT's untyped base class adds to it."""
        return self

    @property
    def components(self) -> Components | None:
        """The active adapter's; None if adapters are switched off."""
        names: list[str] = self._peft.active_adapters
        if self._disable_adapters or not names or names[0] not in self.cala_components:
            return None
        found = self.cala_components[names[0]]
        return found if isinstance(found, Components) else None

    @torch.no_grad()
    def fuse(self) -> None:
        """For inference: one convolution for base layer and A, as calls cost more than products here.

        Weights that change afterwards, or another active adapter, have no effect until it is called again.
        """
        base, components = self.base_layer, self.components
        if components is None:
            raise RuntimeError("there is no active adapter to fuse")
        bias = base.weight.new_zeros(base.out_channels) if base.bias is None else base.bias
        offset = bias.new_zeros(components.up.shape[1]) if components.offset is None else components.offset
        self._fused = torch.cat([base.weight, components.kernels()]), torch.cat([bias, offset])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w)."""
        components, base = self.components, self.base_layer
        if components is None or self.gates is None:
            return _convolve(x, base.weight, base.bias, base)
        if self._fused is None:
            return _convolve(x, base.weight, base.bias, base) + components(x, self.gates, base)
        both = _convolve(x, *self._fused, base)
        result, maps = both.split([base.out_channels, both.shape[1] - base.out_channels], dim=1)
        per_image = components.up * (components.scale * self.gates)[:, None, :]
        flat: torch.Tensor = torch.baddbmm(result.flatten(2), per_image, maps.flatten(2))
        return flat.view(result.shape)


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Conv2d, groups: int = 1
) -> torch.Tensor:
    """Convolution with the stride, padding and dilation of `like`."""
    return F.conv2d(x, weight, bias, like.stride, like.padding, like.dilation, groups)
