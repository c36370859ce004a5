"""Batch invariance: results of a row with the same bits, whatever the other rows of its batch.

A row depends on its batch if torch uses different kernels for one row and for several, which `Conv2d`
prevents where no gradient is recorded, or if a kernel splits its work by the size of the batch. No library
documents this of its kernels, so `safe_batch` tests it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Conv2d(nn.Conv2d):
    """A convolution that uses oneDNN for every batch size, on the CPU and without gradients.

    Torch itself uses another kernel for a single image of up to 20480 numbers, which rounds differently.
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
    """The largest batch, 1 to `rows`, for which no row's bits depend on the rest of the batch.

    Tries every size. The order of operations in a kernel depends on shapes, never on values, so that a test
    with random numbers holds for all values.

    Args:
        rows: number of rows for the test.
        work: returns the results for a slice of the rows, one for each.
    """
    alone = torch.cat([work(slice(row, row + 1)) for row in range(rows)])
    for size in range(2, rows + 1):
        if not torch.equal(work(slice(rows - size, rows)), alone[rows - size :]):
            return size - 1
    return rows
