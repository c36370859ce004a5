"""Training of the two generators: the cloud's PixArt transformer and the edge's U-Net.

Both learn v-prediction on precomputed latents, with the prompt dropped in one case of ten for classifier-free
guidance. The edge never sees a held-out topic.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

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
from torch import nn
from tqdm import tqdm

from dekag.metrics.probe import JUDGED, AttributeProbe
from dekag.training import text
from dekag.training.data import rendered_scenes, scene_number, to_tensor
from dekag.training.diffusion_loss import DiffusionLoss
from dekag.training.loop import TrainingRun
from dekag.training.muon import Muon
from dekag.training.vae import SCENES
from dekag.world import Scene, caption
from dekag.world.topics import EDGE_STYLES, EDGE_SUBJECTS

CAPTIONS_PER_SCENE = 4
PROMPT_DROPOUT = 0.1
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


class TextToLatent(nn.Module):
    """A text encoder and a denoiser, trained together.

    forward: tokens (batch, MAX_TOKENS), mask (same), noisy latents (batch, 4, 16, 16), timesteps (batch,)
    -> v-prediction (batch, 4, 16, 16).
    """

    def __init__(self, text_encoder: Any, denoiser: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.denoiser = denoiser


class EdgeModel(TextToLatent):
    """CLIP text encoder and U-Net, called as StableDiffusionPipeline calls them."""

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> Any:
        states = self.text_encoder(tokens)[0]
        return self.denoiser(noisy, timesteps, encoder_hidden_states=states).sample


class CloudModel(TextToLatent):
    """T5 encoder and PixArt transformer, called as PixArtSigmaPipeline calls them."""

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


def new_unet() -> UNet2DConditionModel:
    """The edge's denoiser: cross-attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=128,
    )


def new_transformer() -> PixArtTransformer2DModel:
    """The cloud's denoiser: 64 tokens of 2x2 latents.

    4x4 patches make fewer tokens and quicker steps, but drew shapes as blobs after an hour on one core.
    """
    return PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=64,
        num_layers=6,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=192,
        caption_channels=128,
        sample_size=16,
        patch_size=2,
        interpolation_scale=1,
        use_additional_conditions=False,
    )


@torch.inference_mode()
def encoded_scenes(cache: Path, vae: Any, count: int = SCENES) -> torch.Tensor:
    """Latents of training scenes 0..count-1, (count, 4, 16, 16) float16, computed once (resumable)."""
    path, progress = cache / f"latents-{count}.npy", cache / "latents-done"
    chunk = min(500, count)
    done = int(progress.read_text()) if path.exists() and progress.exists() else 0
    mode = "r+" if done else "w+"
    cache.mkdir(parents=True, exist_ok=True)
    out = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=(count, 4, 16, 16))
    if done < count:
        pixels = rendered_scenes(cache, "train", count)
        for start in tqdm(range(done, count, chunk), desc="encode scenes", mininterval=10):
            images = to_tensor(pixels[start : start + chunk])
            parts = [vae.encode(part).latent_dist.mean for part in images.split(50)]
            out[start : start + len(images)] = torch.cat(parts).half().numpy()
            progress.write_text(str(start + chunk))
        out.flush()
    return torch.from_numpy(np.array(out))


