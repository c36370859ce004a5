"""A pipeline in one file with the names of the original code, as community models have.

Layouts: Stable Diffusion 1 (CLIP), Stable Diffusion 2 (OpenCLIP) and Stable Diffusion XL (both).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def save_original(pipeline: Any, path: Path) -> Path:
    """Write a pipeline to one file; it has the layout that its text encoders belong to."""
    unet, vae = pipeline.unet, pipeline.vae
    attends = [kind.startswith("CrossAttn") for kind in unet.config.up_block_types]
    depth, levels = unet.config.layers_per_block + 1, len(vae.config.up_block_types)
    added = DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
    fixed_unet: Mapping[str, str] = {**DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"], **added}
    fixed_vae: Mapping[str, str] = DIFFUSERS_TO_LDM_MAPPING["vae"]
    found: dict[str, torch.Tensor] = {}
    for key, value in unet.state_dict().items():
        found[f"model.diffusion_model.{fixed_unet.get(key) or _unet_key(key, depth, attends)}"] = value
    for key, value in vae.state_dict().items():
        name = fixed_vae.get(key) or _vae_key(key, levels)
        linear = ".attn_1." in name and value.ndim == 2  # the original code has convolutions there
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if linear else value
    if hasattr(pipeline, "text_encoder_2"):
        found |= _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        found |= _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipeline.text_encoder.config.num_hidden_layers == OPEN_CLIP_LAYERS:
        found |= _open_clip(pipeline.text_encoder, "cond_stage_model.model.", unread_layers=1)
    else:
        found |= _clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    save_file({key: value.contiguous().clone() for key, value in found.items()}, path)
    return path


OPEN_CLIP_LAYERS = 23
"""Layers of Stable Diffusion 2's text encoder; its checkpoints have one more, which is not read."""


def _clip(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    state = encoder.state_dict().items()
    return {f"{prefix}text_model.{key.removeprefix('text_model.')}": value for key, value in state}


def _open_clip(encoder: Any, prefix: str, unread_layers: int = 0) -> dict[str, torch.Tensor]:
    width = encoder.config.hidden_size
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    projection = state.pop("text_projection.weight", torch.zeros(width, width))
    found = {"text_projection": projection.T}
    for layer in range(encoder.config.num_hidden_layers):
        inside = f"encoder.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{inside}.{part}_proj.{kind}") for part in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    for key, value in state.items():
        for ours, theirs in _OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        found[key] = value
    last = f"transformer.resblocks.{encoder.config.num_hidden_layers - 1}."
    for key in [key for key in found if key.startswith(last)] * bool(unread_layers):
        found[key.replace(last, f"transformer.resblocks.{encoder.config.num_hidden_layers}.")] = (
            found[key] + 1
        )
    return {f"{prefix}{key}": value for key, value in found.items()}


def _unet_key(key: str, depth: int, attends: list[bool]) -> str:
    where, part, index, rest = _split(key)
    if part == "resnets":
        name, _, last = rest.partition(".")
        rest = f"{_RESNET[name]}.{last}"
    if where == "mid_block":
        return f"middle_block.{2 * index if part == 'resnets' else 1}.{rest}"
    side, block = where.split(".")
    first = int(block) * depth + index
    place = {"resnets": 0, "attentions": 1}
    if side == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * depth}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + first}.{place[part]}.{rest}"
    if part == "upsamplers":
        return f"output_blocks.{(int(block) + 1) * depth - 1}.{1 + attends[int(block)]}.{rest}"
    return f"output_blocks.{first}.{place[part]}.{rest}"


def _vae_key(key: str, levels: int) -> str:
    coder, _, key = key.partition(".")
    where, part, index, rest = _split(key)
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if where == "mid_block" and part == "attentions":
        name, _, last = rest.rpartition(".")
        return f"{coder}.mid.attn_1.{_ATTENTION[name]}.{last}"
    if where == "mid_block":
        return f"{coder}.mid.block_{index + 1}.{rest}"
    side, block = where.split(".")
    level = int(block) if side == "down_blocks" else levels - 1 - int(block)
    sampled = {"downsamplers": "downsample", "upsamplers": "upsample", "resnets": f"block.{index}"}
    return f"{coder}.{side.removesuffix('_blocks')}.{level}.{sampled[part]}.{rest}"


def _split(key: str) -> tuple[str, str, int, str]:
    """down_blocks.1.resnets.0.conv1.weight as its block, the kind of layer, its number and the rest."""
    found = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)", key)
    assert found is not None, key
    return found[1], found[2], int(found[3]), found[4]
