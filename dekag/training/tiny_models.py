"""Tiny, seeded, untrained models of the real classes, for tests that run the whole chain in a second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CONTEXT = 40
"""Context length, tokens: short, so that tests cover prompts that exceed it."""


@dataclass(frozen=True)
class Dimensions:
    """What tiny models may have in common with real ones and not with the shipped ones.

    Attributes:
        size: of the profile's images, pixels.
        latent_channels: of the autoencoder.
        scaling_factor: of its latents.
        prediction_type: of both denoisers.
        context, cloud_context: tokens that edge and cloud read at once.
        dtype: number format in which the generators compute.
    """

    size: int = 128
    latent_channels: int = 4
    scaling_factor: float = 1.0
    prediction_type: str = "v_prediction"
    context: int = CONTEXT
    cloud_context: int = CONTEXT
    dtype: str = "float32"


EMBEDDED = Dimensions()
FOREIGN = Dimensions(
    size=256,
    latent_channels=16,
    scaling_factor=0.18215,
    prediction_type="epsilon",
    context=77,
    cloud_context=300,
    dtype="bfloat16",
)


def save_dummy_models(folder: Path, seed: int = 0, like: Dimensions = EMBEDDED) -> Path:
    """Write cloud/, edge/, codec/ and profile.json into `folder`; load with `load_profile(folder)`."""
    from diffusers import (
        AutoencoderKL,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from dekag.codec import JsccCodec
    from dekag.training.diffusion import sampler, stable_diffusion
    from dekag.training.text import new_cloud_tokenizer, new_edge_tokenizer

    torch.manual_seed(seed)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
        latent_channels=like.latent_channels,
        scaling_factor=like.scaling_factor,
    )
    latents = {"in_channels": like.latent_channels, "out_channels": like.latent_channels}
    latents |= {"sample_size": like.size // 8}
    edge_tokenizer, cloud_tokenizer = new_edge_tokenizer(captions=200), new_cloud_tokenizer(captions=200)
    edge_tokenizer.model_max_length, cloud_tokenizer.model_max_length = like.context, like.cloud_context
    scheduler = type(sampler()).from_config(sampler().config, prediction_type=like.prediction_type)
    stable_diffusion(
        vae=vae,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(edge_tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=like.context,
            )
        ),
        tokenizer=edge_tokenizer,
        unet=UNet2DConditionModel(
            **latents,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=2,
            cross_attention_dim=16,
        ),
        scheduler=scheduler,
    ).save_pretrained(folder / "edge")
    PixArtSigmaPipeline(
        tokenizer=cloud_tokenizer,
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(cloud_tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        vae=vae,
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            **latents,
            cross_attention_dim=16,
            caption_channels=16,
            patch_size=2,
            interpolation_scale=1,
            use_additional_conditions=False,
        ),
        scheduler=scheduler,
    ).save_pretrained(folder / "cloud")
    JsccCodec(latent_channels=like.latent_channels, width=8, blocks=1).save_pretrained(folder / "codec")
    sampled = {"steps": 2, "guidance_scale": 2.0, "dtype": like.dtype, "vae_dtype": like.dtype}
    profile = {
        "size": like.size,
        "cloud": {"path": "cloud", **sampled},
        "edge": {"path": "edge", **sampled},
        "codec": "codec",
    }
    (folder / "profile.json").write_text(json.dumps(profile, indent=2))
    return folder
