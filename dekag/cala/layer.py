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

    Component i maps the input's channels to one map with row i of A, adds the constant `offset[i]`, is weighted
    with g_i, and goes to the output's channels by column i of B. B starts at zero: an untrained adapter
    changes nothing.

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
        self.taps = nn.Parameter(torch.empty(rank, 1, height, width)) if config.kernel == "separable" else None
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
        numbers = self.head(hidden)
        if self.gate_kind == "sigmoid":
            return 2 * torch.sigmoid(numbers)
        if self.gate_kind == "softplus":
            return F.softplus(numbers) / math.log(2)
        if self.gate_kind == "softmax":
            return numbers.shape[-1] * torch.softmax(numbers, dim=-1)
        linear: torch.Tensor = 1 + numbers
        return linear

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
        geometry = base.stride, base.padding, base.dilation
        if self.taps is None:
            maps = F.conv2d(x, self.kernels(), self.offset, *geometry)
        else:  # the same as with kernels(), in a third of the time
            maps = F.conv2d(F.conv2d(x, self.down), self.taps, self.offset, *geometry, groups=len(self.taps))
        weighted = maps * (self.scale * gates)[:, :, None, None].to(maps.dtype)
        return F.conv2d(weighted, self.up[:, :, None, None])


class CalaLayer(nn.Module, BaseTunerLayer):
    """A convolution with the components of one or more adapters, of which one is active.

    `CalaModel.conditioned` sets the gates; without them the layer is its base layer.
    """

    adapter_layer_names = ("cala_components",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, rank: int, config: CalaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.cala_components = nn.ModuleDict({})
        self.gates: torch.Tensor | None = None
        self._fused: tuple[torch.Tensor, torch.Tensor] | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, rank, config)

    def update_layer(self, adapter_name: str, rank: int, config: CalaConfig) -> None:
        """Add another adapter's components."""
        base = self.get_base_layer()
        self.cala_components[adapter_name] = Components(base, rank, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def components(self) -> Components | None:
        """The active adapter's."""
        name = self.active_adapters[0] if self.active_adapters else ""
        if self.disable_adapters or name not in self.cala_components:
            return None
        found: Components = self.cala_components[name]
        return found

    @torch.no_grad()
    def fuse(self) -> None:
        """For inference: one convolution for base layer and A, as calls cost more than products here.

        Weights that change afterwards, or another active adapter, have no effect until it is called again.
        """
        base, components = self.get_base_layer(), self.components
        if components is None:
            raise RuntimeError("there is no active adapter to fuse")
        rank = len(components.up[0])
        bias = base.weight.new_zeros(base.out_channels) if base.bias is None else base.bias
        offset = bias.new_zeros(rank) if components.offset is None else components.offset
        self._fused = torch.cat([base.weight, components.kernels()]), torch.cat([bias, offset])

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w)."""
        components = self.components
        if components is None or self.gates is None:
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        base = self.get_base_layer()
        if self._fused is None:
            result: torch.Tensor = base(x)
            return result + components(x, self.gates, base)
        both = F.conv2d(x, *self._fused, base.stride, base.padding, base.dilation)
        result, maps = both.split([base.out_channels, both.shape[1] - base.out_channels], dim=1)
        per_image = components.up * (components.scale * self.gates)[:, None, :]
        return torch.baddbmm(result.flatten(2), per_image, maps.flatten(2)).view(result.shape)
