"""Rows of a batch that come out with the same bits as alone: what a batch of strangers' requests must keep.

A row depends on the batch that it rides in where torch takes another kernel for one row than for several,
which `same_kernels` prevents, and where a kernel splits its work by the size of the batch. No library says
that its kernels do not, so `safe_batch` tries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# What a gate does with (batch, n) numbers: vectorised kernels round the last few of a tensor differently.
_SMALL = (F.linear, F.gelu, F.softplus, F.softmax, torch.sigmoid, torch.softmax)
_PRODUCTS = (torch.bmm, torch.baddbmm)


class same_kernels(TorchFunctionMode):  # noqa: N801 - reads as what it does: `with same_kernels():`
    """Inside, what is done with a row is the same whatever the size of the batch.

    Convolutions of float32 images on the CPU are oneDNN's; torch leaves single images of up to 20480 numbers
    to a kernel of its own. The small matrices of gates, and products of matrices, go row by row. Holds for
    this thread alone.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `function` so."""
        if function is F.conv2d and torch.backends.mkldnn.is_available():
            return _convolve(*args, **(kwargs or {}))
        if function in _SMALL and args[0].ndim == 2 and len(args[0]) > 1:
            return torch.cat([function(row, *args[1:], **(kwargs or {})) for row in args[0].split(1)])
        if function in _PRODUCTS and len(args[0]) > 1:
            rows = zip(*(matrices.split(1) for matrices in args), strict=True)
            return torch.cat([function(*each, **(kwargs or {})) for each in rows])
        return function(*args, **(kwargs or {}))


def _convolve(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    plain = images.ndim == 4 and images.dtype == torch.float32 and images.device.type == "cpu"
    if not plain or isinstance(padding, str):
        return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
    out: torch.Tensor = torch.mkldnn_convolution(
        images, weight, bias, _pair(padding), _pair(stride), _pair(dilation), groups
    )
    return out


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def safe_batch(rows: int, work: Callable[[slice], torch.Tensor]) -> int:
    """The largest batch, 1 to `rows`, up to which no row's bits depend on who else is in it.

    Tries every size. What a kernel does in which order depends on shapes, never on values, so that rows of
    random numbers tell for all others of their shape.

    Args:
        rows: how many there are to try with.
        work: results for the rows in a slice of them, one for each.
    """
    alone = torch.cat([work(slice(row, row + 1)) for row in range(rows)])
    for size in range(2, rows + 1):
        if not torch.equal(work(slice(rows - size, rows)), alone[rows - size :]):
            return size - 1
    return rows
