"""Fading and noise, y_k = h_k s_k + n_k, and the receiver's knowledge of the channel.

Signal power and mean fading power are 1, so the noise power is `no = 10**(-snr_db/10)`, independent of signal
and fade. In block fading, the gain h_k is that of the block j that contains symbol k (`dekag.link.fading`,
`dekag.link.trace`); in a tapped delay line, every symbol has its own (`dekag.link.ofdm`); a plug-in
(`dekag.link.Channel`) may do either; with several antennas (`dekag.link.mimo`), it has the gain that the
detector leaves it. The receiver knows the gains, estimates them, or neither
(`dekag.link.csi`).

Two hops: a channel that receives the output of another one acts as a relay of gain 1. It forwards signal and
noise unscaled, so the *signal part* keeps mean power 1 on every hop and each hop's `snr_db` keeps its
meaning, independent of earlier hops. `compose_hops` combines all hops into one Reception.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch.nn.utils.rnn import pad_sequence

from dekag import plugins
from dekag.errors import InvalidInputError
from dekag.link import csi, mimo, ofdm, trace
from dekag.link.conditions import BLOCKS, BUILT_IN_TRACES, Fading, LinkConditions
from dekag.link.csi import Estimate
from dekag.link.fading import block_correlation, block_correlator, rayleigh_gains, rician_gains
from dekag.link.registry import MIMO

__all__ = [
    "ChannelState",
    "Reception",
    "block_correlation",
    "block_correlator",
    "block_of_symbol",
    "built_in_gains",
    "compose_hops",
    "instantaneous_snr_db",
    "transmit",
]


_BLOCKS_FADE = ("awgn", "rayleigh", "rician", "trace")
_TDL = tuple(name for name in get_args(Fading) if name.startswith("tdl"))


class ChannelState(NamedTuple):
    """The receiver's knowledge of one channel.

    Attributes:
        gains: (B, J) complex64: perfect, estimated, or all 1.
        no: (B,) float32, noise power per channel use.
        gain_errors: (B, J) float32, variances of the gains around their estimates; None if it assumes none.
        pilot_uses: channel uses spent on pilots, for each item; () if there were none.
    """

    gains: torch.Tensor
    no: torch.Tensor
    gain_errors: torch.Tensor | None = None
    pilot_uses: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reception:
    """Received symbols and the receiver's knowledge of the channel.

    Attributes:
        symbols: (B, K) complex64, received.
        gains: (B, J) complex64, gains h_j as the receiver knows them: perfect, estimated, or all 1.
        no: (B,) float32, noise power per channel use.
        gain_errors: (B, J) float32, variances of the gains around their estimates; None if it assumes none.
        pilot_uses: channel uses spent on pilots in addition to K, for each item; () if there were none.
    """

    symbols: torch.Tensor
    gains: torch.Tensor
    no: torch.Tensor
    gain_errors: torch.Tensor | None = None
    pilot_uses: tuple[int, ...] = ()

    @property
    def symbol_gains(self) -> torch.Tensor:
        """(B, K) complex64: the gain of each symbol."""
        return self.gains[:, block_of_symbol(self.symbols.shape[1], self.gains.shape[1])]

    @property
    def symbol_no(self) -> torch.Tensor:
        """(B, K) or (B, 1) float32: noise power of each symbol plus the error variance of its gain."""
        if self.gain_errors is None:
            return self.no[:, None]
        blocks = block_of_symbol(self.symbols.shape[1], self.gain_errors.shape[1])
        return self.gain_errors[:, blocks] + self.no[:, None]


def block_of_symbol(channel_uses: int, blocks: int = BLOCKS) -> torch.Tensor:
    """(K,) int64: symbol k lies in block floor(k J / K).

    Blocks consist of K/J neighbouring symbols; if J does not divide K, their sizes differ by at most one.
    """
    return torch.arange(channel_uses) * blocks // max(channel_uses, 1)


def transmit(
    symbols: torch.Tensor,
    conditions: Sequence[LinkConditions],
    seeds: Sequence[int],
    *,
    channel_uses: Sequence[int] | None = None,
    hop: int = 0,
    traces: Path = BUILT_IN_TRACES,
) -> Reception:
    """Send each item through its own channel.

    Item i depends, bit for bit, only on its symbols, `conditions[i]`, `seeds[i]` and `hop`, not on the rest
    of the batch. Its fading does not depend on K, SNR or CSI: the same seed gives the same fades at every
    rate (for longer transmissions, in their first slot), and the same noise with every fading. Only behind
    the detector of several antennas, gains depend on the SNR, and the noise is another one.

    Args:
        symbols: (B, K) complex64, mean power 1.
        conditions: B conditions.
        seeds: B seeds, 0 to 2**64 - 1.
        channel_uses: number of symbols of each item, 1 to K, if items differ in rate. The rest of a row is
            padding that is not sent; it is returned as zeros with gains of 1.
        hop: number of channels that the symbols crossed before; each hop of a chain has its own draws.
        traces: folder of the traces that conditions may name.

    Returns:
        A Reception on the CPU. J is 8, or K if any item has a gain for every symbol (TDL, plug-ins) or is
        padded. AWGN gains are exactly 1.

    Raises:
        InvalidInputError: names the argument with an invalid shape or range.
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
    longest = symbols.shape[1]
    uses = [longest] * len(seeds) if channel_uses is None else list(channel_uses)
    if len(uses) != len(seeds) or not all(1 <= each <= longest for each in uses):
        raise InvalidInputError(
            "channel_uses", f"between 1 and {longest} for each of {len(seeds)} items", uses
        )
    # One item at a time: in vectorised kernels, rounding may depend on the position in the batch.
    items = [
        _transmit_one(item[:sent], condition, _Draws(seed, hop), traces)
        for item, sent, condition, seed in zip(symbols.cpu(), uses, conditions, seeds, strict=True)
    ]
    if not items:
        return Reception(symbols.cpu(), torch.ones(0, BLOCKS, dtype=torch.complex64), torch.ones(0))
    estimates = [estimate for _, estimate in items]
    return Reception(
        symbols=_stack([received for received, _ in items], uses, padding=0),
        gains=_stack([estimate.gains for estimate in estimates], uses, padding=1),
        no=torch.tensor([condition.no for condition in conditions], dtype=torch.float32),
        gain_errors=_stack([estimate.errors for estimate in estimates], uses, padding=0),
        pilot_uses=tuple(estimate.pilot_uses for estimate in estimates),
    )