def caption_tokens(tokenizer: Any, scenes: list[int], *, cloud: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """CAPTIONS_PER_SCENE captions of each training scene: ids and masks, (scenes, captions, tokens)."""
    texts = []
    for n in scenes:
        scene, seed = scene_number("train", n)
        rng = random.Random(-seed - 1)
        texts += [text.world_caption(scene, rng, cloud=cloud) for _ in range(CAPTIONS_PER_SCENE)]
    tokens, mask = text.tokenize(tokenizer, texts)
    shape = (len(scenes), CAPTIONS_PER_SCENE, text.MAX_TOKENS)
    return tokens.view(shape), mask.view(shape)


def known_scenes(*, cloud: bool, count: int = SCENES) -> list[int]:
    """Numbers of the training scenes that the cloud (all) or the edge (no held-out topic) may see."""
    if cloud:
        return list(range(count))
    known = ((n, scene_number("train", n)[0]) for n in range(count))
    return [n for n, scene in known if scene.subject in EDGE_SUBJECTS and scene.style in EDGE_STYLES]


def optimizers(model: TextToLatent, learning_rate: float, *, muon: bool) -> list[torch.optim.Optimizer]:
    """AdamW; `muon` gives the matrices in a transformer's blocks to Muon, which needs fewer steps."""
    named = list(model.denoiser.named_parameters())
    inner = [p for name, p in named if "transformer_blocks" in name and name.endswith("weight")]
    matrices = [p for p in inner if muon and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    groups = [
        {"params": [p for _, p in named if id(p) not in chosen], "lr": learning_rate},
        {"params": model.text_encoder.parameters(), "lr": learning_rate / 4},
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    return [adamw, Muon(matrices, lr=2 * learning_rate)] if matrices else [adamw]


def train_denoiser(
    model: TextToLatent,
    tokenizer: Any,
    latents: torch.Tensor,
    folder: Path,
    *,
    cloud: bool,
    steps: int,
    seed: int,
    batch: int,
    learning_rate: float,
    bf16: bool,
) -> TextToLatent:
    """Train text encoder and denoiser on the latents (n, 4, 16, 16) of all scenes; returns the average.

    `bf16` lets matrix products run in bfloat16, which pays only where the processor has units for it.
    """
    scenes = known_scenes(cloud=cloud, count=len(latents))
    tokens, mask = caption_tokens(tokenizer, scenes, cloud=cloud)
    empty_tokens, empty_mask = text.tokenize(tokenizer, [""])
    index = torch.tensor(scenes)
    loss = DiffusionLoss(DDPMScheduler(**NOISE_SCHEDULE))
    run = TrainingRun(folder, model, optimizers(model, learning_rate, muon=cloud), seed=seed)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(scenes), (batch,), generator=generator)
        which = torch.randint(CAPTIONS_PER_SCENE, (batch,), generator=generator)
        clean = latents[index[pick]].float()
        dropped = (torch.rand(batch, generator=generator) < PROMPT_DROPOUT).unsqueeze(1)
        ids = torch.where(dropped, empty_tokens, tokens[pick, which])
        seen = torch.where(dropped, empty_mask, mask[pick, which])
        timesteps = loss.draw_timesteps(batch, generator)
        noise = torch.randn(clean.shape, generator=generator)

        def denoise(noisy: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                said: torch.Tensor = model(ids, seen, noisy, timesteps)
            return said.float()

        return {"loss": loss(clean, noise, timesteps, denoise)}

    run.run(step, steps)
    return run.average


def sampler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M): good pictures in ten steps."""
    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing", steps_offset=1)


def train_edge(
    folder: Path,
    cache: Path,
    vae_path: Path,
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    bf16: bool = False,
    scenes: int = SCENES,
) -> StableDiffusionPipeline:
    """Train the edge-GAI; returns a pipeline of the averaged weights."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(vae_path, dtype=torch.float32)
    latents = encoded_scenes(cache, vae, scenes)
    tokenizer = text.new_edge_tokenizer()
    encoder = text.new_edge_text_encoder(tokenizer)
    encoder = text.pretrain_text_encoder(folder / "text", encoder, tokenizer, cloud=False, seed=seed)
    model = EdgeModel(encoder.requires_grad_(True), new_unet())
    trained = train_denoiser(
        model,
        tokenizer,
        latents,
        folder,
        cloud=False,
        steps=steps,
        seed=seed,
        batch=batch,
        learning_rate=1e-3,
        bf16=bf16,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=trained.text_encoder,
        tokenizer=tokenizer,
        unet=trained.denoiser,
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_cloud(
    folder: Path,
    cache: Path,
    vae_path: Path,
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    bf16: bool = False,
    start: Path | None = None,
    scenes: int = SCENES,
) -> PixArtSigmaPipeline:
    """Train the cloud-GAI; returns a pipeline of the averaged weights.

    `start` is the folder of a trained pipeline to go on from, instead of from nothing.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(vae_path, dtype=torch.float32)
    latents = encoded_scenes(cache, vae, scenes)
    if start is None:
        tokenizer = text.new_cloud_tokenizer()
        encoder = text.new_cloud_text_encoder(tokenizer)
        encoder = text.pretrain_text_encoder(folder / "text", encoder, tokenizer, cloud=True, seed=seed)
        model = CloudModel(encoder.requires_grad_(True), new_transformer())
    else:
        before = PixArtSigmaPipeline.from_pretrained(start, dtype=torch.float32)
        tokenizer, model = before.tokenizer, CloudModel(before.text_encoder, before.transformer)
    trained = train_denoiser(
        model,
        tokenizer,
        latents,
        folder,
        cloud=True,
        steps=steps,
        seed=seed,
        batch=batch,
        learning_rate=1e-3,
        bf16=bf16,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=trained.text_encoder,
        vae=vae,
        transformer=trained.denoiser,
        scheduler=sampler(),
    )


def validation_prompts(count: int, *, cloud: bool) -> list[tuple[Scene, str, int]]:
    """Held-out scenes with a prompt in plain words and a seed; the edge's are of what it knows."""
    out = []
    for n in range(count):
        scene, seed = scene_number("validation", n, **text.scenes_known(cloud))
        out.append((scene, caption(scene, random.Random(seed)), seed))
    return out


def probe_accuracy(pipeline: Any, probe_path: Path, *, cloud: bool, count: int = 100) -> dict[str, float]:
    """Share of visible attributes that the probe finds right in pictures of held-out prompts."""
    from dekag.generation.models import Generator, LatentDecoder

    decoder = LatentDecoder(pipeline.vae, "")
    generator = Generator(pipeline, "", decoder, steps=10, guidance_scale=3.0)
    probe = AttributeProbe.from_pretrained(probe_path).eval()
    prompts = validation_prompts(count, cloud=cloud)
    pixels = np.stack([generator.image(prompt, seed) for _, prompt, seed in prompts])
    verdicts = probe.correct(pixels, [scene for scene, _, _ in prompts])
    shares = {}
    for name in JUDGED:
        seen = [verdict[name] for verdict in verdicts if name in verdict]
        shares[name] = round(sum(seen) / len(seen), 4)
    return shares
