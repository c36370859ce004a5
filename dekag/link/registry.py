"""The kinds of fading by name: those of the library, and `Channel`, from which one's own derive.

Imports no torch, so that whoever only validates names starts quickly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dekag.link.conditions import LinkConditions


class Channel(ABC):
    """A kind of fading. Noise, CSI, pilots and equalising are the library's, as for every other.

    Attributes:
        name: what `LinkConditions.fading` calls it: lower-case letters, digits, - and _.
    """

    name: str

    @abstractmethod
    def gains(
        self, conditions: LinkConditions, generator: torch.Generator, channel_uses: int
    ) -> torch.Tensor:
        """The gains that one transmission meets: complex64 of mean power 1 over many transmissions.

        Args:
            conditions: of the transmission.
            generator: on the CPU, the only source of randomness. It depends on the seed of the request alone,
                so that fades are the same at every SNR and rate if the same is drawn.
            channel_uses: K, symbols of the transmission.

        Returns:
            (8,), one for each block of neighbouring symbols, or (K,), one for each symbol; the latter cannot
            be estimated from pilots.
        """

    def los_power_fraction(self, conditions: LinkConditions) -> float:
        """Share of the mean power on a direct path, 0 to 1: 1 without fading, 0 for Rayleigh.

        Adapters and rate control know a channel by this and by its delay spread.
        """
        return 0.0

    def tau_rms_s(self, conditions: LinkConditions) -> float:
        """RMS delay spread, s: how soon over frequency gains differ; 0 without fading."""
        return conditions.tau_rms_s


class _BuiltIn(Channel):
    """A kind that comes with the library.

    Args:
        name: its name.
        k_db: power of the direct path over the scattered ones, dB; None: there is no direct path.
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


CHANNELS: dict[str, Channel] = {
    each.name: each
    for each in (
        _BuiltIn("awgn", math.inf),
        _BuiltIn("rayleigh"),
        _BuiltIn("rician"),
        _BuiltIn("tdl-a"),
        _BuiltIn("tdl-b"),
        _BuiltIn("tdl-c"),
        _BuiltIn("tdl-d", 13.3),  # as 3GPP TR 38.901 has it
        _BuiltIn("tdl-e", 22.0),
        _BuiltIn("trace", math.inf),
    )
}
"""By name; plug-ins are added."""
