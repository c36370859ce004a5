"""Cross-attention of a codec's features to the states of a prompt: the prompt as side information.

The receiver knows what it asked for, so the link need not say it again (Wyner and Ziv 1976 call this side
information at the decoder). States are what the edge's text encoder makes of the prompt; a row of zeros says
nothing, and a prompt of zeros alone leaves the features as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class TextAttention(nn.Module):
    """Maps that each position of a feature map reads from a prompt.

    forward: features (batch, channels, h, w) and states (batch, tokens, text_width) -> (batch, inner, h, w),
    zero where a prompt says nothing.

    Example:
        >>> import torch
        >>> from dekag.codec.text_attention import TextAttention
        >>> attention = TextAttention(channels=32, text_width=128, inner=16)
        >>> states = torch.cat([torch.randn(1, 7, 128), torch.zeros(1, 7, 128)])  # the second is withheld
        >>> maps = attention(torch.randn(2, 32, 8, 8), states)
        >>> maps.shape, bool(maps[1].any())
        (torch.Size([2, 16, 8, 8]), False)

    Args:
        channels: of the features.
        text_width: numbers of each state.
        inner: width of queries, keys and values.
        heads: number of attention heads; must divide `inner`.
    """

    def __init__(self, channels: int, text_width: int, inner: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, inner, bias=False)
        self.key = nn.Linear(text_width, inner, bias=False)
        self.value = nn.Linear(text_width, inner, bias=False)

    def forward(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What each position reads."""
        batch, _, height, width = features.shape
        positions = F.layer_norm(features.flatten(2).mT, features.shape[1:2])
        said = text.abs().amax(dim=2) > 0  # (batch, tokens)
        some = said.any(dim=1)
        # attention to nothing at all would divide by zero: those rows attend to anything, and count for zero
        mask = (said | ~some[:, None])[:, None, None, :]
        query, key, value = (
            values.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for values in (self.query(positions), self.key(text), self.value(text))
        )
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        maps = read.transpose(1, 2).flatten(2).mT * some[:, None, None].to(read.dtype)
        return maps.reshape(batch, -1, height, width)
