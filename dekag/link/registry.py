"""The registry of fading channels, and their base class `Channel`, from which plug-ins derive.

Imports no torch, so that programs that only validate names start quickly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dekag.link.conditions import LinkConditions

MIMO = {"mimo-2x2": 2, "mimo-4x4": 4}
"""N of the channels with N antennas at each end (`dekag.link.mimo`)."""


class Channel(ABC):
    """A kind of fading. Noise, CSI, pilots and equalisation are added by the library.

    Attributes:
        name: its value in `LinkConditions.fading`: lower-case letters, digits, - and _.
    """

    name: str

    @abstractmethod
    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        """The gains of one transmission: complex64, with mean power 1 over many transmissions.

        Args:
            conditions: conditions of the transmission.
            generator: the only source of randomness, on the CPU. It depends only on the request's seed, so
                that equal draws give the same fades at every SNR and rate.
            channel_uses: K, the number of symbols.

        Returns:
            (8,), one for each block of neighbouring symbols, or (K,), one for each symbol; the latter cannot
            be estimated from pilots.
        """

    def los_power_fraction(self, conditions: LinkConditions) -> float:
        """Fraction of the mean power on the line-of-sight path: 1 without fading, 0 for Rayleigh.

        Adapters and rate control characterise a channel by this and by its delay spread.
        """
        return 0.0

    def tau_rms_s(self, conditions: LinkConditions) -> float:
        """RMS delay spread, s, which determines the coherence bandwidth; 0 without fading."""
        return conditions.tau_rms_s


class _BuiltIn(Channel):
    """A built-in channel.

    Args:
        name: its name.
        k_db: power of the line-of-sight path over the scattered paths, dB; None without such a path.
    """

    def __init__(self, name: str, k_db: float | None = None) -> None:
        self.name, self._k_db = name, k_db

    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        from dekag.link.channel import built_in_gains

        return built_in_gains(conditions.model_copy(update={"fading": self.name}), generator, channel_uses)

    def los_power_fraction(self, conditions: LinkConditions) -> float:
        k_db = conditions.rician_k_db if self.name == "rician" else self._k_db
        return 0.0 if k_db is None else 1 / (1 + 10 ** (-k_db / 10))

    def tau_rms_s(self, conditions: LinkConditions) -> float:
        return 0.0 if self._k_db == math.inf else conditions.tau_rms_s


class RayleighMagnitude(Channel):
    """Real gains |h|, drawn anew for each symbol: what some projects call fast Rayleigh fading.

    The power |h|^2 is exponential with mean 1, as for complex gains, but the phase is left as it is, so that
    it takes no channel state information to decide by the phase. See `dekag.link.conventions`.

    Without CSI, adapters and rate control are told of a direct path: told of Rayleigh fading, a codec counts
    on phases that are turned, and loses 2 to 5 dB of PSNR.
    """

    name = "rayleigh-magnitude"

    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        from dekag.link.sionna_blocks import complex_normal

        drawn = complex_normal((channel_uses,), precision="single", device="cpu", generator=generator)
        gains: torch.Tensor = drawn.abs() + 0j
        return gains

    def los_power_fraction(self, conditions: LinkConditions) -> float:
        """1 to a receiver without CSI, as no phase is turned; otherwise 0, that of Rayleigh fading."""
        return 1.0 if conditions.csi == "none" else 0.0

    def tau_rms_s(self, conditions: LinkConditions) -> float:
        """The largest that conditions allow, as neighbouring symbols fade independently; 0 without CSI."""
        return 0.0 if conditions.csi == "none" else 1e-4


class Mimo(Channel):
    """Several antennas at each end (`dekag.link.mimo`); its gains are those behind the detector.

    Unlike the gains of other channels, they depend on the SNR and on the equaliser.

    Args:
        name: its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        import torch

        from dekag.link import mimo

        nothing = torch.zeros(channel_uses, dtype=torch.complex64)
        return mimo.send(nothing, conditions.model_copy(update={"fading": self.name}), generator)[1]


CHANNELS: dict[str, Channel] = {
    each.name: each
    for each in (
        _BuiltIn("awgn", math.inf),
        _BuiltIn("rayleigh"),
        _BuiltIn("rician"),
        _BuiltIn("tdl-a"),
        _BuiltIn("tdl-b"),
        _BuiltIn("tdl-c"),
        _BuiltIn("tdl-d", 13.3),  # from 3GPP TR 38.901
        _BuiltIn("tdl-e", 22.0),
        _BuiltIn("trace", math.inf),
        RayleighMagnitude(),
        *map(Mimo, MIMO),
    )
}
"""Channels by name; plug-ins are added."""
