"""Training of the two generators, cloud and edge.

Both learn v-prediction on precomputed latents. One prompt in ten is dropped for classifier-free guidance.
The edge is a U-Net; its training data contain no held-out topic. The cloud is a PixArt transformer, or a
deeper U-Net with the same pipeline as the edge, which can grow from a trained edge. Guidance can then be
distilled into a U-Net, which halves the denoiser's work: the U-Net is sampled with a guidance scale of 1.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

from dekag.errors import InvalidInputError
from dekag.metrics.probe import JUDGED, AttributeProbe
from dekag.training import text
from dekag.training.data import SCENES, Pixels, image_number, scene_number, subject_shares
from dekag.training.device import CPU, multiplying
from dekag.training.diffusion_loss import DiffusionLoss
from dekag.training.grow import deepened_unet, with_vocabulary
from dekag.training.latents import encoded_scenes
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon
from dekag.training.worlds import WORLDS, World

CAPTIONS_PER_SCENE = 4
PROMPT_DROPOUT = 0.1
SUBJECT_EMPHASIS = 3.0  # extra loss weight of the subject; the background is learnt quickly
ADAMW_LEARNING_RATE = 1e-3
MUON_LEARNING_RATE = 2e-3
COOLDOWN_FRACTION, COOLDOWN_FRACTION_WHILE_SMALL = 0.4, 0.1  # small images: more training follows
SMALLEST_SIDE = 4  # side of the U-Nets' lowest level, latent pixels
CHANNELS = (16, 64, 96, 160)
EDGE_LAYERS, CLOUD_LAYERS = 1, 2  # per block
TEXT = {"width": 128, "layers": 3}
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


class TextToLatent(nn.Module):
    """A text encoder and a denoiser, trained together.

    forward: tokens (batch, MAX_TOKENS), mask (same), noisy latents (batch, 4, h, w), timesteps (batch,)
    -> v-prediction (batch, 4, h, w).
    """

    def __init__(self, text_encoder: Any, denoiser: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.denoiser = denoiser


class UNetModel(TextToLatent):
    """CLIP text encoder and U-Net, called as in StableDiffusionPipeline."""

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> Any:
        states = self.text_encoder(tokens)[0]
        return self.denoiser(noisy, timesteps, encoder_hidden_states=states).sample


class PixArtModel(TextToLatent):
    """T5 encoder and PixArt transformer, called as in PixArtSigmaPipeline."""

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> Any:
        states = self.text_encoder(tokens, attention_mask=mask)[0]
        added = {"resolution": None, "aspect_ratio": None}
        return self.denoiser(
            noisy,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs=added,
        ).sample


def new_unet(
    side: int,
    channels: tuple[int, ...] = CHANNELS,
    text_width: int = 128,
    full_side: int | None = None,
    layers: int = EDGE_LAYERS,
) -> UNet2DConditionModel:
    """A U-Net for latents of `side`, with as many levels of `channels` as lead from `full_side` to 4x4.

    The two lowest levels have cross-attention; the pooled prompt also scales and shifts every block. Set
    `full_side` (default: `side`) to train on smaller latents first with the layers of the full-size U-Net.
    """
    levels = int(np.log2((full_side or side) // SMALLEST_SIDE)) + 1
    attends = [level >= levels - 2 for level in range(levels)]
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels[:levels],
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        layers_per_block=layers,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=text_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
    )


def new_transformer(side: int) -> PixArtTransformer2DModel:
    """A PixArt transformer for latents of `side`, with 2x2 patches.

    4x4 patches give fewer tokens and faster steps, but still generated blobs after an hour on one core.
    """
    return PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        num_layers=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=256,
        caption_channels=128,
        sample_size=side,
        patch_size=2,
        interpolation_scale=1,
        use_additional_conditions=False,
    )


def caption_tokens(
    tokenizer: Any, numbers: list[int], world: World, *, cloud: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """CAPTIONS_PER_SCENE captions of each training image: ids and masks, (images, captions, tokens)."""
    texts = []
    for n in numbers:
        scene, seed = image_number("train", n, world)
        rng = random.Random(-seed - 1)
        texts += [world.caption(scene, rng, cloud=cloud) for _ in range(CAPTIONS_PER_SCENE)]
    tokens, mask = text.tokenize(tokenizer, texts)
    shape = (len(numbers), CAPTIONS_PER_SCENE, text.MAX_TOKENS)
    return tokens.view(shape), mask.view(shape)


def known_images(count: int, world: World, *, cloud: bool) -> list[int]:
    """Numbers of the images to train on: all for the cloud, those without held-out topics for the edge."""
    if cloud:
        return list(range(count))
    return [n for n in range(count) if world.edge_knows(image_number("train", n, world)[0])]


def optimizers(model: TextToLatent) -> list[torch.optim.Optimizer]:
    """Muon for the denoiser's inner matrices and convolutions, AdamW for the rest."""
    outer = ("conv_in.", "conv_out.", "pos_embed.", "proj_out.", "time_embedding.", "adaln_single.")
    named = list(model.denoiser.named_parameters())
    inner = [p for name, p in named if p.ndim in (2, 4) and not name.startswith(outer)]
    chosen = {id(p) for p in inner}
    groups = [
        {"params": [p for _, p in named if id(p) not in chosen], "lr": ADAMW_LEARNING_RATE},
        {"params": model.text_encoder.parameters(), "lr": ADAMW_LEARNING_RATE / 4},
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    return [adamw, Muon(inner, lr=MUON_LEARNING_RATE, iterations=4)]


def _plain_attention(denoiser: Any, device: torch.device) -> None:
    """Train with plain attention on a CPU, where its backward pass is faster than that of fused attention."""
    if hasattr(denoiser, "set_attn_processor"):
        denoiser.set_attn_processor(AttnProcessor() if device.type == "cpu" else AttnProcessor2_0())


class Batch(NamedTuple):
    """Latents (batch, 4, h, w), ids and masks (batch, tokens), loss weights (batch, 1, h, w)."""

    clean: torch.Tensor
    ids: torch.Tensor
    seen: torch.Tensor
    emphasis: torch.Tensor


class PromptedLatents:
    """Batches of latents, each with one of its captions or, in one case out of ten, an empty one.

    Args:
        latents: latents of all training images, (n, 4, h, w) float16.
        shares: coverage of each latent pixel by the subject, (n, h, w), 0..255; None if unknown.
        tokenizer: tokenizer of the generator.
        world: world of the images.
        cloud: whether to train the cloud, which uses all images.
        device: device of the batches.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        shares: Pixels | None,
        tokenizer: Any,
        world: World,
        *,
        cloud: bool,
        device: torch.device,
    ) -> None:
        numbers = known_images(len(latents), world, cloud=cloud)
        self._latents, self._index = latents, torch.tensor(numbers)
        known = np.zeros((len(latents), *latents.shape[2:]), np.uint8) if shares is None else np.array(shares)
        self._shares = torch.from_numpy(known)
        self._tokens, self._mask = caption_tokens(tokenizer, numbers, world, cloud=cloud)
        self.empty = text.tokenize(tokenizer, [""])
        self._device = device

    def draw(self, batch: int, generator: torch.Generator, dropout: float = PROMPT_DROPOUT) -> Batch:
        """Sample a batch; each prompt is dropped with probability `dropout`."""
        pick = torch.randint(len(self._index), (batch,), generator=generator)
        which = torch.randint(CAPTIONS_PER_SCENE, (batch,), generator=generator)
        dropped = (torch.rand(batch, generator=generator) < dropout).unsqueeze(1)
        chosen = self._index[pick]
        clean = self._latents[chosen].float()
        emphasis = 1 + SUBJECT_EMPHASIS / 255 * self._shares[chosen].float().unsqueeze(1)
        emphasis /= emphasis.mean(dim=(1, 2, 3), keepdim=True)
        ids = torch.where(dropped, self.empty[0], self._tokens[pick, which])
        seen = torch.where(dropped, self.empty[1], self._mask[pick, which])
        return Batch(*(each.to(self._device) for each in (clean, ids, seen, emphasis)))


def train_denoiser(
    model: TextToLatent,
    data: PromptedLatents,
    folder: Path,
    *,
    steps: int,
    seed: int,
    batch: int,
    device: torch.device = CPU,
    bf16: bool = False,
    cooldown_fraction: float = COOLDOWN_FRACTION,
) -> TextToLatent:
    """Train text encoder and denoiser; returns the averaged model.

    `bf16` runs matrix products in bfloat16, which is faster only if the processor supports it.
    """
    model = model.to(device)
    _plain_attention(model.denoiser, device)
    loss = DiffusionLoss(DDPMScheduler(**NOISE_SCHEDULE))
    run = TrainingRun(folder, model, optimizers(model), seed=seed)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        clean, ids, seen, emphasis = data.draw(batch, generator)
        timesteps = loss.draw_timesteps(batch, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)

        def denoise(noisy: torch.Tensor) -> torch.Tensor:
            with multiplying(device, bf16):
                said: torch.Tensor = model(ids, seen, noisy, timesteps)
            return said.float()

        return {"loss": loss(clean, noise, timesteps, denoise, emphasis)}

    run.run(step, steps, cooldown_fraction=cooldown_fraction)
    return run.average.to("cpu")


def distil_guidance(
    model: TextToLatent,
    data: PromptedLatents,
    folder: Path,
    *,
    guidance_scale: float,
    steps: int,
    seed: int,
    batch: int,
    device: torch.device = CPU,
    bf16: bool = False,
) -> TextToLatent:
    """Train a copy of `model` to predict the guided output in one pass; returns the averaged model.

    Follows Meng et al. 2023, for a single guidance scale. The student is sampled with scale 1, so the
    denoiser processes one row per image instead of two. The text encoder is not trained.
    """
    teacher = model.to(device).requires_grad_(False).eval()
    student = copy.deepcopy(teacher)
    student.denoiser.requires_grad_(True)
    _plain_attention(student.denoiser, device)
    scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    loss = DiffusionLoss(scheduler)
    run = TrainingRun(folder, student, optimizers(student), seed=seed)
    empty_ids, empty_mask = (each.to(device) for each in data.empty)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        clean, ids, seen, emphasis = data.draw(batch, generator, dropout=0.0)
        timesteps = loss.draw_timesteps(batch, generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with multiplying(device, bf16):
            with torch.no_grad():
                free = teacher(empty_ids.expand_as(ids), empty_mask.expand_as(seen), noisy, timesteps)
                said = teacher(ids, seen, noisy, timesteps)
                wanted = (free + guidance_scale * (said - free)).float()
            ours = student(ids, seen, noisy, timesteps).float()
        errors = ((ours - wanted).square() * emphasis).mean(dim=(1, 2, 3))
        return {"loss": loss.weighted(errors, timesteps)}

    run.run(step, steps, cooldown_fraction=COOLDOWN_FRACTION)
    return run.average.to("cpu")


def sampler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M), which gives good images in ten steps."""
    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", steps_offset=1)


def stable_diffusion(
    *, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any
) -> StableDiffusionPipeline:
    """The pipeline of these parts, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet_pipeline(vae: Any, tokenizer: Any, model: TextToLatent) -> StableDiffusionPipeline:
    return stable_diffusion(
        vae=vae.to("cpu"),
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.denoiser,
        scheduler=sampler(),
    )


def _pixart_pipeline(vae: Any, tokenizer: Any, model: TextToLatent) -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder,
        vae=vae.to("cpu"),
        transformer=model.denoiser,
        scheduler=sampler(),
    )


def new_generator(
    kind: str, folder: Path, world: World, *, seed: int, device: torch.device = CPU
) -> tuple[TextToLatent, Any]:
    """An untrained generator with a pretrained text encoder, and its tokenizer.

    Args:
        kind: "edge", "cloud" (PixArt) or "cloud-unet".
        folder: folder of the text encoder's checkpoints.
        world: world to generate.
        seed: seed of the initial weights and of the text encoder's training.
        device: training device.
    """
    torch.manual_seed(seed)
    side, full_side = world.size // 8, WORLDS[world.profile].size // 8
    denoiser: Any
    if kind == "cloud":
        tokenizer: Any = text.new_cloud_tokenizer(world=world)
        encoder: Any = text.new_cloud_text_encoder(tokenizer)
        denoiser = new_transformer(side)
    else:
        cloud = kind == "cloud-unet"
        tokenizer = (text.new_clip_tokenizer if cloud else text.new_edge_tokenizer)(world=world)
        encoder = text.new_clip_text_encoder(tokenizer, **TEXT)
        layers = CLOUD_LAYERS if cloud else EDGE_LAYERS
        denoiser = new_unet(side, CHANNELS, TEXT["width"], full_side, layers)
    encoder, _ = text.pretrain_text_encoder(
        folder, encoder, tokenizer, world, cloud=kind != "edge", seed=seed, device=device
    )
    model = PixArtModel if kind == "cloud" else UNetModel
    return model(encoder.requires_grad_(True), denoiser), tokenizer


def train_generator(
    kind: str,
    folder: Path,
    cache: Path,
    vae_path: Path,
    world: World,
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    start: Path | None = None,
    guidance_scale: float | None = None,
    pictures: int = SCENES,
    workers: int = 2,
    device: torch.device = CPU,
    bf16: bool = False,
) -> StableDiffusionPipeline | PixArtSigmaPipeline:
    """Train a generator; returns a pipeline of the averaged weights.

    Args:
        kind: as in `new_generator`.
        folder: folder of the checkpoints; training resumes from them.
        cache: folder of rendered images and latents.
        vae_path: folder of the autoencoder.
        world: world to generate.
        steps: total optimiser steps.
        seed: seed of the initial weights and of every step.
        batch: latents per step.
        start: folder of a trained pipeline of that kind to continue from, or of an edge from which a
            "cloud-unet" grows; default: a new model.
        guidance_scale: distil guidance of this scale into the pipeline at `start`, instead of further
            training.
        pictures: number of rendered images to train on.
        workers: number of rendering processes.
        device: training device.
        bf16: run matrix products in bfloat16.

    Raises:
        InvalidInputError: `guidance_scale` is given without `start`.
    """
    vae = AutoencoderKL.from_pretrained(vae_path, dtype=torch.float32)
    latents = encoded_scenes(cache, vae, pictures, world=world, workers=workers, device=device)
    if start is None:
        if guidance_scale is not None:
            raise InvalidInputError("start", "a trained pipeline to distil guidance into", "nothing")
        model, tokenizer = new_generator(kind, folder / "text", world, seed=seed, device=device)
    else:
        pipelines: dict[str, Any] = {"cloud": PixArtSigmaPipeline}
        pipeline_class = pipelines.get(kind, StableDiffusionPipeline)
        before = pipeline_class.from_pretrained(start, vae=vae, dtype=torch.float32)
        tokenizer = before.tokenizer
        model = (
            PixArtModel(before.text_encoder, before.transformer)
            if kind == "cloud"
            else UNetModel(before.text_encoder, before.unet)
        )
        if kind == "cloud-unet" and before.unet.config.layers_per_block == EDGE_LAYERS:
            torch.manual_seed(seed)
            tokenizer = text.new_clip_tokenizer(world=world)
            encoder = with_vocabulary(before.text_encoder, before.tokenizer, tokenizer)
            model = UNetModel(encoder, deepened_unet(before.unet))
        model.denoiser.register_to_config(sample_size=world.size // 8)
    masked = world.has_masks
    shares = subject_shares(cache, "train", pictures, world=world, workers=workers) if masked else None
    data = PromptedLatents(latents, shares, tokenizer, world, cloud=kind != "edge", device=device)
    settings: dict[str, Any] = {"steps": steps, "seed": seed, "batch": batch, "device": device, "bf16": bf16}
    if guidance_scale is None:
        small = world.size < WORLDS[world.profile].size
        share = COOLDOWN_FRACTION_WHILE_SMALL if small else COOLDOWN_FRACTION
        trained = train_denoiser(model, data, folder, cooldown_fraction=share, **settings)
    else:
        trained = distil_guidance(model, data, folder, guidance_scale=guidance_scale, **settings)
    return (_pixart_pipeline if kind == "cloud" else _unet_pipeline)(vae, tokenizer, trained)


def validation_prompts(count: int, world: World, *, cloud: bool) -> list[tuple[Any, str, int]]:
    """Held-out scenes with a prompt in plain words and a seed; for the edge, without held-out topics."""
    out = []
    for n in range(count):
        scene, seed = scene_number("validation", n, world.scenes(cloud=cloud))
        out.append((scene, world.module.caption(scene, random.Random(seed)), seed))
    return out


def probe_accuracy(
    pipeline: Any,
    probe_path: Path,
    world: World,
    *,
    cloud: bool,
    steps: int = 10,
    guidance_scale: float = 3.0,
    count: int = 100,
) -> dict[str, float]:
    """Fraction of visible attributes that the probe finds correct in images of held-out prompts."""
    from dekag.generation.models import Generator, LatentDecoder

    decoder = LatentDecoder(pipeline.vae, "")
    generator = Generator(pipeline, "", decoder, steps=steps, guidance_scale=guidance_scale)
    probe = AttributeProbe.from_pretrained(probe_path).eval()
    prompts = validation_prompts(count, world, cloud=cloud)
    pixels = np.stack(
        [generator.image(prompt, seed, width=world.size, height=world.size) for _, prompt, seed in prompts]
    )
    verdicts = probe.correct(pixels, [scene for scene, _, _ in prompts])
    shares = {}
    for name in JUDGED:
        seen = [verdict[name] for verdict in verdicts if name in verdict]
        shares[name] = round(sum(seen) / len(seen), 4)
    return shares
