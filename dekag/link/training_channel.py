"""A batch of random channels for training: the distribution of `transmit`, an order of magnitude faster.

`transmit` draws each item separately, so that a request's bits depend on its seed alone, and builds a Sionna
model for every delay spread. Training needs neither: the gains of a batch come from one batched Cholesky
factorisation and one draw. A test compares the two distributions.
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
        gains: (B, J) complex64, the true gains.
        gain_estimate: (B, J) complex64, the receiver's estimate of them.
        error_variance: (B, J) float32, variance of the gains around their estimate, as the receiver knows it.
        no: (B,) float32, noise power per channel use.
    """

    gains: torch.Tensor
    gain_estimate: torch.Tensor
    error_variance: torch.Tensor
    no: torch.Tensor

    @property
    def block_snr_db(self) -> torch.Tensor:
        """(B, J) SNR of each block as the receiver sees it, dB; the error variance counts as noise."""
        ratio = self.gain_estimate.abs().square() / (self.error_variance + self.no[:, None])
        return 10 * torch.log10(ratio.clamp_min(1e-12))


def _complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Circular complex Gaussians of unit variance, complex64."""
    from dekag.link.sionna_blocks import complex_normal

    drawn: torch.Tensor = complex_normal(shape, precision="single", device="cpu", generator=generator)
    return drawn


def draw_channels(
    snr_db: torch.Tensor,
    los_fraction: torch.Tensor,
    tau_rms_s: torch.Tensor,
    generator: torch.Generator,
    *,
    pilots: torch.Tensor | None = None,
    no_csi: torch.Tensor | None = None,
) -> RandomChannels:
    """Draws correlated block gains of mean power 1, and the receiver's knowledge of them.

    Args:
        snr_db: (B,) mean SNR, dB.
        los_fraction: (B,) fraction of the power on the line-of-sight path: 1 is AWGN with gains of 1, 0 is
            Rayleigh, and values in between are Rician, with a random line-of-sight phase.
        tau_rms_s: (B,) RMS delay spread of the scattered paths, s.
        generator: source of all draws.
        pilots: (B,) 1 where the gains are estimated as in `dekag.link.csi.estimate_blocks`; 0 where known.
        no_csi: (B,) 1 where the receiver takes every gain to be 1.
    """
    correlation = block_correlation(tau_rms_s)
    identity = torch.eye(BLOCKS, dtype=torch.complex128)
    factor = torch.linalg.cholesky(correlation + 1e-9 * identity)
    independent = _complex_normal((len(snr_db), BLOCKS, 1), generator)
    nlos = (factor.to(torch.complex64) @ independent)[:, :, 0]
    angle = 2 * math.pi * torch.rand(len(snr_db), generator=generator)
    phase = torch.where(los_fraction < 1, torch.polar(torch.ones_like(angle), angle), 1)
    gains = los_fraction.sqrt()[:, None] * phase[:, None] + (1 - los_fraction).sqrt()[:, None] * nlos
    no = 10 ** (-snr_db / 10)
    gain_estimate, error_variance = gains, torch.zeros(gains.shape)
    if pilots is not None and pilots.any():
        los = los_fraction.double()[:, None, None]
        covariance = los * torch.ones_like(correlation) + (1 - los) * correlation
        noise = (no / PILOTS_PER_BLOCK).double()[:, None, None]
        weights = torch.linalg.solve(covariance + noise * identity, covariance).mH
        observed = gains + _complex_normal(tuple(gains.shape), generator) * noise[:, :, 0].float().sqrt()
        estimate = (weights.to(torch.complex64) @ observed[:, :, None])[:, :, 0]
        residual = (covariance - weights @ covariance).diagonal(dim1=1, dim2=2).real.clamp_min(0).float()
        gain_estimate = torch.where(pilots[:, None] > 0, estimate, gain_estimate)
        error_variance = torch.where(pilots[:, None] > 0, residual, error_variance)
    if no_csi is not None:
        gain_estimate = torch.where(no_csi[:, None] > 0, torch.ones_like(gains), gain_estimate)
    return RandomChannels(gains, gain_estimate, error_variance, no)


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
        channel_uses: (B,) int64, number of symbols that each row sends; the rest of the row becomes zero.
        generator: source of the noise.
        zero_forcing: (B,) 1 where the equaliser is ZF and not MMSE.
    """
    position = torch.arange(symbols.shape[1])[None, :]
    block = (position * BLOCKS // channel_uses[:, None]).clamp_max(BLOCKS - 1)
    gains, gain_estimate = channels.gains.gather(1, block), channels.gain_estimate.gather(1, block)
    no = channels.no[:, None]
    effective_no = no + channels.error_variance.gather(1, block)
    if zero_forcing is not None:
        effective_no = torch.where(zero_forcing[:, None] > 0, 0, effective_no)
    noise = _complex_normal(tuple(symbols.shape), generator) * no.sqrt()
    total = (gain_estimate.abs().square() + effective_no).clamp_min(torch.finfo(torch.float32).tiny)
    equalised = (gains * symbols + noise) * gain_estimate.conj() / total
    return torch.where(position < channel_uses[:, None], equalised, 0)
