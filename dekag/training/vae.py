"""Training of the autoencoder that cloud, edge and user share: latents 8x smaller than the image, 4 channels.

Training starts on crops, because the number of steps matters more than the number of pixels: many small
crops, two thirds of them selected for detail, and a few larger ones. It continues on whole images, so that
the group norms adapt to their statistics; an autoencoder trained on crops only tints plain backgrounds.
Finally, the mean and standard deviation of each latent channel are folded into the two 1x1 convolutions
around the bottleneck, so that latents have zero mean and unit variance and plain diffusers pipelines need no
scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from dekag.generation.autoencoder import decode
from dekag.training.data import Pixels, batches, psnr_db, to_tensor
from dekag.training.device import CPU, multiplying
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon

CHANNELS = (16, 32, 64, 128)
NORM_GROUPS = 2
FACTOR = 8
# ((side, crops per step), probability); the number of pixels per step is always the same
CROPS = (((64, 8), 0.75), ((128, 2), 0.25))
DETAILED_SHARE = 0.65
CANDIDATES = 4
MUON_LEARNING_RATE = 4e-3
ADAMW_LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
REFINEMENT_LEARNING_RATE = 5e-4


def new_vae(size: int = 256, channels: tuple[int, ...] = CHANNELS) -> Any:
    """An untrained AutoencoderKL: 8x smaller, 4 latent channels, initial posterior log-variance -4."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=NORM_GROUPS,
        sample_size=size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -4.0
    return vae


@torch.no_grad()
def widened(vae: Any, channels: tuple[int, ...], *, seed: int) -> Any:
    """A wider AutoencoderKL initialised from `vae`: Net2Net (Chen et al. 2016).

    New channels are copies of old ones; outgoing weights are split between copies at random, so that copies
    diverge in training. The output is the same if every width is a multiple of the old one, and nearly the
    same otherwise, because a group norm then counts some channels twice.
    """
    generator = torch.Generator().manual_seed(seed)
    old = tuple(vae.config.block_out_channels)
    copied = dict(zip(old, map(_copied, old, channels), strict=True))
    wide = new_vae(vae.config.sample_size, channels)
    weights = wide.state_dict()
    for name, weight in vae.state_dict().items():
        layer, new = name.rsplit(".", 1)[0], weight
        if layer not in ("encoder.conv_out", "decoder.conv_out", "quant_conv", "post_quant_conv"):
            new = new[copied[weight.shape[0]]]
        if weight.ndim == 4 and layer not in (
            "encoder.conv_in",
            "decoder.conv_in",
            "quant_conv",
            "post_quant_conv",
        ):
            index = copied[weight.shape[1]]
            shares = 0.75 + 0.5 * torch.rand(len(new), len(index), generator=generator)
            sums = torch.zeros(len(new), weight.shape[1]).index_add_(1, index, shares)
            new = new[:, index] * (shares / sums[:, index])[:, :, None, None]
        weights[name] = new
    wide.load_state_dict(weights)
    return wide


