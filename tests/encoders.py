"""Tiny, untrained encoders that score images."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from dekag.checksums import RECORD


def save_encoders(folder: Path, seed: int = 0) -> None:
    """Saves them in `folder`/clip and `folder`/dino, as a training of this project leaves its own."""
    for name, model in zip(("clip", "dino"), tiny_encoders(seed), strict=True):
        model.save_pretrained(folder / name)
        (folder / name / RECORD).write_text("{}")


def tiny_encoders(seed: int = 0) -> tuple[CLIPModel, Dinov2Model]:
    """An untrained CLIP and an untrained DINO."""
    torch.manual_seed(seed)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**small, "vocab_size": 10},
            vision_config={**small, "image_size": 64, "patch_size": 16},
            projection_dim=8,
        )
    )
    dino = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16)
    )
    return clip, dino
