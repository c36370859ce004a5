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
        """Calls `function`, or what is to be called in its place."""
        instead = _INSTEAD.get(function)
        if instead is None:
            return function(*args, **(kwargs or {}))
        return instead(function, *args, **(kwargs or {}))


def _convolve(
    function: Callable[..., torch.Tensor],
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    plain = images.ndim == 4 and images.dtype == torch.float32 and images.device.type == "cpu"
    if not plain or isinstance(padding, str) or not torch.backends.mkldnn.is_available():
        return function(images, weight, bias, stride, padding, dilation, groups)
    return torch.mkldnn_convolution(
        images, weight, bias, _pair(padding), _pair(stride), _pair(dilation), groups
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _small(
    function: Callable[..., torch.Tensor], numbers: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Row by row if `numbers` are (batch, n): vectorised kernels round the last of a tensor differently."""
    if numbers.ndim != 2 or len(numbers) < 2:
        return function(numbers, *args, **kwargs)
    return torch.cat([function(row, *args, **kwargs) for row in numbers.split(1)])


def _product(function: Callable[..., torch.Tensor], *matrices: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Row by row, of batches of matrices."""
    if len(matrices[0]) < 2:
        return function(*matrices, **kwargs)
    rows = zip(*(each.split(1) for each in matrices), strict=True)
    return torch.cat([function(*row, **kwargs) for row in rows])


_INSTEAD: Mapping[Callable[..., Any], Callable[..., torch.Tensor]] = {
    F.conv2d: _convolve,
    torch.bmm: _product,
    torch.baddbmm: _product,
    **dict.fromkeys((F.linear, F.gelu, F.softplus, F.softmax, torch.sigmoid, torch.softmax), _small),
}


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
