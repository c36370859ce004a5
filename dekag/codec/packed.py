"""Convolutions whose weights stay as oneDNN wants them, for codecs that only run.

Torch hands oneDNN a weight in its own layout, and oneDNN rearranges it in each call. For the small maps of
a codec that takes about as long as the convolution. Here it is rearranged once, and features keep their
channels together between layers. Torch's own compiler calls the same operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dekag.codec.batch_invariance import Conv2d

_SIDE = 8
"""Of the maps that the layout is chosen for. For others, weights are perhaps rearranged in each call."""


class PackedConv2d(nn.Module):
    """A convolution for inference, equal to another one but for rounding; see `packable`.

    It has no parameters: casts and optimisers do not reach it. Copies and pickles pack their weights again.

    Example:
        >>> import torch
        >>> from dekag.codec.batch_invariance import Conv2d
        >>> from dekag.codec.packed import PackedConv2d, packable
        >>> plain = Conv2d(4, 6, 3, padding=1)
        >>> with torch.inference_mode():
        ...     images = torch.randn(2, 4, 8, 8)
        ...     packed = PackedConv2d(plain) if packable(plain) else plain
        ...     bool((packed(images) - plain(images)).abs().max() < 1e-4)
        True

    Args:
        conv: is copied: later changes have no effect here.
        weight, bias: instead of its own.
        groups: of `weight`, instead of its own.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        if weight is None:
            weight, bias = conv.weight, conv.bias
        self._padding = [int(each) for each in conv.padding]
        self._stride, self._dilation = list(conv.stride), list(conv.dilation)
        self._groups = conv.groups if groups is None else groups
        self.bias = None if bias is None else bias.detach().clone()
        self.weight = self._rearranged(weight.detach())

    def _rearranged(self, weight: torch.Tensor) -> torch.Tensor:
        rearranged: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self._padding, self._stride, self._dilation, self._groups,
            [1, weight.shape[1] * self._groups, _SIDE, _SIDE],
        )  # fmt: skip
        return rearranged

    def __getstate__(self) -> dict[str, Any]:
        """Its attributes, with the weight in torch's layout, as that of oneDNN cannot be copied."""
        return {**self.__dict__, "weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take these attributes, and pack the weight again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weight = self._rearranged(self.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The convolution of images (batch, in, h, w), with their channels together."""
        if images.dtype != torch.float32 or not images.is_cpu or images.requires_grad:
            return self._plain(images)
        together = images.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            together, self.weight, self.bias, self._padding, self._stride, self._dilation, self._groups,
            "none", [], "",
        )  # fmt: skip
        return result

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        """The same for images that oneDNN's operator does not take: of other types, or with gradients."""
        weight = self.weight.to_dense().to(images)
        bias = None if self.bias is None else self.bias.to(images)
        return F.conv2d(images, weight, bias, self._stride, self._padding, self._dilation, self._groups)


def packable(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be packed here: on the CPU, in float32, with oneDNN's operators.

    Classes of others may compute something else, and stay as they are.
    """
    operators = torch.ops.mkldnn
    return (
        type(conv) in (nn.Conv2d, Conv2d)
        and torch.backends.mkldnn.is_available()
        and hasattr(operators, "_convolution_pointwise")
        and hasattr(operators, "_reorder_convolution_weight")
        and conv.weight.is_cpu
        and conv.weight.dtype == torch.float32
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
    )


def pack(module: nn.Module, apart: type[nn.Module] | tuple[type[nn.Module], ...] = ()) -> None:
    """Replace the convolutions of a codec by packed ones, where they can be.

    Args:
        module: is modified; it cannot be trained or saved afterwards, and keeps the weights of now.
        apart: classes whose convolutions stay as they are.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and not isinstance(child, apart) and packable(child):
            setattr(module, name, PackedConv2d(child))
        elif not isinstance(child, apart):
            pack(child, apart)
