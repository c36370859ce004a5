"""What is measured against: the semantic delivery as library calls, in one process and without services."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dekag.generation.images import Pixels, to_png
from dekag.generation.side_information import SideInformation
from dekag.link import LinkConditions
from dekag.metrics.image import psnr_db
from dekag.pipeline import SemanticLink
from services.user.references import References

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

    What the services do once, this does once too: it traces the denoiser, keeps the states of prompts, and
    keeps images as they were sent. Like them, it decodes images one by one. For one thread at a time, as the
    models are.
    """

    def __init__(self, profile_name: str) -> None:
        self._link = SemanticLink.load(profile_name)
        self._link.generator.trace()
        pipeline = self._link.generator.pipeline
        self._prompts = SideInformation(pipeline.tokenizer, pipeline.text_encoder)
        self._references = References()

    def deliver(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[ReceivedImage]:
        """An image of each prompt and seed; several are drawn and sent as one batch."""
        return self.send(self.latents(prompts, seeds), prompts, seeds)

    def latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """(B, channels, h, w) float32: what the edge draws."""
        return self._link.generator.batch(prompts, seeds)

    def send(
        self, latents: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[ReceivedImage]:
        """Latents (B, channels, h, w) encoded, sent through channels of their own, decoded and scored."""
        text = [self._states(prompt) for prompt in prompts]
        result = self._link.send(latents, [CONDITIONS] * len(seeds), seeds, cbr=CBR, text=text)
        shown = [self._decoded(each) for each in result.latents.split(1)]
        sent = [self._reference(each) for each in latents.split(1)]
        return [
            ReceivedImage(to_png(mine), psnr_db(mine, other)) for mine, other in zip(shown, sent, strict=True)
        ]

    def _states(self, prompt: str) -> torch.Tensor | None:
        """What the codec reads of a prompt; None if it reads nothing."""
        return self._prompts.states(prompt) if self._link.sender.codec.text_width else None

    def _decoded(self, latents: torch.Tensor) -> Pixels:
        """The image of one latent (1, channels, h, w)."""
        pixels: Pixels = self._link.generator.decoder.decode(latents)[0]
        return pixels

    def _reference(self, latents: torch.Tensor) -> Pixels:
        """The image of one latent as sent; a repeated one is decoded once, as the user service does."""
        given, shape = latents.numpy().tobytes(), tuple(latents.shape)
        if (pixels := self._references.get(given, shape)) is None:
            pixels = self._decoded(latents)
            self._references.keep(given, shape, pixels)
        return pixels


def as_json(image: ReceivedImage) -> dict[str, Any]:
    """What the servers that are measured against answer with."""
    return {"b64_json": base64.b64encode(image.png).decode(), "psnr_db": image.psnr_db}
