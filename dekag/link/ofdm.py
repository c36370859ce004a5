"""Tapped delay lines over OFDM: a gain for every resource element.

The carrier is that of NR at 10 MHz: 624 subcarriers of 15 kHz, slots of 1 ms with 14 OFDM symbols. A
transmission uses whole slots and, in each of the same J = 8 sub-bands as block fading, the smallest number of
neighbouring subcarriers. So it spans the whole band and, for K up to about 8,000, one slot, at every rate.
Symbols fill the slot frequency first. In OFDM symbols 2 and 11 of every slot, every second subcarrier is
reserved for pilots; without pilots it stays empty, so that the same seed gives the same gains for every CSI.

The tapped delay lines are Sionna's, from 3GPP TR 38.901: the delays scale with the RMS delay spread, the
Doppler spectrum with the speed. The cyclic prefix is assumed to cover the delays, and gains to be constant
during one OFDM symbol: there is no interference between symbols or subcarriers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS, LinkConditions

CARRIER_HZ = 3.5e9
SUBCARRIER_HZ = 15e3
SUBCARRIERS = 78
"""Subcarriers in each sub-band; 8 times 78 are NR's 52 resource blocks of 12."""
SLOT_S = 1e-3
SYMBOLS = 14
"""OFDM symbols in a slot."""
PILOT_SYMBOLS = (2, 11)
PILOT_STEP = 2
"""Spacing of pilots in subcarriers, within an OFDM symbol that has pilots."""

_LOS_COSINE = 0.7  # TR 38.901: Doppler shift of the line-of-sight path over the largest one


@dataclass(frozen=True)
class Grid:
    """The resource elements (slots, SYMBOLS, BLOCKS, width) of one transmission.

    Attributes:
        slots: number of slots.
        width: neighbouring subcarriers in each sub-band.
    """

    slots: int
    width: int

    @staticmethod
    def of(channel_uses: int) -> Grid:
        """The grid of `channel_uses` symbols: as few slots as possible, then as few subcarriers."""
        slots = -(-channel_uses // (BLOCKS * _data_elements(SUBCARRIERS)))
        width = next(
            width
            for width in range(1, SUBCARRIERS + 1)
            if slots * BLOCKS * _data_elements(width) >= channel_uses
        )
        return Grid(slots, width)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(slots, SYMBOLS, BLOCKS, width)"""
        return self.slots, SYMBOLS, BLOCKS, self.width

    @property
    def pilots(self) -> torch.Tensor:
        """(SYMBOLS, width) bool: elements reserved for pilots, the same in every slot and sub-band."""
        mask = torch.zeros(SYMBOLS, self.width, dtype=torch.bool)
        mask[list(PILOT_SYMBOLS), ::PILOT_STEP] = True
        return mask

    @property
    def pilot_uses(self) -> int:
        """Channel uses of the pilots."""
        return self.slots * BLOCKS * int(self.pilots.sum())

    def of_symbols(self, elements: torch.Tensor, channel_uses: int) -> torch.Tensor:
        """(K,): the values of `elements`, of the grid's shape, at the positions of the symbols."""
        return elements.flatten()[_positions(self, channel_uses)]


@lru_cache(maxsize=64)
def _positions(grid: Grid, channel_uses: int) -> torch.Tensor:
    """(K,) int64: positions of the symbols in the flattened grid."""
    data = ~grid.pilots[None, :, None, :].expand(grid.shape)
    return data.flatten().nonzero()[:channel_uses, 0]


def _data_elements(width: int) -> int:
    """Elements of one slot and sub-band without a pilot."""
    return SYMBOLS * width - len(PILOT_SYMBOLS) * -(-width // PILOT_STEP)


def slots(channel_uses: int) -> int:
    """Number of slots of a transmission."""
    return Grid.of(channel_uses).slots


def tdl_gains(grid: Grid, conditions: LinkConditions, generator: torch.Generator) -> torch.Tensor:
    """Gains of the grid's shape, complex128, mean power 1.

    The draws do not depend on the grid: the same seed gives the same paths at every rate.

    Args:
        grid: resource elements at which the channel is evaluated.
        conditions: fading "tdl-a" to "tdl-e", with delay spread and speed.
        generator: source of phases and angles of the paths.
    """
    from dekag.link.sionna_blocks import cir_to_ofdm_channel

    # Sionna's blocks draw from a global generator, which concurrent requests would share. A block takes its
    # generator from its property torch_rng, which SeededTDL makes settable. The copy is shallow and local to
    # this call, so this is thread-safe.
    tdl = copy.copy(_tdl(conditions.fading, conditions.tau_rms_s, conditions.speed_m_s))
    tdl.generator = generator
    paths, delays = tdl(1, grid.slots * SYMBOLS, SYMBOLS / SLOT_S)
    gains: torch.Tensor = cir_to_ofdm_channel(_frequencies(grid.width), paths, delays)
    return gains.reshape(grid.shape)


def tdl_correlation(fading: str, tau_rms_s: float, speed_m_s: float, width: int) -> torch.Tensor:
    """(SYMBOLS * width, SYMBOLS * width) complex128: E[h h^H] of one slot in one sub-band.

    Scattered paths of powers P_m and delays t_m with uniform angles of arrival (Clarke), and, in profiles D
    and E, a line-of-sight path of power P and Doppler shift a f_d:

        sum_m P_m exp(-2 pi i df t_m) J_0(2 pi f_d dt) + P exp(2 pi i a f_d dt).
    """
    from dekag.link.sionna_blocks import SPEED_OF_LIGHT

    tdl = _tdl(fading, tau_rms_s, speed_m_s)
    times = torch.arange(SYMBOLS, dtype=torch.float64) * (SLOT_S / SYMBOLS)
    turns = 2 * math.pi * CARRIER_HZ * speed_m_s / SPEED_OF_LIGHT * (times[:, None] - times[None, :])
    frequencies = torch.arange(width, dtype=torch.float64) * SUBCARRIER_HZ
    nlos = tdl.mean_powers.to(torch.complex128)
    if tdl.los:
        nlos = torch.cat([nlos[:1] - tdl.mean_power_los, nlos[1:]])
    response = torch.exp(-2j * math.pi * frequencies[:, None] * tdl.delays)
    spectrum = (response * nlos) @ response.mH
    correlation = torch.kron(torch.special.bessel_j0(turns).to(torch.complex128), spectrum)
    if tdl.los:
        los = tdl.mean_power_los * torch.exp(1j * _LOS_COSINE * turns)
        correlation += torch.kron(los, torch.ones(width, width, dtype=torch.complex128))
    return correlation


@lru_cache(maxsize=64)
def _tdl(fading: str, tau_rms_s: float, speed_m_s: float) -> Any:
    from dekag.link.sionna_blocks import SeededTDL

    return SeededTDL(
        fading.removeprefix("tdl-").upper(),
        tau_rms_s,
        CARRIER_HZ,
        min_speed=speed_m_s,
        los_angle_of_arrival=math.acos(_LOS_COSINE),
        precision="double",
        device="cpu",
    )


def _frequencies(width: int) -> torch.Tensor:
    """(BLOCKS * width,) float64: the subcarriers used, Hz, sub-band by sub-band."""
    centres = torch.arange(BLOCKS, dtype=torch.float64) * (BANDWIDTH_HZ / BLOCKS)
    offsets = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * SUBCARRIER_HZ
    return (centres[:, None] + offsets).flatten()
