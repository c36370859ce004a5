"""How the codec with transmission knowledge works off a batch."""

from __future__ import annotations

import torch
from peft import get_peft_model

from dekag.cala import CONDITION_FEATURES, CalaConfig
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.artifact import TransmissionKnowledge
from dekag.codec import JsccCodec

ROWS, SHAPE = 3, (4, 8, 8)


def test_a_first_batch_costs_a_pass_for_each_row_and_no_trials() -> None:
    codec = JsccCodec(width=8, blocks=1).eval()
    adapted = get_peft_model(codec, CalaConfig(rank=2))
    made = TransmissionKnowledge.new({"base_hash": "0" * 64, "config": {}, "scores": {}}, adapted)
    aligned = AlignedCodec(JsccCodec(width=8, blocks=1).eval(), "0" * 64, made)
    passes: list[str] = []
    for name in ("encoder", "decoder"):
        getattr(aligned.codec, name).register_forward_hook(lambda *_, name=name: passes.append(name))
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(ROWS, *SHAPE, generator=draw)
    conditions = torch.randn(ROWS, CONDITION_FEATURES, generator=draw)
    symbols = aligned.encode(latents, [64, 17, 33], conditions)
    aligned.decode(symbols, SHAPE, conditions)
    assert passes == ["encoder"] * ROWS + ["decoder"] * ROWS