def _copied(old: int, new: int) -> torch.Tensor:
    """Index of the old channel that each of `new` channels copies; copies stay in the same norm group."""
    groups = torch.arange(old).view(NORM_GROUPS, -1)
    return torch.cat([group[torch.arange(new // NORM_GROUPS) % len(group)] for group in groups])


def random_crops(
    pixels: Pixels, generator: torch.Generator, size: int, count: int, detailed_share: float = 0.0
) -> torch.Tensor:
    """`count` random square crops of random scenes, (count, 3, size, size) in [-1, 1].

    On average, a fraction `detailed_share` of them are the most detailed of CANDIDATES random crops.
    """
    places = (pixels.shape[1] - size) // FACTOR + 1

    def draw(limit: int) -> list[int]:
        return torch.randint(limit, (count * CANDIDATES,), generator=generator).tolist()

    index, top, left = draw(len(pixels)), draw(places), draw(places)
    picked = (torch.rand(count, generator=generator) < detailed_share).tolist()
    crops = []
    for n in range(count):
        first = n * CANDIDATES
        candidates = [
            torch.from_numpy(pixels[i, y * FACTOR : y * FACTOR + size, x * FACTOR : x * FACTOR + size].copy())
            for i, y, x in [
                (index[k], top[k], left[k]) for k in range(first, first + (CANDIDATES if picked[n] else 1))
            ]
        ]
        crops.append(max(candidates, key=_detail) if picked[n] else candidates[0])
    return torch.stack(crops).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _detail(crop: torch.Tensor) -> int:
    """Sum of absolute differences between neighbouring pixels of (height, width, 3) uint8."""
    wide = crop.to(torch.int16)
    return int((wide[1:] - wide[:-1]).abs().sum() + (wide[:, 1:] - wide[:, :-1]).abs().sum())


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """4 MSE + L1 + 0.5 L1 of the image gradients, which keeps edges sharp."""
    error = output - target
    gradient = (error[..., 1:] - error[..., :-1]).abs().mean() + (
        error[..., 1:, :] - error[..., :-1, :]
    ).abs().mean()
    return 4 * error.square().mean() + error.abs().mean() + 0.5 * gradient


def optimizers(vae: Any, *, scale: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the inner convolutions; AdamW for the outer ones, norms and biases."""
    outer = ("conv_in.", "conv_out.", "quant_conv.")
    named = [(name, p) for name, p in vae.named_parameters() if p.requires_grad]
    inner = [p for name, p in named if p.ndim == 4 and not any(part in name for part in outer)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.AdamW(
            rest, lr=scale * ADAMW_LEARNING_RATE, weight_decay=1e-4, betas=(0.9, 0.98), fused=True
        ),
        Muon(inner, lr=scale * MUON_LEARNING_RATE, iterations=4),
    ]


def _reconstruct(vae: Any, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, Any]:
    """Images reconstructed from latents sampled from the posterior, and the posterior."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
    return vae.decode(posterior.mean + posterior.std * noise).sample.float(), posterior


@torch.inference_mode()
def reconstructed(vae: Any, pixels: Pixels, *, batch: int = 8) -> Pixels:
    """Pixels (n, height, width, 3) uint8, reconstructed from the means of the posterior."""
    parts = []
    for part in batches(len(pixels), batch):
        images = _channels_last(to_tensor(pixels[part]), vae.device)
        out = vae.decode(vae.encode(images).latent_dist.mean).sample
        parts.append(out.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    result: Pixels = torch.cat(parts).contiguous().numpy()
    return result


@torch.inference_mode()
def held_out_psnr(vae: Any, pixels: Pixels, *, batch: int = 8) -> torch.Tensor:
    """PSNR (dB) of each of pixels (n, height, width, 3) after encoding and decoding."""
    values = []
    for part in batches(len(pixels), batch):
        images = _channels_last(to_tensor(pixels[part]), vae.device)
        values.append(psnr_db(vae.decode(vae.encode(images).latent_dist.mean).sample, images).cpu())
    return torch.cat(values)


@torch.inference_mode()
def normalise_latents(vae: Any, pixels: Pixels, count: int = 1000) -> None:
    """Fold mean and deviation of the latent channels into quant_conv and post_quant_conv, in place."""
    parts = batches(min(count, len(pixels)), 16)
    images = (_channels_last(to_tensor(pixels[part]), vae.device) for part in parts)
    means = torch.cat([vae.encode(each).latent_dist.mean for each in images])
    mean, deviation = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    vae.quant_conv.weight[:4].div_(deviation.view(4, 1, 1, 1))
    vae.quant_conv.bias[:4].sub_(mean).div_(deviation)
    vae.quant_conv.bias[4:].sub_(2 * deviation.log())
    vae.post_quant_conv.bias.add_(vae.post_quant_conv.weight[:, :, 0, 0] @ mean)
    vae.post_quant_conv.weight.mul_(deviation.view(1, 4, 1, 1))


def _channels_last(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    # this layout is faster on CPUs and on GPUs
    return images.to(device).contiguous(memory_format=torch.channels_last)


def _report(run: TrainingRun[Any], held_out: Pixels) -> Callable[[int], None]:
    def report(at: int) -> None:
        psnr = held_out_psnr(run.average, held_out).mean()
        tqdm.write(f"step {at}, {run.seconds:.0f} s: held-out PSNR {psnr:.2f} dB")

    return report


def train_vae(
    folder: Path,
    pixels: Pixels,
    held_out: Pixels,
    *,
    steps: int,
    seed: int,
    start: Any = None,
    channels: tuple[int, ...] = CHANNELS,
    scale: int = 1,
    device: torch.device = CPU,
    bf16: bool = False,
    save_every_s: float = 240.0,
) -> Any:
    """Train on crops for `steps`, resuming from `folder`; returns the averaged model.

    The learning rate does not fall here but in `refine_vae`, which continues the training.

    Args:
        folder: folder of the checkpoints.
        pixels: images to train on, (n, size, size, 3) uint8.
        held_out: images for the reported PSNR, in the same form.
        steps: total optimiser steps.
        seed: seed of the initial weights and of every step.
        start: an AutoencoderKL to continue from, widened if it is narrower; default: a new one.
        channels: width of each level.
        scale: factor by which to increase the number of crops per step, for a GPU.
        device: training device.
        bf16: run matrix products in bfloat16.
        save_every_s: time between two checkpoints, s.
    """
    torch.manual_seed(seed)
    size = pixels.shape[1]
    vae = new_vae(size, channels) if start is None else start
    if tuple(vae.config.block_out_channels) != channels:
        vae = widened(vae, channels, seed=seed)
    vae.register_to_config(sample_size=size)
    vae = vae.to(device, memory_format=torch.channels_last)
    run = TrainingRun(folder, vae, optimizers(vae), seed=seed)
    odds = torch.tensor([odds for _, odds in CROPS])

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        side, count = CROPS[int(torch.multinomial(odds, 1, generator=generator))][0]
        side = min(side, pixels.shape[1])
        crops = random_crops(pixels, generator, side, count * scale, DETAILED_SHARE)
        images = _channels_last(crops, device)
        with multiplying(device, bf16):
            output, posterior = _reconstruct(vae, images, generator)
        loss = reconstruction_loss(output, images)
        kl = posterior.kl().mean() / (side * side / FACTOR**2)
        return {"loss": loss + KL_WEIGHT * kl, "reconstruction": loss}

    run.run(
        step,
        steps,
        cooldown_fraction=0.0,
        save_every_s=save_every_s,
        on_save=_report(run, held_out),
    )
    return run.average


def refine_vae(
    folder: Path,
    pixels: Pixels,
    held_out: Pixels,
    vae: Any,
    *,
    steps: int,
    seed: int,
    batch: int = 1,
    device: torch.device = CPU,
    bf16: bool = False,
    save_every_s: float = 240.0,
) -> Any:
    """Train all of `vae` on whole images while the learning rate falls to zero; returns the averaged model.

    The loss also contains the mean logarithm of the squared error of each image, which corresponds to PSNR,
    so that images with small errors count as much as images with large ones.
    """
    vae = vae.requires_grad_(True).to(device, memory_format=torch.channels_last)
    run = TrainingRun(folder, vae, optimizers(vae, scale=0.5), seed=seed, ema_decay=0.998)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (batch,), generator=generator)
        images = _channels_last(to_tensor(pixels[pick.sort().values.numpy()]), device)
        with multiplying(device, bf16):
            output, posterior = _reconstruct(vae, images, generator)
        loss = refinement_loss(output, images)
        kl = posterior.kl().mean() / (images.shape[-1] ** 2 / FACTOR**2)
        return {"loss": loss + KL_WEIGHT * kl, "psnr_db": psnr_db(output.detach(), images).mean()}

    run.run(step, steps, cooldown_fraction=1.0, save_every_s=save_every_s, on_save=_report(run, held_out))
    return run.average


def refinement_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The reconstruction loss plus a tenth of the mean logarithm of the squared error of each image."""
    error = (output - target).square().mean(dim=(1, 2, 3))
    return reconstruction_loss(output, target) + 0.1 * error.add(1e-5).log().mean()


def refine_decoder(
    folder: Path,
    pixels: Pixels,
    held_out: Pixels,
    vae: Any,
    latents: torch.Tensor,
    *,
    steps: int,
    seed: int,
    batch: int = 2,
    device: torch.device = CPU,
) -> Any:
    """Train only the decoder, on whole images; latents (n, 4, h, w) stay unchanged.

    The loss is the mean logarithm of the squared error of each image, which corresponds to PSNR, plus the
    reconstruction loss. Models trained on the latents (generators, codec) stay valid.
    """
    vae = vae.requires_grad_(False).to(device, memory_format=torch.channels_last)
    trainable = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainable, lr=REFINEMENT_LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    run = TrainingRun(folder, vae, [optimizer], seed=seed)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(latents), (batch,), generator=generator)
        images = _channels_last(to_tensor(pixels[pick.numpy()]), device)
        output = decode(vae, latents[pick].float().to(device))
        error = (output - images).square().mean(dim=(1, 2, 3))
        loss = error.add(1e-5).log().mean() + reconstruction_loss(output, images)
        return {"loss": loss, "psnr_db": psnr_db(output.detach(), images).mean()}

    run.run(step, steps, on_save=_report(run, held_out))
    return run.average
