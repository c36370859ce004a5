"""Where a training runs: on the CPU, bit for bit the same each time, or on a CUDA device, much quicker."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

CPU = torch.device("cpu")


def multiplying(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in bfloat16, if `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
