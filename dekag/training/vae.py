"""Training of the autoencoder that cloud, edge and user share: 128x128 pixels to a 4x16x16 latent.

Trained on random crops, because steps matter more than pixels. After training the per-channel mean and
variance of the latents are folded into the two 1x1 convolutions around the bottleneck, so that latents
have zero mean and unit variance and plain diffusers pipelines need no scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F
from tqdm import tqdm

from dekag.training.data import batches, psnr_db, rendered_scenes, to_tensor
from dekag.training.loop import TrainingRun

SCENES = 24_000
CROP = 64
BATCH = 8
LEARNING_RATE = 2e-3
REFINEMENT_LEARNING_RATE = 5e-4


def new_vae() -> Any:
    """An untrained AutoencoderKL: 8x smaller, 4 latent channels, posterior log-variance started at -4."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=128,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -4.0
    return vae


def random_crops(pixels: Any, generator: torch.Generator, size: int, count: int) -> torch.Tensor:
    """`count` random square crops of random scenes, (count, 3, size, size) in [-1, 1]."""
    height = pixels.shape[1]
    index = torch.randint(len(pixels), (count,), generator=generator).tolist()
    top = (torch.randint((height - size) // 8 + 1, (count,), generator=generator) * 8).tolist()
    left = (torch.randint((height - size) // 8 + 1, (count,), generator=generator) * 8).tolist()
    crops = [
        torch.from_numpy(pixels[i, y : y + size, x : x + size].copy())
        for i, y, x in zip(index, top, left, strict=True)
    ]
    return torch.stack(crops).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """4 MSE + 0.5 L1 + 0.25 L1 of the image gradients (edges kept sharp)."""
    error = output - target
    gradient = (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()
    return 4 * F.mse_loss(output, target) + 0.5 * error.abs().mean() + 0.25 * gradient


@torch.inference_mode()
def held_out_psnr(vae: Any, cache: Path, count: int = 256) -> torch.Tensor:
    """PSNR (dB) of each of `count` validation scenes after encoding to the posterior's mean and decoding."""
    pixels = rendered_scenes(cache, "validation", count)
    values = []
    for part in batches(count, 32):
        images = to_tensor(pixels[part])
        values.append(psnr_db(vae.decode(vae.encode(images).latent_dist.mean).sample, images))
    return torch.cat(values)


@torch.inference_mode()
def normalise_latents(vae: Any, pixels: Any, count: int = 2000) -> None:
    """Fold the latents' per-channel mean and deviation into quant_conv and post_quant_conv, in place."""
    means = torch.cat([vae.encode(to_tensor(pixels[part])).latent_dist.mean for part in batches(count, 32)])
    mean, deviation = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    vae.quant_conv.weight[:4].div_(deviation.view(4, 1, 1, 1))
    vae.quant_conv.bias[:4].sub_(mean).div_(deviation)
    vae.quant_conv.bias[4:].sub_(2 * deviation.log())
    vae.post_quant_conv.bias.add_(vae.post_quant_conv.weight[:, :, 0, 0] @ mean)
    vae.post_quant_conv.weight.mul_(deviation.view(1, 4, 1, 1))


def train_vae(folder: Path, cache: Path, *, steps: int, seed: int, scenes: int = SCENES) -> Any:
    """Train for `steps`, resuming what `folder` holds; returns the averaged, normalised model."""
    torch.manual_seed(seed)
    pixels = rendered_scenes(cache, "train", scenes)
    vae = new_vae()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.98), fused=True
    )
    run = TrainingRun(folder, vae, [optimizer], seed=seed)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        images = random_crops(pixels, generator, CROP, BATCH)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = reconstruction_loss(output, images)
        return {"loss": loss + 1e-4 * posterior.kl().mean() / (CROP * CROP / 64), "reconstruction": loss}

    def report(at: int) -> None:
        tqdm.write(f"step {at}: held-out PSNR {held_out_psnr(run.average, cache, 64).mean():.2f} dB")

    run.run(step, steps, on_save=report)
    normalise_latents(run.average, pixels)
    return run.average


def refine_decoder(
    folder: Path, cache: Path, vae: Any, latents: torch.Tensor, *, steps: int, seed: int, batch: int = 2
) -> Any:
    """Train the decoder alone on whole pictures; latents (n, 4, 16, 16) stay what they are.

    The loss is the mean over pictures of the logarithm of their squared error, which is PSNR itself, plus a
    little of the reconstruction loss. Whole pictures give the group norms the statistics they will meet.
    Whatever was trained on the latents (generators, codec) stays valid.
    """
    pixels = rendered_scenes(cache, "train", len(latents))
    vae.requires_grad_(False)
    trainable = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainable, lr=REFINEMENT_LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    run = TrainingRun(folder, vae, [optimizer], seed=seed)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(latents), (batch,), generator=generator)
        images = to_tensor(pixels[pick.numpy()])
        output = vae.decode(latents[pick].float()).sample
        error = (output - images).square().mean(dim=(1, 2, 3))
        loss = error.add(1e-5).log().mean() + reconstruction_loss(output, images)
        return {"loss": loss, "psnr_db": psnr_db(output.detach(), images).mean()}

    def report(at: int) -> None:
        tqdm.write(f"step {at}: held-out PSNR {held_out_psnr(run.average, cache, 64).mean():.2f} dB")

    run.run(step, steps, on_save=report)
    return run.average
