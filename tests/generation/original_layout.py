"""A Stable Diffusion pipeline in one file with the names of the original code, as community models have."""

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


def save_original(pipeline: Any, path: Path) -> Path:
    """Write a pipeline with a Stable Diffusion 1 layout and an autoencoder without attention to one file."""
    unet, vae = pipeline.unet, pipeline.vae
    attends = [kind.startswith("CrossAttn") for kind in unet.config.up_block_types]
    depth, levels = unet.config.layers_per_block + 1, len(vae.config.up_block_types)
    fixed_unet: Mapping[str, str] = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    fixed_vae: Mapping[str, str] = DIFFUSERS_TO_LDM_MAPPING["vae"]
    found: dict[str, torch.Tensor] = {}
    for key, value in unet.state_dict().items():
        found[f"model.diffusion_model.{fixed_unet.get(key) or _unet_key(key, depth, attends)}"] = value
    for key, value in vae.state_dict().items():
        found[f"first_stage_model.{fixed_vae.get(key) or _vae_key(key, levels)}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous().clone() for key, value in found.items()}, path)
    return path


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
