"""Quantisation of complex symbols to a square QAM constellation, and power normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def quantize_to_qam(symbols: torch.Tensor, bits_per_symbol: int) -> torch.Tensor:
    """The nearest point of the unit-mean-power square QAM of order 2**bits_per_symbol, elementwise.

    Args:
        symbols: complex64, any shape.
        bits_per_symbol: even, 2..8.
    """
    levels = 2 ** (bits_per_symbol // 2)
    # mean power of a square QAM with points at the odd integers is 2 (levels^2 - 1) / 3
    scale = (2 * (levels**2 - 1) / 3) ** 0.5
    parts = torch.view_as_real(symbols) * scale
    index = torch.round((parts + levels - 1) / 2).clamp(0, levels - 1)
    return torch.view_as_complex((2 * index - (levels - 1)) / scale)


def to_symbols(maps: torch.Tensor) -> torch.Tensor:
    """Maps (batch, 2n, h, w) -> complex symbols (batch, n h w), channel by channel."""
    batch, channels, height, width = maps.shape
    pairs = maps.reshape(batch, channels // 2, 2, height * width).transpose(2, 3)
    return torch.view_as_complex(pairs.contiguous()).flatten(1)


def to_maps(symbols: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `to_symbols`: symbols (batch, n h w) -> maps (batch, 2n, h, w)."""
    pairs = torch.view_as_real(symbols.contiguous()).view(len(symbols), -1, height * width, 2)
    return pairs.transpose(2, 3).reshape(len(symbols), -1, height, width)


def unit_power(symbols: torch.Tensor) -> torch.Tensor:
    """Scale each row of `symbols` (batch, K) to mean power 1."""
    power = torch.view_as_real(symbols).square().sum(-1).mean(-1, keepdim=True)
    return symbols * power.clamp_min(1e-12).rsqrt()


def padded_unit_power(symbols: torch.Tensor, channel_uses: Sequence[int]) -> torch.Tensor:
    """Row i of `symbols` (batch, K), scaled to mean power 1 over channel_uses[i] symbols and zero after them.

    A row's bits do not depend on the other rows or on K: a running sum only adds zeros after the last symbol,
    while a plain sum would split its work by K.
    """
    counts = torch.tensor(channel_uses, device=symbols.device)[:, None]
    sent = torch.where(torch.arange(symbols.shape[1], device=symbols.device) < counts, symbols, 0)
    power = torch.view_as_real(sent).square().sum(-1).cumsum(-1)[:, -1:] / counts
    return sent * power.clamp_min(1e-12).rsqrt()