def compose_hops(
    symbols: torch.Tensor,
    states: Sequence[ChannelState | tuple[torch.Tensor, torch.Tensor]],
    *,
    blocks: int = BLOCKS,
) -> Reception:
    """The Reception of `symbols` (B, K) after the channels `states`, from first to last.

    Without channels, the reception is ideal: gains 1, no 0. One channel gives its own state. Several are
    combined into one that is equivalent for every linear receiver: the gains multiply, the noise of a hop is
    faded by later hops, and blocks are scaled to equal noise power, the sum of the hops' no. Every hop
    estimates its own gain with its own pilots and forwards it: their errors are independent, and pilots add
    up.

    Args:
        symbols: (B, K) complex64, output of the last channel.
        states: for each channel its gains (B, J) complex64 and no (B,) float32, or a ChannelState.
        blocks: J of an ideal reception.

    Raises:
        InvalidInputError: the shapes of the states do not match `symbols` or each other.
    """
    if symbols.ndim != 2 or symbols.dtype != torch.complex64 or not symbols.shape[1]:
        raise InvalidInputError("symbols", "(B, K) complex64", f"{tuple(symbols.shape)} {symbols.dtype}")
    batch = symbols.shape[0]
    if not states:
        return Reception(symbols, torch.ones(batch, blocks, dtype=torch.complex64), torch.zeros(batch))
    known = [ChannelState(*state) for state in states]
    for gains, no, errors, _ in known:
        if gains.ndim != 2 or gains.shape != (batch, known[0].gains.shape[1]) or not gains.shape[1]:
            raise InvalidInputError("csi.gains", f"({batch}, J), the same J on every hop", tuple(gains.shape))
        if no.shape != (batch,) or not (torch.isfinite(no) & (no >= 0)).all():
            raise InvalidInputError("csi.no", f"{batch} finite powers of at least 0", no.tolist())
        if errors is not None and (
            errors.shape != gains.shape or not (torch.isfinite(errors) & (errors >= 0)).all()
        ):
            raise InvalidInputError("csi.gain_errors", "a finite power of at least 0 for each gain", errors)
    (gain, total, error, pilots), *later = known
    if not later:
        return Reception(symbols, gain, total, error, pilots)
    pilot_uses = [state.pilot_uses for state in known if state.pilot_uses]
    error = torch.zeros(gain.shape) if error is None else error
    noise = total[:, None].expand(gain.shape)
    for gains, no, errors, _ in later:
        fresh = torch.zeros(gain.shape) if errors is None else errors
        power = gains.abs().square()
        # h1 h2 - g1 g2 = g1 e2 + e1 g2 + e1 e2, whose terms are uncorrelated.
        error = gain.abs().square() * fresh + error * power + error * fresh
        gain, noise, total = gain * gains, noise * (power + fresh) + no[:, None], total + no
    scale = torch.where(noise > 0, total[:, None] / noise, 1.0).sqrt()
    per_symbol = scale[:, block_of_symbol(symbols.shape[1], gain.shape[1])]
    return Reception(
        symbols * per_symbol,
        gain * scale,
        total,
        error * scale.square() if any(state.gain_errors is not None for state in known) else None,
        tuple(map(sum, zip(*pilot_uses, strict=True))),
    )


