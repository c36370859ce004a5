"""Energy of the processor, as its counters say (RAPL), where the machine has them and lets them be read.

The counters of all processor packages include whatever else runs on the machine, and wrap around. A counter
shows that once, not twice: after an interval in which MOST_W would wrap it around, there is no value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

POWERCAP = Path("/sys/class/powercap")
NO_COUNTERS = "No energy: this machine has no counters of the processor (RAPL), or they need root to be read."
MOST_W = 1000
"""More than any processor package draws, W. A usual counter, of 262 kJ, tells of at most 262 s."""
_MICRO = 1e-6


@dataclass(frozen=True)
class _Package:
    """One processor package: its counter, uJ, and the value at which that wraps around."""

    counter: Path
    wraps_at: int


class EnergyMeter:
    """Joules since the last reading.

    Args:
        powercap: where the kernel shows its counters.

    Example:
        >>> from pathlib import Path
        >>> from dekag.energy import EnergyMeter
        >>> EnergyMeter(Path("/nowhere")).joules() is None
        True
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = []
        # also on AMD; a package has parts ("core"), and "psys", the platform, contains the packages
        for folder in sorted(powercap.glob("intel-rapl:*")):
            try:
                if not (folder / "name").read_text().startswith("package"):
                    continue
                wraps_at = int((folder / "max_energy_range_uj").read_text())
                (folder / "energy_uj").read_text()  # root only, on most systems
            except (OSError, ValueError):
                continue
            self._packages.append(_Package(folder / "energy_uj", wraps_at))
        self._last, self._read_at_s = self._read(), monotonic()

    @property
    def readable(self) -> bool:
        """Whether the machine has counters that can be read."""
        return bool(self._packages)

    def joules(self) -> float | None:
        """Energy since the last call, or since the meter was made.

        None where there is no counter, and after so long that a counter may have wrapped around unseen.
        """
        if not self._packages:
            return None
        last, self._last = self._last, self._read()
        before_s, self._read_at_s = self._read_at_s, monotonic()
        most = MOST_W * (self._read_at_s - before_s) / _MICRO
        if any(most >= package.wraps_at for package in self._packages):
            return None
        used = [
            (now - then) % package.wraps_at
            for now, then, package in zip(self._last, last, self._packages, strict=True)
        ]
        return _MICRO * sum(used)

    def _read(self) -> list[int]:
        return [int(package.counter.read_text()) for package in self._packages]
