"""Many random channels at once, for training: statistically the same as `transmit`, an order quicker.

`transmit` draws each item by itself, so that a request's bits depend on its seed alone, and makes a Sionna
model for every delay spread. Training needs neither: here a batch's gains come from one batched Cholesky
factorisation and one draw. A test holds the two equal in distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS


@dataclass(frozen=True)
class RandomChannels:
    """One channel for each row of a batch.

    Attributes:
        gains: (B, J) complex64, as they are.
        believed: (B, J) complex64, as the receiver believes them to be.
        no: (B,) float32, noise power per channel use.
    """

    gains: torch.Tensor
    believed: torch.Tensor
    no: torch.Tensor


def complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Circular complex Gaussians of unit variance, complex64."""
    return torch.view_as_complex(torch.randn(*shape, 2, generator=generator) * math.sqrt(0.5))


def draw_channels(
    snr_db: torch.Tensor,
    direct: torch.Tensor,
    tau_rms_s: torch.Tensor,
    generator: torch.Generator,
    *,
    pilots: torch.Tensor | None = None,
    no_csi: torch.Tensor | None = None,
) -> RandomChannels:
    """Correlated block gains of mean power 1.

    Args:
        snr_db: (B,) mean SNR, dB.
        direct: (B,) share of the power on a direct path of phase 0: 1 is AWGN, 0 Rayleigh, else Rician.
        tau_rms_s: (B,) RMS delay spread of the scattered part, s.
        generator: of all draws.
        pilots: (B,) pilots of each block from which the gains are estimated by least squares; 0: gains known.
        no_csi: (B,) 1 where the receiver takes every gain to be 1.
    """
    centres = torch.arange(BLOCKS, dtype=torch.float64) * (BANDWIDTH_HZ / BLOCKS)
    apart = centres[:, None] - centres[None, :]
    correlation = 1 / (1 + 2j * math.pi * apart * tau_rms_s.double()[:, None, None])
    factor = torch.linalg.cholesky(correlation + 1e-9 * torch.eye(BLOCKS, dtype=torch.float64))
    independent = complex_normal((len(snr_db), BLOCKS, 1), generator)
    scattered = (factor.to(torch.complex64) @ independent)[:, :, 0]
    gains = direct.sqrt()[:, None] + (1 - direct).sqrt()[:, None] * scattered
    no = 10 ** (-snr_db / 10)
    believed = gains
    if pilots is not None:
        error = complex_normal(tuple(gains.shape), generator) * (no / pilots.clamp_min(1)).sqrt()[:, None]
        believed = torch.where(pilots[:, None] > 0, gains + error, believed)
    if no_csi is not None:
        believed = torch.where(no_csi[:, None] > 0, torch.ones_like(gains), believed)
    return RandomChannels(gains, believed, no)


def pass_through(
    channels: RandomChannels, symbols: torch.Tensor, channel_uses: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Symbols (B, K) after their channels and an MMSE equaliser; differentiable.

    Args:
        channels: one for each row.
        symbols: (B, K) complex64.
        channel_uses: (B,) int64, how many symbols each row sends; what follows comes out as zero.
        generator: of the noise.
    """
    place = torch.arange(symbols.shape[1])[None, :]
    block = (place * BLOCKS // channel_uses[:, None]).clamp_max(BLOCKS - 1)
    gains, believed = channels.gains.gather(1, block), channels.believed.gather(1, block)
    no = channels.no[:, None]
    noise = complex_normal(tuple(symbols.shape), generator) * no.sqrt()
    equalised = (gains * symbols + noise) * believed.conj() / (believed.abs().square() + no)
    return torch.where(place < channel_uses[:, None], equalised, 0)
