"""One adapted convolution: W + s B diag(g) A, with a gate g for each image of the batch.

Some rows of A may be maps that are read from the prompt instead of convolutions of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from dekag.cala.config import CalaConfig, GateKind
from dekag.codec.packed import PackedConv2d, packable
from dekag.codec.text_attention import TextAttention
from dekag.errors import InvalidInputError


class LowRankBranch(nn.Module):
    """The low-rank branch of one layer, a sum of gated components, and the head of its gate.

    Component i maps the input's channels to one map with row i of A, adds the constant `offset[i]`, is
    weighted with g_i, and goes to the output's channels by column i of B. With a text rank, so many further
    components take maps that are read from the prompt. B starts at zero: an untrained adapter changes
    nothing.

    Args:
        base: the adapted convolution.
        rank: number of components.
        config: all other settings.
        text_rank: number of further components that read the prompt.

    Raises:
        InvalidInputError: a layer that is to read the prompt changes the size of its maps.
    """

    def __init__(self, base: nn.Conv2d, rank: int, config: CalaConfig, text_rank: int = 0) -> None:
        super().__init__()
        height, width = base.kernel_size
        self.gate_kind: GateKind = config.gate
        self.scale, self.rank = config.scale, rank
        self.size = (height, width)
        sizes = {"full": (height, width), "pointwise": (1, 1), "separable": (1, 1)}[config.kernel]
        self.down = nn.Parameter(torch.empty(rank, base.in_channels, *sizes))
        self.up = nn.Parameter(torch.zeros(base.out_channels, rank + text_rank))
        self.taps = (
            nn.Parameter(torch.empty(rank, 1, height, width)) if config.kernel == "separable" else None
        )
        self.offset = nn.Parameter(torch.zeros(rank)) if config.gated_bias else None
        if text_rank and (base.stride != (1, 1) or base.padding != (height // 2, width // 2)):
            raise InvalidInputError("text_modules", "layers that keep the size of their maps", str(base))
        self.text = TextAttention(base.in_channels, config.text_width, text_rank) if text_rank else None
        self.head = nn.Linear(config.gate_width, rank + text_rank)
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
        """The weights g of the components from the outputs of the gate's head, both (batch, components)."""
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

    def packed(self, base: nn.Conv2d) -> Packed:
        """Base layer and branch with packed weights; for separable kernels alone."""
        if self.taps is None:
            raise ValueError("kernels are not separable")
        return Packed(
            PackedConv2d(base),
            self.down[:, :, 0, 0].T.contiguous(),
            PackedConv2d(base, self.taps, self.offset, groups=self.rank),
            (self.scale * self.up[:, : self.rank]).T.contiguous(),
        )

    def forward(
        self, x: torch.Tensor, gates: torch.Tensor, base: nn.Conv2d, text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The branch's output, added to the base layer's.

        Args:
            x: (batch, in, h, w).
            gates: (batch, components).
            base: the adapted convolution.
            text: states of the prompts, (batch, tokens, text_width); None if there are none.
        """
        if self.taps is None:
            maps = _convolve(x, self.kernels(), self.offset, base)
        else:  # the same as with kernels(), in a third of the time
            maps = _convolve(F.conv2d(x, self.down), self.taps, self.offset, base, groups=len(self.taps))
        output = self.lifted(maps, gates[:, : self.rank], self.up[:, : self.rank])
        read = self.read(x, gates, text)
        return output if read is None else output + read

    def read(self, x: torch.Tensor, gates: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor | None:
        """The output of the components that read the prompt; None if there are none. See `forward`."""
        if self.text is None or text is None:
            return None
        maps = self.text(x, text).to(x.dtype)
        return self.lifted(maps, gates[:, self.rank :], self.up[:, self.rank :])

    def lifted(self, maps: torch.Tensor, gates: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Maps (batch, n, h, w), weighted with gates (batch, n) and brought to the output's channels."""
        weighted = maps * (self.scale * gates)[:, :, None, None].to(maps.dtype)
        return F.conv2d(weighted, up[:, :, None, None])


@dataclass(frozen=True)
class Gating:
    """The gate state of a layer.

    Attributes:
        gates: weights of the components (batch, components); None for the base layer alone.
        text: states of the prompts, (batch, tokens, text_width); None if there are none.
    """

    gates: torch.Tensor | None = None
    text: torch.Tensor | None = None


@dataclass(frozen=True)
class Stacked:
    """Base layer and A as one convolution, which is faster than two.

    Attributes:
        weight, bias: (out + rank, in, height, width), (out + rank,).
        up: s B of the components that are convolutions, (out, rank).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    up: torch.Tensor

    def forward(self, x: torch.Tensor, gates: torch.Tensor, base: nn.Conv2d) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w) for gates (batch, rank)."""
        outputs, rank = self.up.shape
        both = _convolve(x, self.weight, self.bias, base)
        plain, maps = both.flatten(2).split([outputs, rank], dim=1)
        adapted = torch.baddbmm(plain, self.up * gates[:, None, :], maps)
        return adapted.view(len(x), outputs, *both.shape[2:])


@dataclass(frozen=True)
class Packed:
    """Base layer and A one after the other, with packed weights.

    A of separable kernels takes a fifth of the products that it takes as part of a convolution.

    Attributes:
        base: the base layer.
        down: of A, (in, rank).
        taps: of A, a kernel for each component, with the offset (rank,).
        up: s B of the components that are convolutions, (rank, out).
    """

    base: PackedConv2d
    down: torch.Tensor
    taps: PackedConv2d
    up: torch.Tensor

    def forward(self, x: torch.Tensor, gates: torch.Tensor, _: nn.Conv2d) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w) for gates (batch, rank)."""
        together = x.contiguous(memory_format=torch.channels_last)
        plain = self.base(together)
        maps = self.taps((together.permute(0, 2, 3, 1) @ self.down).permute(0, 3, 1, 2))
        outputs, rank = plain.shape[1], maps.shape[1]
        weighted = maps.permute(0, 2, 3, 1) * gates[:, None, None, :]
        rows = plain.permute(0, 2, 3, 1).reshape(-1, outputs)
        # in place: `plain` is used nowhere else
        adapted: torch.Tensor = rows.addmm_(weighted.reshape(-1, rank), self.up)
        return adapted.view(len(x), *plain.shape[2:], outputs).permute(0, 3, 1, 2)


class CalaLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A convolution with the low-rank branches of one or more adapters, of which one is active.

    `CalaModel.with_condition` sets the gates; without them the layer behaves like its base layer.
    """

    adapter_layer_names = ("cala_components",)

    def __init__(
        self, base_layer: nn.Conv2d, adapter_name: str, rank: int, config: CalaConfig, text_rank: int = 0
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.cala_components = nn.ModuleDict({})
        self._state = [Gating()]  # in a list, as assigning to attributes of a module is slow
        self._fused: Stacked | Packed | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter: str | list[str] = adapter_name
        self.update_layer(adapter_name, rank, config, text_rank)

    def update_layer(self, adapter_name: str, rank: int, config: CalaConfig, text_rank: int = 0) -> None:
        """Add the branch of another adapter."""
        self.cala_components[adapter_name] = LowRankBranch(self.base_layer, rank, config, text_rank)
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
        """Prepare for fast inference: base layer and branch are packed, or become one convolution.

        Later changes of weights or of the active adapter have no effect until this is called again.
        """
        base, branch = self.base_layer, self.branch
        if branch is None:
            raise RuntimeError("there is no active adapter to fuse")
        if base.groups != 1:
            return
        if branch.taps is not None and packable(base):
            self._fused = branch.packed(base)
            return
        zeros, rank = base.weight.new_zeros, branch.rank
        bias = zeros(base.out_channels) if base.bias is None else base.bias
        offset = zeros(rank) if branch.offset is None else branch.offset
        self._fused = Stacked(
            weight=torch.cat([base.weight, branch.kernels()]),
            bias=torch.cat([bias, offset]),
            up=branch.scale * branch.up[:, :rank],
        )

    def set_gating(self, gating: Gating) -> None:
        """Set the gate state; `Gating()` selects the base layer alone."""
        self._state[0] = gating

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapted convolution of x (batch, in, h, w)."""
        base, gates, text = self.base_layer, self._state[0].gates, self._state[0].text
        branch = None if gates is None else self.branch
        if branch is None or gates is None:
            return _convolve(x, base.weight, base.bias, base)
        if self._fused is None:
            result: torch.Tensor = _convolve(x, base.weight, base.bias, base) + branch(x, gates, base, text)
            return result
        result = self._fused.forward(x, gates[:, : branch.rank], base)
        read = branch.read(x, gates, text)
        return result if read is None else result + read


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, like: nn.Conv2d, groups: int = 1
) -> torch.Tensor:
    """Convolution with stride, padding and dilation of `like`; calls its own method if the groups match."""
    if groups == like.groups:
        result: torch.Tensor = like._conv_forward(x, weight, bias)
        return result
    return F.conv2d(x, weight, bias, like.stride, like.padding, like.dilation, groups)
