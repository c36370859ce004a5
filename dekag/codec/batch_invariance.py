"""Rows of a batch that come out with the same bits as alone: what a batch of strangers' requests must keep.

A row depends on the batch that it rides in where torch takes another kernel for one row than for several,
which `Conv2d` prevents wherever no gradient is recorded, and where a kernel splits its work by the size of
the batch. No library says that its kernels do not, so `safe_batch` tries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Conv2d(nn.Conv2d):
    """A convolution that is oneDNN's, whatever the size of the batch, without gradients on the CPU.

    torch has a kernel of its own for a single image of up to 20480 numbers, which rounds differently.
    """

    def _conv_forward(
        self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        one_kernel = (
            not torch.is_grad_enabled()
            and images.is_cpu
            and images.dtype == weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )
        padding = self.padding
        if isinstance(padding, str) or not one_kernel:
            plain: torch.Tensor = super()._conv_forward(images, weight, bias)
            return plain
        return torch.mkldnn_convolution(
            images, weight, bias, padding, self.stride, self.dilation, self.groups
        )


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
