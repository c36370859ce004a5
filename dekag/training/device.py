"""Training devices: the CPU, where runs are reproducible bit by bit, or a much faster CUDA device."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

CPU = torch.device("cpu")


def multiplying(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Context that runs matrix products and convolutions in bfloat16 if `bf16` is true."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
