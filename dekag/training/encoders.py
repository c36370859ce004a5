"""Training of the metric encoders: a small CLIP and a small DINOv2-style ViT, on rendered scenes only.

CLIP learns to match images with captions (Radford et al. 2021), DINO by self-distillation without labels
(Caron et al. 2021). Both reduce images of 256 pixels to 128 and split them into patches of 16 pixels. Both
are also trained on damaged images (blurred, melted, mixed), so that their scores penalise damage: for CLIP a
damaged image matches no caption, for DINO it differs from the undamaged one. A slightly moved image does not.
Neither shares weights with a generator.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from dekag.metrics.features import reduce_images
from dekag.training import text
from dekag.training.damage import damaged
from dekag.training.data import Pixels, batches, image_number, to_tensor
from dekag.training.device import CPU, multiplying
from dekag.training.loop import TrainingRun
from dekag.training.worlds import World

BATCH = 96
DAMAGED_SHARE = 0.25  # damaged images added to a CLIP batch, relative to its size
DINO_BATCH = 48  # images, with two views each
PROTOTYPES = 256
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.05, 0.1
KOLEO_WEIGHT = 0.1
DAMAGE_WEIGHT, DAMAGE_MARGIN = 1.0, 0.5
STEADY_WEIGHT = 1.0
NEAR_SIDE = 0.92  # smallest crop, of a side, that counts as the same image
TOKENS_A_SIDE = 8
ATTENTION = "eager"  # of which a CPU computes gradients twice as fast as of PyTorch's own


def _seen(world: World) -> dict[str, int]:
    """Input of the encoders: a world's images at half their side, in 8x8 patches."""
    side = world.size // 2
    return {"image_size": side, "patch_size": side // TOKENS_A_SIDE}


def new_clip(tokenizer: CLIPTokenizer, world: World) -> CLIPModel:
    """A CLIP of width 128 with 4 layers for images and 2 for captions."""
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
            vision_config={**shared, **_seen(world)},
            projection_dim=64,
            attn_implementation=ATTENTION,
        )
    )


def contrastive_loss(
    texts: torch.Tensor, images: torch.Tensor, spoilt: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """CLIP loss of unit features (batch, d); the damaged images (m, d) match no caption."""
    wanted = torch.arange(len(texts), device=texts.device)
    of_texts = F.cross_entropy(scale * texts @ torch.cat([images, spoilt]).T, wanted)
    of_images = F.cross_entropy(scale * images @ texts.T, wanted)
    return (of_texts + of_images) / 2


def train_clip(
    folder: Path,
    pixels: Pixels,
    world: World,
    *,
    steps: int,
    seed: int,
    device: torch.device = CPU,
    bf16: bool = False,
) -> tuple[CLIPModel, CLIPTokenizer]:
    """Train CLIP on training images 0..n-1, resuming from `folder`.

    Returns:
        The averaged model, and its tokenizer, which knows the words of all topics.
    """
    torch.manual_seed(seed)
    tokenizer = text.new_clip_tokenizer(world=world)
    tokens, mask = text.tokenize(tokenizer, _captions("train", len(pixels), world, of=2))
    clip = new_clip(tokenizer, world).to(device)
    size = clip.config.vision_config.image_size
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    run = TrainingRun(folder, clip, [optimizer], seed=seed, ema_decay=0.995)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (BATCH,), generator=generator)
        images = reduce_images(to_tensor(pixels[pick.numpy()]).to(device), size)
        # damaged versions of images of the same batch: their captions must distinguish the two
        spoilt = damaged(images[: int(DAMAGED_SHARE * BATCH)], generator)
        with multiplying(device, bf16):
            seen = clip.vision_model(torch.cat([images, spoilt])).pooler_output
            read = clip.text_model(tokens[pick].to(device), mask[pick].to(device)).pooler_output
            seen, read = clip.visual_projection(seen), clip.text_projection(read)
        seen, read = (F.normalize(each.float(), dim=1) for each in (seen, read))
        scale = clip.logit_scale.exp().clamp(max=100)
        return {"loss": contrastive_loss(read, seen[:BATCH], seen[BATCH:], scale)}

    run.run(step, steps)
    return run.average.to("cpu"), tokenizer