def instantaneous_snr_db(gains: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """(B,) float32: 10 log10(mean_j |h_j|^2 / no), dB, from gains (B, J) and no (B,); infinite if no is 0."""
    return 10 * torch.log10(gains.abs().square().mean(dim=-1) / no)


@dataclass(frozen=True)
class _Draws:
    """The random streams of one item on one hop, independent for each purpose."""

    seed: int
    hop: int

    def of(self, purpose: str) -> torch.Generator:
        """The stream for a purpose."""
        # Hashed, for two reasons: torch's CPU generator keeps only the low 32 bits of a seed, and the same
        # request seed starts the image's diffusion noise, which must not reappear as channel noise.
        digest = hashlib.sha256(f"dekag.link.{purpose}/{self.hop}/{self.seed}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def _transmit_one(
    symbols: torch.Tensor, conditions: LinkConditions, draws: _Draws, traces: Path
) -> tuple[torch.Tensor, Estimate]:
    """Received symbols (K,), and the receiver's estimate of the gains (J,), for symbols (K,)."""
    from dekag.link.sionna_blocks import complex_normal

    # GenerateFlatFadingChannel(1, J, KroneckerModel(None, C)) and AWGN only draw from Sionna's global
    # generator, which concurrent requests would share; these are their steps with the item's own generator.
    # The gains are always drawn first, so that the noise is the same with and without fading.
    if conditions.fading in MIMO:
        if draws.hop:  # the detector counts on symbols of power 1, without noise
            allowed = "a kind with one antenna, as the symbols have crossed a channel before"
            raise InvalidInputError("link.fading", allowed, conditions.fading)
        received, gains = mimo.send(symbols, conditions, draws.of("mimo"))
        return received, csi.perfect(gains)
    generator = draws.of("channel")
    independent = complex_normal((BLOCKS, 1), precision="double", device="cpu", generator=generator)
    noise = complex_normal(tuple(symbols.shape), precision="single", device="cpu", generator=generator)
    noise = noise * math.sqrt(conditions.no)
    if conditions.fading in _TDL:
        gains, estimate = _grid_fading(len(symbols), conditions, draws)
        return gains * symbols + noise, estimate
    if conditions.fading in _BLOCKS_FADE:
        phase = draws.of("direct-path")
        gains = _block_fading(len(symbols), conditions, independent, phase, traces)
    else:
        gains = _registered_fading(len(symbols), conditions, draws.of("plug-in"))
    estimate = _block_estimate(gains, conditions, draws)
    if conditions.fading == "awgn":
        return symbols + noise, estimate
    return _faded(symbols, gains) + noise, estimate


def _faded(symbols: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """(K,): symbols (K,) times the gains (J,) of their blocks."""
    if len(symbols) % len(gains):
        return gains[block_of_symbol(len(symbols), len(gains))] * symbols
    # blocks of equal size: the same bits without expanding the gains
    return (gains[:, None] * symbols.view(len(gains), -1)).flatten()


def built_in_gains(conditions: LinkConditions, generator: torch.Generator, channel_uses: int) -> torch.Tensor:
    """(J,) or, for a TDL, (K,) complex64: gains of a built-in channel, from one generator.

    They differ from those of `transmit`, which has a generator for each purpose. Only built-in traces.
    """
    from dekag.link.sionna_blocks import complex_normal

    if conditions.fading in _TDL:
        grid = ofdm.Grid.of(channel_uses)
        on_grid = ofdm.tdl_gains(grid, conditions, generator)
        return grid.of_symbols(on_grid, channel_uses).to(torch.complex64)
    independent = complex_normal((BLOCKS, 1), precision="double", device="cpu", generator=generator)
    return _block_fading(channel_uses, conditions, independent, generator, BUILT_IN_TRACES)


def _registered_fading(
    channel_uses: int, conditions: LinkConditions, generator: torch.Generator
) -> torch.Tensor:
    """(J,) or (K,) complex64: the gains that a class of the registry draws: of a plug-in, for example."""
    channel = plugins.get("channel", conditions.fading)
    gains = torch.as_tensor(channel.gains(conditions, generator, channel_uses)).to(torch.complex64)
    if gains.shape not in ((BLOCKS,), (channel_uses,)) or not torch.isfinite(torch.view_as_real(gains)).all():
        allowed = f"finite and of shape ({BLOCKS},) or ({channel_uses},)"
        raise InvalidInputError(f"gains of {conditions.fading}", allowed, tuple(gains.shape))
    if conditions.csi == "pilots" and len(gains) != BLOCKS:
        allowed = f"perfect or none, as every symbol of {conditions.fading} has its own gain"
        raise InvalidInputError("link.csi", allowed, conditions.csi)
    return gains


def _block_fading(
    channel_uses: int,
    conditions: LinkConditions,
    independent: torch.Tensor,
    phase: torch.Generator,
    traces: Path,
) -> torch.Tensor:
    """(J,) complex64: the gains of the blocks, from `independent` ones (J, 1) complex128."""
    if conditions.fading == "awgn":
        return torch.ones(BLOCKS, dtype=torch.complex64)
    if conditions.fading == "rayleigh":
        gains = rayleigh_gains(independent, conditions.tau_rms_s)
    elif conditions.fading == "rician":
        gains = rician_gains(independent, conditions.tau_rms_s, conditions.rician_k_db, phase)
    else:
        played = trace.load(conditions.trace or "", traces)
        gains = played.block_gains(conditions.trace_start_s, ofdm.slots(channel_uses))
    return gains.to(torch.complex64)


def _block_estimate(gains: torch.Tensor, conditions: LinkConditions, draws: _Draws) -> Estimate:
    if conditions.csi == "pilots":
        return csi.estimate_blocks(gains, conditions, draws.of("pilots"))
    return csi.perfect(gains) if conditions.csi == "perfect" else csi.blind(gains)


def _grid_fading(
    channel_uses: int, conditions: LinkConditions, draws: _Draws
) -> tuple[torch.Tensor, Estimate]:
    """(K,) complex64: the gains of symbols on an OFDM grid, and the receiver's estimate of them."""
    grid = ofdm.Grid.of(channel_uses)
    on_grid = ofdm.tdl_gains(grid, conditions, draws.of("tdl"))
    gains = grid.of_symbols(on_grid, channel_uses).to(torch.complex64)
    if conditions.csi != "pilots":
        return gains, csi.perfect(gains) if conditions.csi == "perfect" else csi.blind(gains)
    estimate = csi.estimate_grid(on_grid, grid, conditions, draws.of("pilots"))
    return gains, Estimate(
        grid.of_symbols(estimate.gains, channel_uses),
        grid.of_symbols(estimate.errors, channel_uses),
        estimate.pilot_uses,
    )


def _stack(items: Sequence[torch.Tensor], channel_uses: Sequence[int], *, padding: float) -> torch.Tensor:
    """(B, J) from items (J_i,) of equal length and channel uses; else (B, K) with the largest K."""
    if len({len(item) for item in items}) == len(set(channel_uses)) == 1:
        return torch.stack(list(items))
    rows = [item[block_of_symbol(uses, len(item))] for item, uses in zip(items, channel_uses, strict=True)]
    return pad_sequence(rows, batch_first=True, padding_value=padding)
