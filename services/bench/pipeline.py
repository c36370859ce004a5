"""What is measured against: the semantic delivery as library calls, in one process and without services."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dekag.generation.images import to_png
from dekag.link import LinkConditions
from dekag.metrics.image import psnr_db
from dekag.pipeline import SemanticLink

CBR = 1 / 96
CONDITIONS = LinkConditions(snr_db=10.0, fading="rayleigh")
LINK = {"snr_db": CONDITIONS.snr_db, "fading": CONDITIONS.fading, "cbr": CBR}
"""The same link as REST names it."""


class ReceivedImage(NamedTuple):
    """A received image as PNG, and its PSNR against what was sent, dB."""

    png: bytes
    psnr_db: float


class InProcessPipeline:
    """The semantic delivery as the services do it, from prompt to PNG with its PSNR.

    For one thread at a time, as the models are.
    """

    def __init__(self, profile_name: str) -> None:
        self._link = SemanticLink.load(profile_name)

    def deliver(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[ReceivedImage]:
        """An image of each prompt and seed; several are drawn, sent and decoded as one batch."""
        return self.send(self.latents(prompts, seeds), prompts, seeds)

    def latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """(B, channels, h, w) float32: what the edge draws."""
        return self._link.generator.batch(prompts, seeds)

    def send(
        self, latents: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[ReceivedImage]:
        """Latents (B, channels, h, w) encoded, sent through channels of their own, decoded and scored."""
        text = [self._link.side_information(prompt) for prompt in prompts]
        result = self._link.send(latents, [CONDITIONS] * len(seeds), seeds, cbr=CBR, text=text)
        decode = self._link.generator.decoder.decode
        shown, sent = decode(result.latents), decode(latents)
        return [
            ReceivedImage(to_png(mine), psnr_db(mine, other)) for mine, other in zip(shown, sent, strict=True)
        ]


def as_json(image: ReceivedImage) -> dict[str, Any]:
    """What the servers that are measured against answer with."""
    return {"b64_json": base64.b64encode(image.png).decode(), "psnr_db": image.psnr_db}
