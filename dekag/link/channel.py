"""Block fading and noise: y_k = h_j s_k + n_k, where block j holds symbol k.

Signal power and mean fading power are 1, so the noise power is `no = 10**(-snr_db/10)` whatever was sent and
however deep the fade. The J gains are jointly complex Gaussian with E[h_j' conj(h_j)] = C[j', j],

    C[j', j] = 1 / (1 + 2 pi i (f_j' - f_j) tau_rms),

the frequency correlation of an exponential power-delay profile with RMS delay spread tau_rms; f_j are the
centres of J equal sub-bands. That profile is our reading of the paper's formula, whose printed form does not
decay with distance.

Two hops: a channel applied to what another one delivered acts as a relay of gain 1. It forwards signal and
noise unscaled, so the *signal part* keeps mean power 1 on every hop and each hop's `snr_db` keeps its
meaning; nothing needs to know of earlier hops. `received` composes what all of them did into one Reception.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from dekag.errors import InvalidInputError
from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS, LinkConditions

# Delay spreads near zero make C singular; this much independent fading keeps its Cholesky factor real.
_INDEPENDENT_POWER = 1e-12


@dataclass(frozen=True)
class Reception:
    """What the receiver has, with perfect CSI.

    Attributes:
        symbols: (B, K) complex64, received.
        gains: (B, J) complex64, block gains h_j.
        no: (B,) float32, noise power per channel use.
    """

    symbols: torch.Tensor
    gains: torch.Tensor
    no: torch.Tensor

    @property
    def symbol_gains(self) -> torch.Tensor:
        """(B, K) complex64: the gain that each symbol met."""
        return self.gains[:, block_of_symbol(self.symbols.shape[1], self.gains.shape[1])]


def block_of_symbol(channel_uses: int, blocks: int = BLOCKS) -> torch.Tensor:
    """(K,) int64: symbol k lies in block floor(k J / K).

    Blocks are runs of K/J neighbours; if J does not divide K their sizes differ by at most one.
    """
    return torch.arange(channel_uses) * blocks // max(channel_uses, 1)


def block_correlation(tau_rms_s: float, blocks: int = BLOCKS) -> torch.Tensor:
    """(J, J) complex128: C[j', j] = E[h_j' conj(h_j)] for an RMS delay spread in s."""
    centres = torch.arange(blocks, dtype=torch.float64) * (BANDWIDTH_HZ / blocks)
    return 1 / (1 + 2j * math.pi * (centres[:, None] - centres[None, :]) * tau_rms_s)


def transmit(
    symbols: torch.Tensor, conditions: Sequence[LinkConditions], seeds: Sequence[int], *, hop: int = 0
) -> Reception:
    """Send each item through a channel of its own.

    Item i depends on its symbols, `conditions[i]`, `seeds[i]` and `hop` alone, bit for bit, never on the rest
    of the batch. Its fading does not depend on K or SNR: the same seed meets the same fades at every rate.

    Args:
        symbols: (B, K) complex64, mean power 1.
        conditions: B of them.
        seeds: B of them, 0 to 2**64 - 1.
        hop: how many channels the symbols crossed before; channels in a chain must not share their draws.

    Returns:
        A Reception on the CPU; AWGN gains are exactly 1.

    Raises:
        InvalidInputError: names the argument that has another shape or range.
    """
    if symbols.ndim != 2 or symbols.dtype != torch.complex64 or not symbols.shape[1]:
        raise InvalidInputError("symbols", "(B, K) complex64", f"{tuple(symbols.shape)} {symbols.dtype}")
    if not torch.isfinite(torch.view_as_real(symbols)).all():
        raise InvalidInputError("symbols", "finite complex numbers", "NaN or infinity")
    if len(conditions) != symbols.shape[0]:
        raise InvalidInputError("conditions", f"one for each of {symbols.shape[0]} items", len(conditions))
    if len(seeds) != symbols.shape[0]:
        raise InvalidInputError("seeds", f"one for each of {symbols.shape[0]} items", len(seeds))
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise InvalidInputError("seed", "between 0 and 2**64 - 1", seed)
    blocks = block_of_symbol(symbols.shape[1])
    # One item at a time: vectorised kernels may round an element by where in the batch it happens to lie.
    items = [
        _transmit_one(item, condition, _generator(seed, hop), blocks)
        for item, condition, seed in zip(symbols.cpu(), conditions, seeds, strict=True)
    ]
    return Reception(
        symbols=torch.stack([received for received, _ in items]) if items else symbols.cpu(),
        gains=torch.stack([gains for _, gains in items])
        if items
        else torch.ones(0, BLOCKS, dtype=torch.complex64),
        no=torch.tensor([condition.no for condition in conditions], dtype=torch.float32),
    )


def received(
    symbols: torch.Tensor, states: Sequence[tuple[torch.Tensor, torch.Tensor]], *, blocks: int = BLOCKS
) -> Reception:
    """The Reception of `symbols` (B, K) that crossed the channels `states`, first to last.

    Without a channel reception is ideal: gains 1, no 0. One channel gives its own gains and no. Several give
    one channel that is equivalent for every linear receiver: the gains multiply, a hop's noise is faded by
    the hops after it, and blocks are scaled so that all of them have the same noise power, the sum of the
    hops' no.

    Args:
        symbols: (B, K) complex64, as the last channel delivered them.
        states: for each channel its gains (B, J) complex64 and no (B,) float32.
        blocks: J of an ideal reception.

    Raises:
        InvalidInputError: if the shapes of the states do not fit `symbols` or one another.
    """
    batch = symbols.shape[0]
    if not states:
        return Reception(symbols, torch.ones(batch, blocks, dtype=torch.complex64), torch.zeros(batch))
    for gains, no in states:
        if gains.ndim != 2 or gains.shape != (batch, states[0][0].shape[1]) or not gains.shape[1]:
            raise InvalidInputError("csi.gains", f"({batch}, J), the same J on every hop", tuple(gains.shape))
        if no.shape != (batch,) or not (torch.isfinite(no) & (no >= 0)).all():
            raise InvalidInputError("csi.no", f"{batch} finite powers of at least 0", no.tolist())
    (gain, total), *later = states
    if not later:
        return Reception(symbols, gain, total)
    noise = total[:, None].expand(gain.shape)
    for gains, no in later:
        gain, noise, total = gain * gains, noise * gains.abs().square() + no[:, None], total + no
    scale = torch.where(noise > 0, total[:, None] / noise, 1.0).sqrt()
    per_symbol = scale[:, block_of_symbol(symbols.shape[1], gain.shape[1])]
    return Reception(symbols * per_symbol, gain * scale, total)


def instantaneous_snr_db(gains: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """(B,) float32: 10 log10(mean_j |h_j|^2 / no), dB, from gains (B, J) and no (B,); infinite if no is 0."""
    return 10 * torch.log10(gains.abs().square().mean(dim=-1) / no)


def _transmit_one(
    symbols: torch.Tensor, conditions: LinkConditions, generator: torch.Generator, blocks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Received symbols (K,) and gains (J,) for symbols (K,)."""
    from dekag.link.phy import complex_normal

    # GenerateFlatFadingChannel(1, J, KroneckerModel(None, C)) and AWGN can draw only from Sionna's one global
    # generator, whose seed concurrent requests would share; these are their two steps with a generator of
    # the item's own. The gains are drawn first and always, so that the noise is the same with and without.
    independent = complex_normal((BLOCKS, 1), precision="double", device="cpu", generator=generator)
    noise = complex_normal(tuple(symbols.shape), precision="single", device="cpu", generator=generator)
    noise = noise * math.sqrt(conditions.no)
    if conditions.fading == "awgn":
        return symbols + noise, torch.ones(BLOCKS, dtype=torch.complex64)
    gains: torch.Tensor = block_correlator(conditions.tau_rms_s)(independent)[:, 0].to(torch.complex64)
    return gains[blocks] * symbols + noise, gains


@lru_cache(maxsize=64)
def block_correlator(tau_rms_s: float) -> Any:
    """Sionna's KroneckerModel that maps independent gains (..., J, 1) complex128 to correlated ones."""
    from dekag.link.phy import KroneckerModel

    identity = torch.eye(BLOCKS, dtype=torch.float64)
    correlation = block_correlation(tau_rms_s) + _INDEPENDENT_POWER * identity
    return KroneckerModel(None, correlation / (1 + _INDEPENDENT_POWER), precision="double", device="cpu")


def _generator(seed: int, hop: int) -> torch.Generator:
    # Hashed, for two reasons: torch's CPU generator keeps only the low 32 bits of a seed, and the same
    # request seed starts the image's diffusion noise, which must not reappear as channel noise.
    digest = hashlib.sha256(f"dekag.link.channel/{hop}/{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
