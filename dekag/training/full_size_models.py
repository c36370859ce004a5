"""Models of the real architectures and sizes with random weights, to measure time, memory and bytes.

Their images are noise: nothing about quality can be measured with them. The edge is Stable Diffusion 2.1
base, the cloud PixArt-Sigma XL 2 for 512 pixels. Of T5-XXL there is one block of 24, so that the cloud fits
into the memory of a common machine; its states have the real width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZE = 512
UNET = {
    "sample_size": SIZE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
TRANSFORMER = {
    "sample_size": SIZE // 8,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "patch_size": 2,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": 1,
    "use_additional_conditions": False,
}
CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 77,
}
T5_BLOCK = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 1,
    "feed_forward_proj": "gated-gelu",
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": SIZE,
}
T5_BLOCKS = 24  # of T5-XXL
SD_SCALE, SDXL_SCALE = 0.18215, 0.13025


def new_unet() -> Any:
    """The U-Net of Stable Diffusion 2.1 with random weights, on the default device."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def parameters() -> dict[str, int]:
    """Numbers of parameters of the profile `paper`, by model; T5-XXL has all of its blocks."""
    from diffusers import AutoencoderKL, PixArtTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        models: dict[str, Any] = {
            "cloud: transformer": PixArtTransformer2DModel(**TRANSFORMER),
            "cloud: text encoder": T5EncoderModel(T5Config(**T5_BLOCK | {"num_layers": T5_BLOCKS})),
            "cloud: autoencoder": AutoencoderKL(**VAE),
            "edge: U-Net": new_unet(),
            "edge: text encoder": CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)),
            "edge: autoencoder": AutoencoderKL(**VAE),
        }
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def save_full_size_models(folder: Path, seed: int = 0) -> Path:
    """Write cloud/, edge/, codec/ and profile.json into `folder`: 5 GB in bfloat16.

    Args:
        folder: target; `load_profile(folder)` loads it.
        seed: seed of the weights.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from dekag.codec import JsccCodec
    from dekag.training.diffusion import stable_diffusion
    from dekag.training.text import new_cloud_tokenizer, new_edge_tokenizer

    torch.manual_seed(seed)
    JsccCodec(latent_channels=4).save_pretrained(folder / "codec")
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    edge_tokenizer, cloud_tokenizer = new_edge_tokenizer(captions=200), new_cloud_tokenizer(captions=200)
    edge_tokenizer.model_max_length, cloud_tokenizer.model_max_length = 77, 300
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # half the memory while they are made
    try:
        stable_diffusion(
            vae=AutoencoderKL(**VAE, scaling_factor=SD_SCALE),
            text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)),
            tokenizer=edge_tokenizer,
            unet=new_unet(),
            scheduler=DDIMScheduler(**schedule),
        ).save_pretrained(folder / "edge")
        PixArtSigmaPipeline(
            tokenizer=cloud_tokenizer,
            text_encoder=T5EncoderModel(T5Config(**T5_BLOCK)),
            vae=AutoencoderKL(**VAE, scaling_factor=SDXL_SCALE),
            transformer=PixArtTransformer2DModel(**TRANSFORMER),
            scheduler=DPMSolverMultistepScheduler(**schedule),
        ).save_pretrained(folder / "cloud")
    finally:
        torch.set_default_dtype(before)
    sampled = {"steps": 2, "dtype": "bfloat16", "vae_dtype": "bfloat16"}
    profile = {
        "size": SIZE,
        "cloud": {"path": "cloud", "guidance_scale": 4.5, **sampled},
        "edge": {"path": "edge", "guidance_scale": 7.5, **sampled},
        "codec": "codec",
        "distill": {"images": 4, "held_out": 1, "steps": 2, "batch": 2, "layers": "attention", "rank": 4},
    }
    (folder / "profile.json").write_text(json.dumps(profile, indent=2) + "\n")
    return folder
