"""Puts the models, the sweeps and the measured figures into the wheel, beside the code: `dekag.paths`.

An editable installation gets none, as it finds them in the checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = (
    "models/stickers", "models/paper", "models/NOTICE", "sweeps", "results/headline.json",
    "results/city/bench-deliveries.json",
)  # fmt: skip


class Shipped(BuildHookInterface):  # type: ignore[misc, type-arg]
    """hatchling finds it by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add what ships to a wheel that is not an editable one."""
        if version == "standard":
            for place in SHIPPED:
                build_data["force_include"][str(Path(self.root, place))] = f"dekag/shipped/{place}"
