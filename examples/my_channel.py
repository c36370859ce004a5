"""A channel of one's own: Nakagami fading, each block by itself.

dekag --plugin examples/my_channel.py:Nakagami demo --fading nakagami
"""

from __future__ import annotations

import math

import torch

from dekag.link import BLOCKS, Channel, LinkConditions

M = 3  # of Nakagami's m: 1 is Rayleigh, more fades less


class Nakagami(Channel):
    """Powers are gamma distributed with mean 1, phases are uniform."""

    name = "nakagami"

    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        """One gain for each of the 8 blocks."""
        powers = -torch.rand(M, BLOCKS, generator=generator).clamp_min(1e-12).log().mean(dim=0)
        return torch.polar(powers.sqrt(), 2 * math.pi * torch.rand(BLOCKS, generator=generator))

    def los_power_fraction(self, conditions: LinkConditions) -> float:
        """That of the Rician fading whose power varies as much: the adapters know that one."""
        return math.sqrt(1 - 1 / M)

    def tau_rms_s(self, conditions: LinkConditions) -> float:
        """So long that blocks differ."""
        return 1e-5
