"""Growth of a trained edge into a cloud that starts from what the edge can do.

The grown model first generates exactly the edge's images: the layers that it adds begin as identities, and
words that the edge has no token for begin as the mean of the tokens that the edge splits them into. Training
from there takes a fraction of the steps of a new model.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn


def deepened_unet(unet: Any) -> UNet2DConditionModel:
    """A U-Net with two layers per block that computes what `unet`, with one, computes.

    Args:
        unet: a UNet2DConditionModel with one layer per block.

    Returns:
        the deeper U-Net; its new layers get random weights except the last of each, which are zero.
    """
    deep = UNet2DConditionModel.from_config({**unet.config, "layers_per_block": 2})
    for old, new in zip(unet.down_blocks, deep.down_blocks, strict=True):
        _add_identity(new, [0, None], old)
    for old, new in zip(unet.up_blocks, deep.up_blocks, strict=True):
        # The second layer reads the skip connection that the edge's first one reads: its copy lies on top.
        _add_identity(new, [0, None, 1], old)
    blocks = ("down_blocks.", "up_blocks.")
    rest = {key: value for key, value in unet.state_dict().items() if not key.startswith(blocks)}
    deep.load_state_dict({**deep.state_dict(), **rest})
    return deep


def _add_identity(block: Any, sources: list[int | None], old: Any) -> None:
    """Copy the layers `sources` of `old` into those of `block`; a layer without a source gets an identity."""
    for index, source in enumerate(sources):
        resnet = block.resnets[index]
        attention = block.attentions[index] if hasattr(block, "attentions") else None
        if source is not None:
            resnet.load_state_dict(old.resnets[source].state_dict())
            if attention is not None:
                attention.load_state_dict(old.attentions[source].state_dict())
            continue
        _zero(resnet.conv2)
        if resnet.conv_shortcut is not None:  # drops the channels of the skip connection
            _zero(resnet.conv_shortcut)
            nn.init.dirac_(resnet.conv_shortcut.weight)
        if attention is not None:
            _zero(attention.proj_out)
    for name in ("downsamplers", "upsamplers"):
        if getattr(block, name, None) is not None:
            getattr(block, name).load_state_dict(getattr(old, name).state_dict())


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


@torch.no_grad()
def with_vocabulary(encoder: Any, tokenizer: Any, wider: Any) -> Any:
    """A text encoder for the tokens of `wider`, which reads the words that `tokenizer` knows as before.

    Args:
        encoder: a CLIPTextModel for `tokenizer`.
        tokenizer: the tokenizer of the edge.
        wider: the tokenizer of the cloud.
    """
    known = tokenizer.get_vocab()
    before = encoder.get_input_embeddings().weight
    rows = torch.empty(len(wider), before.shape[1])
    for token, row in wider.get_vocab().items():
        word = token.removesuffix("</w>")
        pieces = [known[token]] if token in known else tokenizer(word, add_special_tokens=False).input_ids
        rows[row] = before[pieces].mean(0)
    config = type(encoder.config)(
        **{
            **encoder.config.to_dict(),
            "vocab_size": len(wider),
            "bos_token_id": wider.bos_token_id,
            "eos_token_id": wider.eos_token_id,
            "pad_token_id": wider.pad_token_id,
        }
    )
    grown = type(encoder)(config)
    state = encoder.state_dict()
    (name,) = (key for key, value in state.items() if value.data_ptr() == before.data_ptr())
    grown.load_state_dict({**state, name: rows})
    return grown