def _captions(split: str, count: int, world: World, *, of: int) -> list[str]:
    """A caption of each image 0..count-1 of `split`; another `of` gives other captions."""
    scenes = (image_number(split, n, world) for n in range(count))
    return [world.caption(scene, random.Random(-seed - of), cloud=True) for scene, seed in scenes]


def new_dino(world: World) -> Dinov2Model:
    """A DINOv2 ViT with 4 layers of width 128."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=3,
            attn_implementation=ATTENTION,
            **_seen(world),
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
        """Images (batch, 3, side, side) -> features (batch, 128), cosines (batch, PROTOTYPES)."""
        features: torch.Tensor = self.backbone(images).pooler_output
        projected = F.normalize(self.head(features), dim=1)
        return features, projected @ F.normalize(self.prototypes, dim=1).T


def random_views(
    images: torch.Tensor, generator: torch.Generator, size: int = 64, smallest: float = 0.5
) -> torch.Tensor:
    """A random crop of each image, with noise.

    Args:
        images: (batch, 3, h, w) in [-1, 1].
        generator: source of all draws.
        size: side of the crops after resizing, pixels.
        smallest: side of the smallest crop, as a fraction of the image's.

    Returns:
        (batch, 3, size, size).
    """
    count = len(images)
    side = smallest + (1 - smallest) * torch.rand(count, generator=generator)
    centre = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    frame = torch.zeros(count, 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = side
    frame[:, :, 2] = centre
    grid = F.affine_grid(frame, [count, 3, size, size], align_corners=False).to(images.device)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return views + 0.05 * torch.randn(views.shape, generator=generator).to(images.device)


def balanced(cosines: torch.Tensor) -> torch.Tensor:
    """Targets (batch, prototypes) that use all prototypes equally: Sinkhorn-Knopp, as in DINOv2.

    Without it, a small ViT collapses to a few clusters and stops learning.
    """
    shares = (cosines / TEACHER_TEMPERATURE).double().exp()
    for _ in range(3):
        shares = shares / shares.sum(0, keepdim=True) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / shares.shape[0]
    return (shares * shares.shape[0]).float()


def crowding(features: torch.Tensor) -> torch.Tensor:
    """The KoLeo term of DINOv2 (Sablayrolles et al. 2019): small if all features (batch, d) are far apart."""
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T - 2 * torch.eye(len(unit), device=unit.device)
    nearest = (unit - unit[similarity.argmax(1)]).norm(dim=1)
    loss: torch.Tensor = -(nearest + 1e-4).log().mean()
    return loss


def indulgence(whole: torch.Tensor, spoilt: torch.Tensor) -> torch.Tensor:
    """Mean excess similarity of damaged and undamaged images over DAMAGE_MARGIN; features (batch, d)."""
    return (F.cosine_similarity(whole, spoilt, dim=1) - DAMAGE_MARGIN).clamp_min(0).mean()


def train_dino(
    folder: Path,
    pixels: Pixels,
    world: World,
    *,
    steps: int,
    seed: int,
    device: torch.device = CPU,
    bf16: bool = False,
) -> Dinov2Model:
    """Train DINO for `steps`; returns the backbone of the teacher, the average of the TrainingRun."""
    torch.manual_seed(seed)
    student = SelfDistillation(new_dino(world)).to(device)
    size = student.backbone.config.image_size
    optimizer = torch.optim.AdamW(student.parameters(), lr=7e-4, weight_decay=0.05, fused=True)
    run = TrainingRun(folder, student, [optimizer], seed=seed, ema_decay=0.99)

    def step(_: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        pick = torch.randint(len(pixels), (DINO_BATCH,), generator=generator)
        images = to_tensor(pixels[pick.numpy()]).to(device)
        views = [random_views(images, generator, size) for _ in range(2)]
        reduced = reduce_images(images[: DINO_BATCH // 2], size)
        spoilt = damaged(reduced, generator)
        near = random_views(reduced, generator, size, NEAR_SIDE)
        with multiplying(device, bf16):
            with torch.no_grad():
                targets = balanced(torch.cat([run.average(view)[1] for view in views])).chunk(2)
            features, cosines = zip(*(student(view) for view in views), strict=True)
            # the metric compares whole images, so damage is learnt on whole images
            compared = student.backbone(torch.cat([reduced, spoilt, near])).pooler_output.float()
        guesses = [(each.float() / STUDENT_TEMPERATURE).log_softmax(1) for each in cosines]
        loss = -(targets[0] * guesses[1] + targets[1] * guesses[0]).sum(1).mean() / 2
        spread = torch.stack([crowding(each.float()) for each in features]).mean()
        whole, broken, moved = compared.chunk(3)
        forgiven = indulgence(whole, broken)
        # without it, features that tell damage tell a shift by a pixel as well
        unsteady = 1 - F.cosine_similarity(whole, moved, dim=1).mean()
        return {
            "loss": loss + KOLEO_WEIGHT * spread + DAMAGE_WEIGHT * forgiven + STEADY_WEIGHT * unsteady,
            "dino": loss,
            "forgiven": forgiven,
            "unsteady": unsteady,
        }

    run.run(step, steps)
    return copy.deepcopy(run.average.backbone).to("cpu")


@torch.inference_mode()
def clip_quality(clip: CLIPModel, tokenizer: CLIPTokenizer, pixels: Pixels, world: World) -> dict[str, float]:
    """Quality of CLIP on validation images 0..n-1.

    Returns:
        `validation_retrieval_of_n`: fraction of captions whose own image is the nearest; `damage_seen`:
            fraction
        of captions that are nearer to their image than to its damaged version.
    """
    tokens, mask = text.tokenize(tokenizer, _captions("validation", len(pixels), world, of=0))
    images = reduce_images(to_tensor(pixels), clip.config.vision_config.image_size)
    spoilt = damaged(images, torch.Generator().manual_seed(0))
    clip = clip.eval()
    read = F.normalize(clip.text_projection(clip.text_model(tokens, mask).pooler_output), dim=1)
    whole, broken = (
        F.normalize(clip.visual_projection(clip.vision_model(each).pooler_output), dim=1)
        for each in (images, spoilt)
    )
    similarity = read @ whole.T
    nearest = similarity.argmax(1) == torch.arange(len(pixels))
    told = similarity.diagonal() > (read * broken).sum(1)
    return {
        f"validation_retrieval_of_{len(pixels)}": round(float(nearest.float().mean()), 4),
        "damage_seen": round(float(told.float().mean()), 4),
    }


@torch.inference_mode()
def dino_quality(dino: Dinov2Model, pixels: Pixels, world: World) -> dict[str, float]:
    """Quality of DINO on validation images 0..n-1.

    Returns:
        Fractions of images whose nearest neighbour has the same subject, setting and style; and the mean
        cosine between an image and its `damaged` version, and its slightly `shifted` version, which should be
        near 1.
    """
    size, count = dino.config.image_size, len(pixels)
    images = torch.cat([reduce_images(to_tensor(pixels[part]), size) for part in batches(count, 50)])
    step = size // 64
    moved = images.roll((step, step), dims=(2, 3))
    spoilt = damaged(images, torch.Generator().manual_seed(0))
    dino = dino.eval()
    whole, near, broken = (_dino_features(dino, each) for each in (images, moved, spoilt))
    similarity = whole @ whole.T
    similarity.fill_diagonal_(-1)
    nearest = similarity.argmax(1).tolist()
    scenes = [image_number("validation", n, world)[0] for n in range(count)]
    alike = {
        name: sum(getattr(scenes[i], name) == getattr(scenes[j], name) for i, j in enumerate(nearest)) / count
        for name in ("subject", "setting", "style")
    }
    cosines: dict[str, Any] = {
        "damaged": (whole * broken).sum(1).mean(),
        "shifted": (whole * near).sum(1).mean(),
    }
    return {name: round(float(value), 4) for name, value in {**alike, **cosines}.items()}


def _dino_features(dino: Dinov2Model, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.normalize(dino(part).pooler_output, dim=1) for part in images.split(50)])
