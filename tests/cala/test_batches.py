"""How the codec works off a batch, with transmission knowledge and without."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from dekag.cala import CONDITION_FEATURES, CalaConfig
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.artifact import TransmissionKnowledge
from dekag.cala.conditions import condition_vector
from dekag.cala.methods import AdaptedCodec
from dekag.codec import JsccCodec
from dekag.link import LinkConditions

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


@pytest.mark.parametrize("adaptive", [True, False])
def test_without_knowledge_a_codec_sends_what_studies_measure(adaptive: bool) -> None:
    codec = JsccCodec(width=8, blocks=1, adaptive_modulation=adaptive).eval()
    latents = torch.randn(ROWS, *SHAPE, generator=torch.Generator().manual_seed(5))
    snrs_db = (-5.0, 5.0, 15.0)
    known = torch.stack(
        [condition_vector(1 / 96, LinkConditions(snr_db=each), at="sender") for each in snrs_db]
    )
    delivered = AlignedCodec(codec, "0" * 64)
    symbols = delivered.encode(latents, [64, 17, 33], known)
    assert torch.equal(symbols, AdaptedCodec(codec).encode(latents, [64, 17, 33], known))
    assert [delivered.modulation_at(each) for each in snrs_db] == (
        ["qam16", "qam64", "qam256"] if adaptive else ["qam64"] * 3
    )
