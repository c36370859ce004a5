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
PROTOTYPES = 256
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.05, 0.1
KOLEO_WEIGHT = 0.1


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

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (batch, 3, 64, 64) -> features (batch, 128), cosine to each (batch, PROTOTYPES)."""
        features: torch.Tensor = self.backbone(images).pooler_output
        projected = F.normalize(self.head(features), dim=1)
        return features, projected @ F.normalize(self.prototypes, dim=1).T


def random_views(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A crop of each image (batch, 3, h, w), half to all of a side, at 64x64, with a little noise."""
    count = len(images)
    side = 0.5 + 0.5 * torch.rand(count, generator=generator)
    centre = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    frame = torch.zeros(count, 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = side
    frame[:, :, 2] = centre
    grid = F.affine_grid(frame, [count, 3, CLIP_SIZE, CLIP_SIZE], align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return views + 0.05 * torch.randn(views.shape, generator=generator)


def balanced(cosines: torch.Tensor) -> torch.Tensor:
    """Targets (batch, prototypes) that use all prototypes alike: Sinkhorn-Knopp, as in DINOv2.

    Without it a small ViT sorts the pictures into a handful of heaps and stops learning.
    """
    shares = (cosines / TEACHER_TEMPERATURE).double().exp()
    for _ in range(3):
        shares = shares / shares.sum(0, keepdim=True) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / shares.shape[0]
    return (shares * shares.shape[0]).float()


def crowding(features: torch.Tensor) -> torch.Tensor:
    """The KoLeo term of DINOv2 (Sablayrolles et al. 2019): small when no two features (batch, d) are near."""
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T - 2 * torch.eye(len(unit))
    nearest = (unit - unit[similarity.argmax(1)]).norm(dim=1)
    loss: torch.Tensor = -(nearest + 1e-4).log().mean()
    return loss


def train_dino(folder: Path, cache: Path, *, steps: int, seed: int, scenes: int = SCENES) -> Dinov2Model:
    """Train DINO for `steps`; returns the teacher's backbone, the average that TrainingRun keeps."""
    torch.manual_seed(seed)
    pixels = rendered_scenes(cache, "train", scenes)
    student = SelfDistillation(new_dino())
    optimizer = torch.optim.AdamW(student.parameters(), lr=7e-4, weight_decay=0.05, fused=True)
    run = TrainingRun(folder, student, [optimizer], seed=seed, ema_decay=0.99)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (DINO_BATCH,), generator=generator)
        images = to_tensor(pixels[pick.numpy()])
        views = [random_views(images, generator) for _ in range(2)]
        with torch.no_grad():
            targets = balanced(torch.cat([run.average(view)[1] for view in views])).chunk(2)
        features, cosines = zip(*(student(view) for view in views), strict=True)
        guesses = [(each / STUDENT_TEMPERATURE).log_softmax(1) for each in cosines]
        loss = -(targets[0] * guesses[1] + targets[1] * guesses[0]).sum(1).mean() / 2
        spread = torch.stack([crowding(each) for each in features]).mean()
        return {"loss": loss + KOLEO_WEIGHT * spread, "dino": loss}

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
