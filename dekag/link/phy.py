"""The parts of Sionna that the link uses. Import inside functions: the first import takes seconds.

Importing Sionna reseeds torch's global generators from the clock, which would make whatever the caller
draws next differ from run to run; their states are kept. Every block below is told its device, as Sionna
otherwise moves to the first GPU it finds.
"""

from __future__ import annotations

import torch

with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
    from sionna.phy.channel import KroneckerModel
    from sionna.phy.fec.crc import CRCEncoder
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Demapper, Mapper
    from sionna.phy.utils import complex_normal

__all__ = [
    "CRCEncoder",
    "Demapper",
    "KroneckerModel",
    "LDPC5GDecoder",
    "LDPC5GEncoder",
    "Mapper",
    "complex_normal",
]
