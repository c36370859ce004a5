"""Tiny, seeded, untrained models of the real classes, for tests that run the whole chain in a second."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

CONTEXT = 40
"""Context length, tokens: short, so that tests cover prompts that exceed it."""


@dataclass(frozen=True)
class Kind:
    """What a generator may have in common with a real one and not with the shipped ones.

    Attributes:
        latent_channels: of its autoencoder.
        scaling_factor: of its latents.
        prediction_type: of its denoiser.
        context: tokens that it reads at once.
    """

    latent_channels: int = 4
    scaling_factor: float = 1.0
    prediction_type: str = "v_prediction"
    context: int = CONTEXT


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of tiny models.

    Attributes:
        size: of the profile's images, pixels.
        edge, cloud: what each may have for itself.
        dtype: number format in which the generators compute.
    """

    size: int = 128
    edge: Kind = Kind()
    cloud: Kind = Kind()
    dtype: str = "float32"


EMBEDDED = Dimensions()
FOREIGN = Dimensions(
    size=192,
    edge=Kind(latent_channels=16, scaling_factor=0.18215, prediction_type="epsilon", context=77),
    cloud=Kind(latent_channels=4, scaling_factor=0.13025, prediction_type="v_prediction", context=300),
    dtype="bfloat16",
)
OTHER_WAY_ROUND = replace(
    FOREIGN,
    edge=replace(FOREIGN.cloud, context=77),
    cloud=replace(FOREIGN.edge, context=300),
)
"""The edge has what only the cloud has in FOREIGN, and the cloud what only the edge has."""


def save_dummy_models(folder: Path, seed: int = 0, like: Dimensions = EMBEDDED) -> Path:
    """Write models and profile.json into `folder`, in folders by their roles; for `load_profile(folder)`."""
    from diffusers import (
        AutoencoderKL,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from dekag.codec import JsccCodec
    from dekag.pixel_codec import PixelCodec
    from dekag.training.diffusion import sampler, stable_diffusion
    from dekag.training.text import new_cloud_tokenizer, new_edge_tokenizer

    torch.manual_seed(seed)

    def autoencoder(kind: Kind) -> Any:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
            latent_channels=kind.latent_channels,
            scaling_factor=kind.scaling_factor,
        )

    def latents(kind: Kind) -> dict[str, int]:
        channels = dict.fromkeys(("in_channels", "out_channels"), kind.latent_channels)
        return {**channels, "sample_size": like.size // 8}

    def scheduler(kind: Kind) -> Any:
        return type(sampler()).from_config(sampler().config, prediction_type=kind.prediction_type)

    vae = autoencoder(like.edge)
    edge_tokenizer, cloud_tokenizer = new_edge_tokenizer(captions=200), new_cloud_tokenizer(captions=200)
    edge_tokenizer.model_max_length = like.edge.context
    cloud_tokenizer.model_max_length = like.cloud.context
    stable_diffusion(
        vae=vae,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(edge_tokenizer),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=like.edge.context,
            )
        ),
        tokenizer=edge_tokenizer,
        unet=UNet2DConditionModel(
            **latents(like.edge),
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=2,
            cross_attention_dim=16,
        ),
        scheduler=scheduler(like.edge),
    ).save_pretrained(folder / "edge")
    PixArtSigmaPipeline(
        tokenizer=cloud_tokenizer,
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(cloud_tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        vae=vae if like.cloud == like.edge else autoencoder(like.cloud),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            **latents(like.cloud),
            cross_attention_dim=16,
            caption_channels=16,
            patch_size=2,
            interpolation_scale=1,
            use_additional_conditions=False,
        ),
        scheduler=scheduler(like.cloud),
    ).save_pretrained(folder / "cloud")
    JsccCodec(latent_channels=like.edge.latent_channels, width=8, blocks=1).save_pretrained(folder / "codec")
    PixelCodec(width=16, blocks=1, hidden=8).save_pretrained(folder / "pixels")
    sampled = {"steps": 2, "guidance_scale": 2.0, "dtype": like.dtype, "vae_dtype": like.dtype}
    profile = {
        "size": like.size,
        "cloud": {"path": "cloud", **sampled},
        "edge": {"path": "edge", **sampled},
        "codec": "codec",
        "pixel_codec": "pixels",
    }
    (folder / "profile.json").write_text(json.dumps(profile, indent=2))
    return folder
