"""Training of codecs on an ideal channel: the one that adapters adapt, and that of unaligned deliveries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dekag.codec import JsccCodec
from dekag.training.examples import Examples, draw_mixed
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon

BATCH = 64
COMMITMENT = 0.25
LOWEST_RATE = 1 / 8
"""Of the rates that a codec for every rate is trained at, relative to the highest one."""
END_SHARE = 0.15
"""Of the images at each end of these rates: without it, the last symbols would hardly ever be sent."""


def train_codec(
    folder: Path,
    examples: Sequence[Examples],
    *,
    steps: int,
    seed: int,
    crop: int | None = None,
    every_rate: bool = False,
    bf16: bool = False,
    show: bool = True,
    start: JsccCodec | None = None,
    **config: Any,
) -> JsccCodec:
    """Train on sets of examples, in equal parts, resuming from `folder`; returns the averaged codec.

    The loss is the latent reconstruction error, with the straight-through gradient for quantisation, plus a
    commitment term that pulls the features towards their constellation points.

    Args:
        folder: folder of the checkpoints.
        examples: latents to send; their channels are the codec's.
        steps: total optimiser steps.
        seed: seed of all randomness.
        crop: train on random squares of so many latent pixels a side; default: on whole latents.
        every_rate: train at log-uniform rates down to LOWEST_RATE of the highest, and END_SHARE of the images
            at each end, instead of at the highest. The loss is then the mean logarithm of each image's error,
            as errors differ by rate.
        bf16: run the convolutions in bfloat16.
        show: show a progress bar.
        start: go on from a copy of this codec; default: from random weights.
        config: arguments of JsccCodec, without a `start`. With a `text_width`, all examples must have prompts
            of that width.
    """
    torch.manual_seed(seed)
    codec = copy.deepcopy(start) if start else JsccCodec(examples[0].latents.shape[1], **config)
    codec.requires_grad_(True).train()
    matrices = [p for p in codec.parameters() if p.ndim in (2, 4)]
    others = [p for p in codec.parameters() if p.ndim not in (2, 4)]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, 2e-3, weight_decay=1e-4),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0, fused=True),
    ]
    run = TrainingRun(folder, codec, optimizers, seed=seed, ema_decay=0.998)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        clean, text = draw_mixed(examples, BATCH, generator, crop=crop)
        shape = (clean.shape[1], clean.shape[2], clean.shape[3])
        most = codec.max_channel_uses(shape)
        counts: list[int] | None = None
        if every_rate:
            uniform = torch.rand(BATCH, generator=generator)
            rates = LOWEST_RATE ** ((uniform - END_SHARE) / (1 - 2 * END_SHARE)).clamp(0, 1)
            counts = (rates * most).round().int().clamp(1, most).tolist()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = codec.features(clean, counts or most, text=text)
        symbols = codec.quantize(features.detach(), channel_uses=counts)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            received = codec.decode(features + (symbols - features).detach(), shape, text=text)
        error = (received - clean).square().mean(dim=(1, 2, 3))
        reconstruction = (error + 1e-4).log().mean() if every_rate else error.mean()
        commitment = (features - symbols).abs().square().mean()
        return {"loss": reconstruction + COMMITMENT * commitment, "error": error.mean()}

    run.run(step, steps, show=show)
    average: JsccCodec = run.average
    return average


@torch.inference_mode()
def clean_latent_snr_db(codec: JsccCodec, examples: Examples) -> float:
    """Signal-to-error ratio (dB) of latents sent at the highest rate over an ideal channel."""
    clean = examples.latents.float()
    text = None if examples.text is None else examples.text.float()
    shape = (clean.shape[1], clean.shape[2], clean.shape[3])
    received = codec.decode(codec.encode(clean, codec.max_channel_uses(shape), text=text), shape, text=text)
    ratio = clean.square().mean() / (received - clean).square().mean()
    return round(float(10 * ratio.log10()), 2)
