"""Training of the base codec, the "unaligned" transmission knowledge: ideal channel, highest rate."""

from __future__ import annotations

from pathlib import Path

import torch

from dekag.codec import JsccCodec
from dekag.training.data import picked
from dekag.training.loop import TrainingRun

BATCH = 64
COMMITMENT = 0.25


def train_codec(
    folder: Path,
    latents: torch.Tensor,
    *,
    steps: int,
    seed: int,
    crop: int | None = None,
    width: int = 64,
    blocks: int = 3,
) -> JsccCodec:
    """Train on latents (n, channels, h, w), resuming from `folder`; returns the averaged codec.

    The loss is the latent reconstruction error, with the straight-through gradient for quantisation, plus a
    commitment term that pulls the features towards their constellation points.

    Args:
        folder: folder of the checkpoints.
        latents: latents to send; their channels are the codec's.
        steps: total optimiser steps.
        seed: seed of all randomness.
        crop: train on random squares of so many latent pixels a side; default: on whole latents.
        width: channels of the hidden layers.
        blocks: residual blocks in the encoder and in the decoder.
    """
    torch.manual_seed(seed)
    codec = JsccCodec(latent_channels=latents.shape[1], width=width, blocks=blocks)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=2e-3, weight_decay=1e-4, fused=True)
    run = TrainingRun(folder, codec, [optimizer], seed=seed, ema_decay=0.998)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(latents), (BATCH,), generator=generator)
        clean = picked(latents, pick, crop, generator)
        latent_shape = (clean.shape[1], clean.shape[2], clean.shape[3])
        features = codec.features(clean, codec.max_channel_uses(latent_shape))
        symbols = codec.quantize(features.detach())
        received = codec.decode(features + (symbols - features).detach(), latent_shape)
        reconstruction = (received - clean).square().mean()
        commitment = (features - symbols).abs().square().mean()
        return {"loss": reconstruction + COMMITMENT * commitment, "reconstruction": reconstruction}

    run.run(step, steps)
    average: JsccCodec = run.average
    return average


@torch.inference_mode()
def clean_latent_snr_db(codec: JsccCodec, latents: torch.Tensor) -> float:
    """Signal-to-error ratio (dB) of latents (n, c, h, w) sent at the highest rate over an ideal channel."""
    clean = latents.float()
    shape = (clean.shape[1], clean.shape[2], clean.shape[3])
    received = codec.decode(codec.encode(clean, codec.max_channel_uses(shape)), shape)
    ratio = clean.square().mean() / (received - clean).square().mean()
    return round(float(10 * ratio.log10()), 2)
