"""What is measured against: the semantic delivery as library calls, in one process and without services."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dekag.cala import condition_vector
from dekag.cala.aligned import AlignedCodec
from dekag.cala.conditions import block_snr_db
from dekag.codec import LatentCodec
from dekag.generation.images import to_png
from dekag.generation.models import Generator
from dekag.generation.profile import load_profile
from dekag.link import LinkConditions
from dekag.link.channel import transmit
from dekag.link.equalizer import mmse_equalize
from dekag.metrics.image import psnr_db

CBR = 1 / 96
SIDE = 128  # pixels
CONDITIONS = LinkConditions(snr_db=10.0, fading="rayleigh")
LINK = {"snr_db": CONDITIONS.snr_db, "fading": CONDITIONS.fading, "cbr": CBR}
"""The same link as REST names it."""


class Picture(NamedTuple):
    """A received picture as PNG, and its PSNR against what was sent, dB."""

    png: bytes
    psnr_db: float


class OneProcess:
    """The semantic delivery as the services do it, from prompt to PNG with its PSNR.

    For one thread at a time, as the models are.
    """

    def __init__(self, profile_name: str) -> None:
        profile = load_profile(profile_name)
        self._edge = Generator.from_profile(profile.edge)
        self._codec = LatentCodec.load(profile.codec)
        self._aligned = None
        if profile.adapters is not None:
            self._aligned = AlignedCodec.load(profile.codec, profile.adapters)

    def deliver(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
        """A picture of each prompt and seed; several are drawn, sent and decoded as one batch."""
        return self.send(self.latents(prompts, seeds), seeds)

    def latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """(B, channels, h, w) float32: what the edge draws."""
        return self._edge.batch(prompts, seeds, width=SIDE, height=SIDE)

    @torch.inference_mode()
    def send(self, latents: torch.Tensor, seeds: Sequence[int]) -> list[Picture]:
        """Latents (B, channels, h, w) encoded, sent through channels of their own, decoded and judged."""
        shape = (latents.shape[1], latents.shape[2], latents.shape[3])
        count, channel_uses = len(seeds), round(CBR * 3 * SIDE * SIDE)
        links = [CONDITIONS] * count
        if self._aligned is None:
            reception = transmit(self._codec.encode(latents, channel_uses), links, seeds)
            received = self._codec.decode(mmse_equalize(reception).symbols, shape)
        else:
            told = condition_vector(CBR, CONDITIONS, at="sender")
            symbols = self._aligned.encode(latents, [channel_uses] * count, torch.stack([told] * count))
            reception = transmit(symbols, links, seeds)
            seen = [
                condition_vector(CBR, CONDITIONS, at="receiver", block_snr_db=blocks)
                for blocks in block_snr_db(reception.gains, reception.no)
            ]
            received = self._aligned.decode(mmse_equalize(reception).symbols, shape, torch.stack(seen))
        shown, sent = self._edge.decoder.decode(received), self._edge.decoder.decode(latents)
        return [Picture(to_png(mine), psnr_db(mine, other)) for mine, other in zip(shown, sent, strict=True)]


def as_json(picture: Picture) -> dict[str, Any]:
    """What the servers that are measured against answer with."""
    return {"b64_json": base64.b64encode(picture.png).decode(), "psnr_db": picture.psnr_db}
