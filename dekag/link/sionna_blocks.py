"""The parts of Sionna that the link uses, or is compared with.

Import it inside functions, as the first import takes seconds.
Importing Sionna reseeds torch's global generators from the clock, which would make later draws of the caller
irreproducible; so their states are restored. All blocks are given a device, as Sionna otherwise uses the
first GPU.
"""

from __future__ import annotations

import torch

with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
    from sionna.phy import SPEED_OF_LIGHT
    from sionna.phy.channel import KroneckerModel, cir_to_ofdm_channel
    from sionna.phy.channel.tr38901 import TDL
    from sionna.phy.fec.crc import CRCEncoder
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
    from sionna.phy.mapping import Demapper, Mapper, SymbolLogits2LLRs, pam
    from sionna.phy.mimo import lmmse_equalizer, zf_equalizer
    from sionna.phy.utils import complex_normal

__all__ = [
    "SPEED_OF_LIGHT",
    "CRCEncoder",
    "Demapper",
    "KroneckerModel",
    "LDPC5GDecoder",
    "LDPC5GEncoder",
    "Mapper",
    "SeededTDL",
    "SymbolLogits2LLRs",
    "cir_to_ofdm_channel",
    "complex_normal",
    "lmmse_equalizer",
    "pam",
    "zf_equalizer",
]


class SeededTDL(TDL):  # type: ignore[misc]
    """Sionna's tapped delay line with its own `generator` instead of Sionna's global one."""

    generator: torch.Generator | None = None

    @property
    def torch_rng(self) -> torch.Generator:
        """The generator of all draws of the block."""
        if self.generator is None:
            raise RuntimeError("set the generator of a SeededTDL before it draws")
        return self.generator
