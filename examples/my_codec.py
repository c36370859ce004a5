"""A codec of one's own: linear both ways.

`LinearCodec().save_pretrained(folder)` makes the folder that a profile.json names as its codec.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch.nn import functional as F

from dekag.codec import LatentCodec, Modulation
from dekag.codec.batch_invariance import Conv2d
from dekag.codec.constellation import padded_unit_power


class LinearCodec(LatentCodec):
    """Mixes the numbers of each 2x2 pixels of the latent; symbols are not quantised."""

    name = "linear"

    @register_to_config
    def __init__(self, latent_channels: int = 4, symbol_channels: int = 8) -> None:
        super().__init__()
        self.encoder = Conv2d(4 * latent_channels, 2 * symbol_channels, 1)
        self.decoder = Conv2d(2 * symbol_channels, 4 * latent_channels, 1)

    def max_channel_uses(self, latent_shape: tuple[int, int, int]) -> int:
        """The most symbols that a latent of (channels, height, width) can be sent with."""
        return self.config.symbol_channels * latent_shape[1] * latent_shape[2] // 4

    def encode(
        self,
        latents: torch.Tensor,
        channel_uses: int | Sequence[int],
        *,
        modulation: Modulation | None = None,
    ) -> torch.Tensor:
        """Latents (batch, channels, h, w) -> symbols (batch, K)."""
        uses = [channel_uses] * len(latents) if isinstance(channel_uses, int) else channel_uses
        real, imaginary = self.encoder(F.pixel_unshuffle(latents, 2)).flatten(2).chunk(2, dim=1)
        return padded_unit_power(torch.complex(real, imaginary).flatten(1)[:, : max(uses)], uses)

    def decode(self, symbols: torch.Tensor, latent_shape: tuple[int, int, int]) -> torch.Tensor:
        """Symbols (batch, K) -> latents (batch, channels, h, w)."""
        _, height, width = latent_shape
        symbols = F.pad(symbols, (0, self.max_channel_uses(latent_shape) - symbols.shape[1]))
        values = torch.cat([symbols.real, symbols.imag], dim=1).view(
            len(symbols), -1, height // 2, width // 2
        )
        return F.pixel_shuffle(self.decoder(values), 2)
