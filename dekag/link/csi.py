"""The receiver's knowledge of the gains: perfect, estimated from pilots, or none.

Pilots are known symbols of power 1, received with the gain and noise of their position: z = h + n. The
receiver knows the noise power and the correlation of the fading, and computes the linear minimum mean squared
error (LMMSE) estimate,

    h' = R_hp (R_pp + no I)^-1 z,    error covariance R_hh - R_hp (R_pp + no I)^-1 R_ph,

whose error is uncorrelated with the estimate and has a known variance, which the equaliser takes into
account.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from dekag.link.conditions import BLOCKS, LinkConditions
from dekag.link.fading import block_covariance
from dekag.link.ofdm import Grid, tdl_correlation

PILOTS_PER_BLOCK = 2
"""In block fading: 16 channel uses per transmission, 3 % of 512."""


@dataclass(frozen=True)
class Estimate:
    """Gains as known to the receiver.

    Attributes:
        gains: complex64.
        errors: float32, same shape: variance of each gain around its estimate.
        pilot_uses: channel uses spent on pilots.
    """

    gains: torch.Tensor
    errors: torch.Tensor
    pilot_uses: int


def perfect(gains: torch.Tensor) -> Estimate:
    """Perfect knowledge."""
    return Estimate(gains, torch.zeros(gains.shape), 0)


def blind(gains: torch.Tensor) -> Estimate:
    """No knowledge: every gain is assumed to be 1, with no error variance."""
    return Estimate(torch.ones_like(gains), torch.zeros(gains.shape), 0)


def estimate_blocks(gains: torch.Tensor, conditions: LinkConditions, generator: torch.Generator) -> Estimate:
    """LMMSE estimate of block gains (J,) from PILOTS_PER_BLOCK pilots in each block."""
    from dekag.link.sionna_blocks import complex_normal

    shape = (BLOCKS, PILOTS_PER_BLOCK)
    noise = complex_normal(shape, precision="double", device="cpu", generator=generator)
    least_squares = gains.to(torch.complex128) + conditions.no**0.5 * noise.mean(dim=1)
    noise_power = conditions.no / PILOTS_PER_BLOCK
    powers, modes = _block_modes(conditions.fading, conditions.tau_rms_s, conditions.rician_k_db)
    # In the eigenvectors of the covariance the estimate shrinks each coordinate by itself.
    kept = powers / (powers + noise_power)
    estimate = modes @ (kept * (modes.mH @ least_squares))
    errors = modes.abs().square() @ (kept * noise_power)
    return Estimate(estimate.to(torch.complex64), errors.float(), BLOCKS * PILOTS_PER_BLOCK)


def estimate_grid(
    gains: torch.Tensor, grid: Grid, conditions: LinkConditions, generator: torch.Generator
) -> Estimate:
    """LMMSE estimate of gains of the grid's shape from its pilots.

    It interpolates over time and frequency within each slot and sub-band, and ignores pilots of other ones.
    """
    from dekag.link.sionna_blocks import complex_normal

    at_pilots = gains.permute(0, 2, 1, 3)[:, :, grid.pilots]
    noise = complex_normal(tuple(at_pilots.shape), precision="double", device="cpu", generator=generator)
    received = at_pilots + conditions.no**0.5 * noise
    weights, errors = _grid_weights(
        conditions.fading, conditions.tau_rms_s, conditions.speed_m_s, conditions.no, grid.width
    )
    cells = (received @ weights.mT).view(grid.slots, BLOCKS, *grid.pilots.shape)
    estimate = cells.permute(0, 2, 1, 3).to(torch.complex64)
    variances = errors.view(1, grid.pilots.shape[0], 1, grid.width).expand(grid.shape)
    return Estimate(estimate, variances, grid.pilot_uses)


@lru_cache(maxsize=64)
def _block_modes(fading: str, tau_rms_s: float, k_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (J,) float64 and eigenvectors (J, J) complex128 of the covariance of the block gains."""
    known = LinkConditions.model_construct(fading=fading, tau_rms_s=tau_rms_s, rician_k_db=k_db)
    powers, modes = torch.linalg.eigh(block_covariance(known))
    return powers.clamp_min(0), modes


@lru_cache(maxsize=64)
def _grid_weights(
    fading: str, tau_rms_s: float, speed_m_s: float, no: float, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (N, P) complex128 of P pilots for N elements of a slot in a sub-band; errors (N,) float32."""
    pilots = Grid(1, width).pilots.flatten()
    with_pilots = tdl_correlation(fading, tau_rms_s, speed_m_s, width)[:, pilots]
    observed = with_pilots[pilots] + no * torch.eye(int(pilots.sum()), dtype=torch.complex128)
    weights = torch.linalg.solve(observed, with_pilots.mH).mH
    explained = (weights * with_pilots.conj()).sum(dim=1).real
    return weights, (1 - explained).clamp_min(0).float()
