"""Block fading: the J gains of a transmission and their correlation.

Rayleigh gains are jointly complex Gaussian with E[h_j' conj(h_j)] = C[j', j],

    C[j', j] = 1 / (1 + 2 pi i (f_j' - f_j) tau_rms),

the frequency correlation of an exponential power-delay profile with RMS delay spread tau_rms; f_j are the
centres of J equal sub-bands. That profile is our reading of the paper's formula, whose printed form does not
decay with distance.

Rician gains add a line-of-sight path with k times the power of the scattered paths. It arrives first, so it
is the same in all blocks, with a phase that is uniform over transmissions:

    h_j = sqrt(k / (k + 1)) exp(i phi) + sqrt(1 / (k + 1)) g_j,    g Rayleigh as above.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS, LinkConditions

# Delay spreads near zero make C singular; this much independent fading keeps its Cholesky factor defined.
_INDEPENDENT_POWER = 1e-12


def block_correlation(tau_rms_s: float | torch.Tensor, blocks: int = BLOCKS) -> torch.Tensor:
    """(..., J, J) complex128: C[j', j] = E[h_j' conj(h_j)] for RMS delay spreads (...) in s."""
    centres = torch.arange(blocks, dtype=torch.float64) * (BANDWIDTH_HZ / blocks)
    tau = torch.as_tensor(tau_rms_s, dtype=torch.float64)[..., None, None]
    return 1 / (1 + 2j * math.pi * (centres[:, None] - centres[None, :]) * tau)


@lru_cache(maxsize=64)
def block_correlator(tau_rms_s: float) -> Any:
    """Sionna's KroneckerModel that maps independent gains (..., J, 1) complex128 to correlated ones."""
    from dekag.link.sionna_blocks import KroneckerModel

    identity = torch.eye(BLOCKS, dtype=torch.float64)
    correlation = block_correlation(tau_rms_s) + _INDEPENDENT_POWER * identity
    return KroneckerModel(None, correlation / (1 + _INDEPENDENT_POWER), precision="double", device="cpu")


def rayleigh_gains(independent: torch.Tensor, tau_rms_s: float) -> torch.Tensor:
    """(J,) complex128: correlated gains from independent ones (J, 1) complex128 of power 1."""
    gains: torch.Tensor = block_correlator(tau_rms_s)(independent)[:, 0]
    return gains


def rician_gains(
    independent: torch.Tensor, tau_rms_s: float, k_db: float, generator: torch.Generator
) -> torch.Tensor:
    """(J,) complex128: scattered paths as in `rayleigh_gains` plus a line-of-sight path with random phase.

    Args:
        independent: (J, 1) complex128, power 1.
        tau_rms_s: RMS delay spread of the scattered paths, s.
        k_db: power of the line-of-sight path over the scattered paths, dB.
        generator: source of the phase.
    """
    los, nlos = rician_powers(k_db)
    phase = 2 * math.pi * torch.rand((), dtype=torch.float64, generator=generator)
    path = torch.polar(torch.tensor(math.sqrt(los), dtype=torch.float64), phase)
    return path + math.sqrt(nlos) * rayleigh_gains(independent, tau_rms_s)


def rician_powers(k_db: float) -> tuple[float, float]:
    """Power of the line-of-sight path and of all scattered paths together; their sum is 1."""
    k = 10 ** (k_db / 10)
    return k / (k + 1), 1 / (k + 1)


def block_covariance(conditions: LinkConditions) -> torch.Tensor:
    """(J, J) complex128: E[h_j' conj(h_j)], as known to a receiver that knows the kind of fading.

    For AWGN, it is that of an unknown common phase; blocks of traces and plug-ins count as independent.
    """
    if conditions.fading == "rayleigh":
        return block_correlation(conditions.tau_rms_s)
    everywhere = torch.ones(BLOCKS, BLOCKS, dtype=torch.complex128)
    if conditions.fading == "rician":
        los, nlos = rician_powers(conditions.rician_k_db)
        return los * everywhere + nlos * block_correlation(conditions.tau_rms_s)
    return everywhere if conditions.fading == "awgn" else torch.eye(BLOCKS, dtype=torch.complex128)
