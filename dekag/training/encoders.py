"""Training of the metric encoders: a small CLIP and a small DINOv2-style ViT, on rendered scenes alone.

CLIP learns to pair pictures with captions (Radford et al. 2021), DINO by self-distillation without labels
(Caron et al. 2021). Both look at pictures reduced to 64x64. Neither shares a weight with a generator.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from dekag.metrics.features import CLIP_SIZE, reduce_images
from dekag.training import text
from dekag.training.data import rendered_scenes, scene_number, to_tensor
from dekag.training.loop import TrainingRun
from dekag.training.vae import SCENES

BATCH = 96
DINO_BATCH = 48  # of which two views each
PROTOTYPES = 512


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 4 layers of width 128 on both sides; 64x64 pictures in 8x8 patches."""
    shared = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 384}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **shared,
                "num_hidden_layers": 2,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": text.MAX_TOKENS,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**shared, "image_size": CLIP_SIZE, "patch_size": 8},
            projection_dim=64,
        )
    )


def train_clip(
    folder: Path, cache: Path, *, steps: int, seed: int, scenes: int = SCENES
) -> tuple[CLIPModel, CLIPTokenizer]:
    """Train CLIP for `steps`; returns the averaged model and its tokenizer, which knows all topics' words."""
    torch.manual_seed(seed)
    pixels = rendered_scenes(cache, "train", scenes)
    tokenizer = text.new_clip_tokenizer()
    captions = []
    for n in range(scenes):
        scene, scene_seed = scene_number("train", n)
        captions.append(text.world_caption(scene, random.Random(-scene_seed - 2), cloud=True))
    tokens, mask = text.tokenize(tokenizer, captions)
    clip = new_clip(tokenizer)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    run = TrainingRun(folder, clip, [optimizer], seed=seed, ema_decay=0.995)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (BATCH,), generator=generator)
        images = reduce_images(to_tensor(pixels[pick.numpy()]))
        out = clip(input_ids=tokens[pick], attention_mask=mask[pick], pixel_values=images, return_loss=True)
        return {"loss": out.loss}

    run.run(step, steps)
    return run.average, tokenizer


def new_dino() -> Dinov2Model:
    """A DINOv2 ViT of 4 layers of width 128; 64x64 pictures in 8x8 patches."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=3,
            image_size=CLIP_SIZE,
            patch_size=8,
        )
    )


class SelfDistillation(nn.Module):
    """A ViT with DINO's projection head onto unit-length prototypes."""

    def __init__(self, backbone: Dinov2Model) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, 64), dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, 64, 64) -> cosine to every prototype, (batch, PROTOTYPES)."""
        features = self.head(self.backbone(images).pooler_output)
        return F.normalize(features, dim=1) @ F.normalize(self.prototypes, dim=1).T


def random_view(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One random crop (70 to 100 % of a side) of a batch, at 64x64, with a little noise."""
    side = int(torch.randint(90, 129, (1,), generator=generator))
    top, left = (int(v) for v in torch.randint(0, 129 - side, (2,), generator=generator))
    view = F.interpolate(
        images[..., top : top + side, left : left + side], size=CLIP_SIZE, mode="bilinear", antialias=True
    )
    return view + 0.05 * torch.randn(view.shape, generator=generator)


def train_dino(folder: Path, cache: Path, *, steps: int, seed: int, scenes: int = SCENES) -> Dinov2Model:
    """Train DINO for `steps`; returns the teacher's backbone, the average that TrainingRun keeps."""
    torch.manual_seed(seed)
    pixels = rendered_scenes(cache, "train", scenes)
    student = SelfDistillation(new_dino())
    optimizer = torch.optim.AdamW(student.parameters(), lr=7e-4, weight_decay=0.05, fused=True)
    run = TrainingRun(folder, student, [optimizer], seed=seed, ema_decay=0.99)
    centre = torch.zeros(PROTOTYPES)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (DINO_BATCH,), generator=generator)
        images = to_tensor(pixels[pick.numpy()])
        views = [random_view(images, generator) for _ in range(2)]
        with torch.no_grad():
            teacher = [run.average(view) for view in views]
            centre.lerp_(torch.cat(teacher).mean(0), 0.1)
            targets = [((t - centre) / 0.04).softmax(1) for t in teacher]
        guesses = [(student(view) / 0.1).log_softmax(1) for view in views]
        loss = -(targets[0] * guesses[1] + targets[1] * guesses[0]).sum(1).mean() / 2
        return {"loss": loss}

    run.run(step, steps)
    return copy.deepcopy(run.average.backbone)


@torch.inference_mode()
def clip_retrieval(clip: CLIPModel, tokenizer: CLIPTokenizer, cache: Path, count: int = 200) -> float:
    """Share of validation captions whose own picture is the nearest of `count`."""
    pixels = rendered_scenes(cache, "validation", count)
    captions = []
    for n in range(count):
        scene, seed = scene_number("validation", n)
        captions.append(text.world_caption(scene, random.Random(seed), cloud=True))
    tokens, mask = text.tokenize(tokenizer, captions)
    out = clip.eval()(input_ids=tokens, attention_mask=mask, pixel_values=reduce_images(to_tensor(pixels)))
    nearest = out.logits_per_text.argmax(1)
    return round(float((nearest == torch.arange(count)).float().mean()), 4)


@torch.inference_mode()
def dino_neighbours(dino: Dinov2Model, cache: Path, count: int = 500) -> dict[str, float]:
    """Share of validation scenes whose nearest neighbour in DINO features has the same attribute."""
    images = reduce_images(to_tensor(rendered_scenes(cache, "validation", count)))
    features = F.normalize(dino.eval()(images).pooler_output, dim=1)
    similarity = features @ features.T
    similarity.fill_diagonal_(-1)
    nearest = similarity.argmax(1).tolist()
    scenes = [scene_number("validation", n)[0] for n in range(count)]
    return {
        name: round(
            sum(getattr(scenes[i], name) == getattr(scenes[j], name) for i, j in enumerate(nearest)) / count,
            4,
        )
        for name in ("subject", "setting", "style")
    }
