"""Many random channels at once, for training: statistically the same as `transmit`, an order quicker.

`transmit` draws each item by itself, so that a request's bits depend on its seed alone, and makes a Sionna
model for every delay spread. Training needs neither: here a batch's gains come from one batched Cholesky
factorisation and one draw. A test holds the two equal in distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dekag.link.conditions import BLOCKS
from dekag.link.csi import PILOTS_PER_BLOCK
from dekag.link.fading import block_correlation


@dataclass(frozen=True)
class RandomChannels:
    """One channel for each row of a batch.

    Attributes:
        gains: (B, J) complex64, as they are.
        believed: (B, J) complex64, as the receiver believes them to be.
        errors: (B, J) float32, variance of the gains around what is believed, as far as the receiver knows.
        no: (B,) float32, noise power per channel use.
    """

    gains: torch.Tensor
    believed: torch.Tensor
    errors: torch.Tensor
    no: torch.Tensor

    @property
    def block_snr_db(self) -> torch.Tensor:
        """(B, J) SNR of each block as the receiver sees it, dB; a gain's error counts as noise."""
        ratio = self.believed.abs().square() / (self.errors + self.no[:, None])
        return 10 * torch.log10(ratio.clamp_min(1e-12))


def _complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Circular complex Gaussians of unit variance, complex64."""
    from dekag.link.phy import complex_normal

    drawn: torch.Tensor = complex_normal(shape, precision="single", device="cpu", generator=generator)
    return drawn


def draw_channels(
    snr_db: torch.Tensor,
    direct: torch.Tensor,
    tau_rms_s: torch.Tensor,
    generator: torch.Generator,
    *,
    pilots: torch.Tensor | None = None,
    no_csi: torch.Tensor | None = None,
) -> RandomChannels:
    """Correlated block gains of mean power 1, and what the receiver knows of them.

    Args:
        snr_db: (B,) mean SNR, dB.
        direct: (B,) share of the power on a direct path: 1 is AWGN, whose gains are 1; 0 is Rayleigh, and
            what lies between is Rician, whose direct path has a random phase.
        tau_rms_s: (B,) RMS delay spread of the scattered part, s.
        generator: of all draws.
        pilots: (B,) 1 where the gains are estimated as `dekag.link.csi.estimate_blocks` does; else known.
        no_csi: (B,) 1 where the receiver takes every gain to be 1.
    """
    correlation = block_correlation(tau_rms_s)
    identity = torch.eye(BLOCKS, dtype=torch.complex128)
    factor = torch.linalg.cholesky(correlation + 1e-9 * identity)
    independent = _complex_normal((len(snr_db), BLOCKS, 1), generator)
    scattered = (factor.to(torch.complex64) @ independent)[:, :, 0]
    angle = 2 * math.pi * torch.rand(len(snr_db), generator=generator)
    phase = torch.where(direct < 1, torch.polar(torch.ones_like(angle), angle), 1)
    gains = direct.sqrt()[:, None] * phase[:, None] + (1 - direct).sqrt()[:, None] * scattered
    no = 10 ** (-snr_db / 10)
    believed, errors = gains, torch.zeros(gains.shape)
    if pilots is not None and pilots.any():
        share = direct.double()[:, None, None]
        covariance = share * torch.ones_like(correlation) + (1 - share) * correlation
        noise = (no / PILOTS_PER_BLOCK).double()[:, None, None]
        kept = torch.linalg.solve(covariance + noise * identity, covariance).mH
        seen = gains + _complex_normal(tuple(gains.shape), generator) * noise[:, :, 0].float().sqrt()
        estimate = (kept.to(torch.complex64) @ seen[:, :, None])[:, :, 0]
        left = (covariance - kept @ covariance).diagonal(dim1=1, dim2=2).real.clamp_min(0).float()
        believed = torch.where(pilots[:, None] > 0, estimate, believed)
        errors = torch.where(pilots[:, None] > 0, left, errors)
    if no_csi is not None:
        believed = torch.where(no_csi[:, None] > 0, torch.ones_like(gains), believed)
    return RandomChannels(gains, believed, errors, no)


def pass_through(
    channels: RandomChannels,
    symbols: torch.Tensor,
    channel_uses: torch.Tensor,
    generator: torch.Generator,
    *,
    zero_forcing: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symbols (B, K) after their channels and an equaliser; differentiable.

    Args:
        channels: one for each row.
        symbols: (B, K) complex64.
        channel_uses: (B,) int64, how many symbols each row sends; what follows comes out as zero.
        generator: of the noise.
        zero_forcing: (B,) 1 where the equaliser is ZF and not MMSE.
    """
    place = torch.arange(symbols.shape[1])[None, :]
    block = (place * BLOCKS // channel_uses[:, None]).clamp_max(BLOCKS - 1)
    gains, believed = channels.gains.gather(1, block), channels.believed.gather(1, block)
    no = channels.no[:, None]
    counted = no + channels.errors.gather(1, block)
    if zero_forcing is not None:
        counted = torch.where(zero_forcing[:, None] > 0, 0, counted)
    noise = _complex_normal(tuple(symbols.shape), generator) * no.sqrt()
    total = (believed.abs().square() + counted).clamp_min(torch.finfo(torch.float32).tiny)
    equalised = (gains * symbols + noise) * believed.conj() / total
    return torch.where(place < channel_uses[:, None], equalised, 0)
