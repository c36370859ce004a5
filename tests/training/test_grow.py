"""A cloud that grows from an edge begins with exactly what the edge does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dekag.training.diffusion import new_unet
from dekag.training.grow import deepened_unet, with_vocabulary
from dekag.training.text import new_clip_text_encoder, new_clip_tokenizer, new_edge_tokenizer
from dekag.training.worlds import STICKERS

CHANNELS = (8, 16, 16)


def _everything_trained(model: nn.Module) -> nn.Module:
    """No weight is left at zero or one, where a mistake would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def _said(unet: Any, states: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    said: torch.Tensor = unet(noisy, torch.tensor([3, 800]), encoder_hidden_states=states).sample
    return said


def test_the_deeper_unet_computes_the_same_and_learns_in_every_layer() -> None:
    torch.manual_seed(0)
    edge: Any = _everything_trained(new_unet(16, CHANNELS, 32))
    deep = deepened_unet(edge)
    states = torch.randn(2, 77, 32)
    torch.testing.assert_close(_said(deep, states), _said(edge, states), rtol=1e-5, atol=1e-5)
    assert len(deep.up_blocks[0].resnets) == len(edge.up_blocks[0].resnets) + 1

    optimizer = torch.optim.SGD(deep.parameters(), lr=0.1)
    before = {name: weight.clone() for name, weight in deep.named_parameters()}
    for _ in range(3):  # behind a layer that is zero, weights get no gradient in the first step
        _said(deep, states).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    matrices = {name: weight for name, weight in deep.named_parameters() if weight.ndim > 1}
    stuck = [name for name, weight in matrices.items() if torch.equal(weight, before[name])]
    assert not stuck


def test_the_wider_vocabulary_reads_known_words_as_before() -> None:
    torch.manual_seed(0)
    edge_words = new_edge_tokenizer(300, STICKERS)
    cloud_words = new_clip_tokenizer(300, STICKERS)
    edge: Any = _everything_trained(new_clip_text_encoder(edge_words, width=32, layers=1))
    grown = with_vocabulary(edge, edge_words, cloud_words)

    def states(encoder: Any, tokenizer: Any, prompt: str) -> torch.Tensor:
        ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            said: torch.Tensor = encoder(ids)[0]
        return said

    known = "a red cat on the beach"
    assert torch.equal(states(grown, cloud_words, known), states(edge, edge_words, known))
    new = sorted(set(cloud_words.get_vocab()) - set(edge_words.get_vocab()))
    assert new
    word = new[0]
    pieces = edge_words(word.removesuffix("</w>"), add_special_tokens=False).input_ids
    row = grown.get_input_embeddings().weight[cloud_words.get_vocab()[word]]
    torch.testing.assert_close(row, edge.get_input_embeddings().weight[pieces].mean(0))


@pytest.mark.parametrize("levels", [2, 3])
def test_growth_keeps_the_settings_of_the_edge(levels: int) -> None:
    edge = new_unet(4 * 2 ** (levels - 1), CHANNELS[:levels], 32)
    grown = dict(deepened_unet(edge).config)
    assert grown.pop("layers_per_block") == 2
    assert grown == {key: value for key, value in edge.config.items() if key != "layers_per_block"}
