"""The radio link: fading, noise, equalisation and the conventional digital baseline, on Sionna.

This file imports neither torch nor Sionna, so that whoever only validates conditions starts quickly.
"""

from __future__ import annotations

from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS, LinkConditions
from dekag.link.registry import Channel

__all__ = ["BANDWIDTH_HZ", "BLOCKS", "Channel", "LinkConditions"]
