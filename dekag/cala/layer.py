"""One adapted convolution: W + s B diag(g) A, with a gate g for each image of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from dekag.cala.config import CalaConfig, GateKind


class LowRankBranch(nn.Module):
    """The low-rank branch of one layer, a sum of gated components, and the head of its gate.

    Component i maps the input's channels to one map with row i of A, adds the constant `offset[i]`, is
    weighted with g_i, and goes to the output's channels by column i of B. B starts at zero: an untrained
    adapter changes nothing.

    Args:
        base: the adapted convolution.
        rank: number of components.
        config: all other settings.
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
        """Initialise the factors."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if self.taps is not None:
            nn.init.normal_(self.taps, std=1 / math.sqrt(self.taps[0].numel()))
        nn.init.zeros_(self.up)
        if self.offset is not None:
            nn.init.zeros_(self.offset)
        nn.init.normal_(self.head.weight, std=0.1)
        nn.init.zeros_(self.head.bias)

    def weights(self, numbers: torch.Tensor) -> torch.Tensor:
        """The weights g of the components from the outputs of the gate's head, both (batch, rank)."""
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
        """The branch's output, added to the base layer's, for x (batch, in, h, w) and gates (batch, rank)."""
        if self.taps is None:
            maps = _convolve(x, self.kernels(), self.offset, base)
        else:  # the same as with kernels(), in a third of the time
            maps = _convolve(F.conv2d(x, self.down), self.taps, self.offset, base, groups=len(self.taps))
        weighted = maps * (self.scale * gates)[:, :, None, None].to(maps.dtype)
        return F.conv2d(weighted, self.up[:, :, None, None])


@dataclass(frozen=True)
class Gating:
    """The gate state of a layer.

    Attributes:
        gates: weights of the components (batch, rank); None for the base layer alone.
        merged: weight and bias of the merged layer, for a batch of one image.
    """

    gates: torch.Tensor | None = None
    merged: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True)
class Fused:
    """Base layer and branch, flattened so that merging takes two products.

    Attributes:
        weight, bias: of the base layer: (out, in * height * width), (out,).
        up: s B, (out, rank).
        down, offset: A, (rank, in * height * width), and (rank,).
        shape: of the weight as a convolution's.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    offset: torch.Tensor
    shape: torch.Size

    def merged(self, gates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias for gates (1, rank)."""
        up = self.up * gates
        weight = torch.addmm(self.weight, up, self.down).view(self.shape)
        return weight, torch.addmv(self.bias, up, self.offset)


class CalaLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A convolution with the low-rank branches of one or more adapters, of which one is active.

    `CalaModel.with_condition` sets the gates; without them the layer behaves like its base layer.
    """

    adapter_layer_names = ("cala_components",)

    def __init__(self, base_layer: nn.Conv2d, adapter_name: str, rank: int, config: CalaConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.cala_components = nn.ModuleDict({})
        self._state = [Gating()]  # in a list, as assigning to attributes of a module is slow
        self._fused: Fused | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = adapter_name
        self.update_layer(adapter_name, rank, config)

    def update_layer(self, adapter_name: str, rank: int, config: CalaConfig) -> None:
        """Add the branch of another adapter."""
        self.cala_components[adapter_name] = LowRankBranch(self.base_layer, rank, config)
        self._peft._move_adapter_to_device_of_base_layer(adapter_name)
        self._peft.set_adapter(self._peft.active_adapters, inference_mode=config.inference_mode)

    @property
    def _peft(self) -> Any:
        """This layer, typed as Any for the methods of PEFT's untyped base class."""
        return self

    @property
    def branch(self) -> LowRankBranch | None:
        """The branch of the active adapter; None if adapters are disabled."""
        names: list[str] = self._peft.active_adapters
        if self._disable_adapters or not names or names[0] not in self.cala_components:
            return None
        branch = self.cala_components[names[0]]
        return branch if isinstance(branch, LowRankBranch) else None

    @torch.no_grad()
    def fuse(self) -> None:
        """Prepare for fast inference: a batch of one image is convolved with its merged weight.

        Later changes of weights or of the active adapter have no effect until this is called again.
        """
        base, branch = self.base_layer, self.branch
        if branch is None:
            raise RuntimeError("there is no active adapter to fuse")
        offset = branch.offset
        self._fused = Fused(
            weight=base.weight.flatten(1),
            bias=base.weight.new_zeros(base.out_channels) if base.bias is None else base.bias,
            up=branch.scale * branch.up,
            down=branch.kernels().flatten(1),
            offset=base.weight.new_zeros(branch.up.shape[1]) if offset is None else offset,
            shape=base.weight.shape,
        )

    def gating(self, gates: torch.Tensor) -> Gating:
        """The gate state for these weights of the components, (batch, rank)."""
        if self._fused is None or len(gates) != 1:
            return Gating(gates)
        return Gating(gates, self._fused.merged(gates))

    def set_gating(self, gating: Gating) -> None:
        """Set the gate state; `Gating()` selects the base layer alone."""
        self._state[0] = gating

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w)."""
        base, gating = self.base_layer, self._state[0]
        if gating.merged is not None:
            return _convolve(x, *gating.merged, base)
        result = _convolve(x, base.weight, base.bias, base)
        branch = None if gating.gates is None else self.branch
        if branch is None or gating.gates is None:
            return result
        adapted: torch.Tensor = result + branch(x, gating.gates, base)
        return adapted


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Conv2d, groups: int = 1
) -> torch.Tensor:
    """Convolution with stride, padding and dilation of `like`; calls its own method if the groups match."""
    if groups == like.groups:
        result: torch.Tensor = like._conv_forward(x, weight, bias)
        return result
    return F.conv2d(x, weight, bias, like.stride, like.padding, like.dilation, groups)
