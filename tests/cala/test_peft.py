"""CALA as a method of PEFT: made, saved and loaded as LoRA is; gated by the condition, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model

from dekag.cala import CONDITION_FEATURES, CalaConfig, condition_vector
from dekag.cala.layer import CalaLayer, Packed, Stacked
from dekag.codec import JsccCodec
from dekag.codec.packed import packable
from dekag.errors import InvalidInputError
from dekag.link.conditions import LinkConditions

SHAPE = (4, 16, 16)


def _stir(model: Any) -> Any:
    """Adapters that do something: B no longer zero, gates that differ."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(("up", "offset")) and "cala_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "head" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return model.eval()


@pytest.fixture
def adapted(codec: JsccCodec) -> Any:
    torch.manual_seed(2)
    return _stir(get_peft_model(codec, CalaConfig(rank=3, gate_width=4)))


def _conditions(*snrs_db: float) -> torch.Tensor:
    return torch.stack([condition_vector(1 / 96, LinkConditions(snr_db=snr), at="sender") for snr in snrs_db])


@torch.inference_mode()
def _encode(adapted: Any, latents: torch.Tensor, uses: list[int], condition: torch.Tensor) -> torch.Tensor:
    with adapted.base_model.with_condition("encoder", condition):
        return adapted.base_model.model.features(latents, uses)  # type: ignore[no-any-return]


@torch.inference_mode()
def _decode(adapted: Any, symbols: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    with adapted.base_model.with_condition("decoder", condition):
        return adapted.base_model.model.decode(symbols, SHAPE)  # type: ignore[no-any-return]


def test_an_untrained_adapter_changes_nothing_and_only_it_is_trained(codec: JsccCodec) -> None:
    latents = torch.randn(2, *SHAPE)
    with torch.inference_mode():
        before = codec.features(latents, 512)
    adapted = get_peft_model(codec, CalaConfig(rank=2))
    assert torch.equal(_encode(adapted, latents, [512, 512], _conditions(0, 20)), before)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("cala_" in name for name in trained)


@pytest.mark.parametrize("kernel", ["separable", "pointwise", "full"])
@pytest.mark.parametrize("gate", ["sigmoid", "softplus", "softmax", "linear"])
def test_an_adapted_layer_is_the_convolution_with_its_merged_weight(gate: Any, kernel: Any) -> None:
    """W + s B diag(g) A, and the constants that the components add, as one weight and one bias."""
    torch.manual_seed(3)
    codec = JsccCodec(width=8, blocks=1)
    adapted = _stir(get_peft_model(codec, CalaConfig(rank=3, gate=gate, kernel=kernel, scale=0.5)))
    layer = adapted.base_model.model.encoder[0]
    x = torch.randn(2, 16, 8, 8)
    condition = _conditions(-5, 20)
    with torch.inference_mode(), adapted.base_model.with_condition("encoder", condition):
        out = layer(x)
        parts, base = layer.branch, layer.get_base_layer()
        for row in range(2):
            up = parts.up * (0.5 * layer._state[0].gates[row])
            weight = base.weight + torch.einsum("or,rihw->oihw", up, parts.kernels())
            merged = torch.nn.functional.conv2d(
                x[row : row + 1], weight, base.bias + up @ parts.offset, padding=1
            )
            # at the border the convolution pads x, not the constant, so the two agree everywhere
            torch.testing.assert_close(out[row : row + 1], merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["full", "separable"])
@pytest.mark.parametrize("onednn", [True, False])
def test_fused_layers_agree_with_what_was_trained_until_they_are_fused_again(
    codec: JsccCodec, kernel: Any, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = _stir(get_peft_model(codec, CalaConfig(rank=3, gate_width=4, kernel=kernel)))
    latents, condition, uses = torch.randn(3, *SHAPE), _conditions(-5, 5, 20), [512, 64, 100]
    if not onednn:
        monkeypatch.setattr("dekag.cala.layer.packable", lambda _: False)
    before = None
    for _ in range(2):
        unlike = before
        before = _encode(adapted, latents, uses, condition)
        adapted.base_model.fuse()
        layers = [each for each in adapted.modules() if isinstance(each, CalaLayer)]
        packs = onednn and kernel == "separable" and packable(layers[0].base_layer)
        assert {type(each._fused) for each in layers} == {Packed if packs else Stacked}
        after = _encode(adapted, latents, uses, condition)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        assert unlike is None or not torch.allclose(after, unlike, atol=1e-2)
        for layer in layers:
            assert layer.branch is not None
            layer.branch.up.data.mul_(-3)
        torch.testing.assert_close(_encode(adapted, latents, uses, condition), after)
        for layer in layers:
            layer._fused = None


def test_a_row_alone_is_the_row_in_a_mixed_batch(adapted: Any) -> None:
    adapted.base_model.fuse()
    latents, condition, uses = torch.randn(5, *SHAPE), _conditions(-5, 0, 7, 12, 20), [512, 64, 100, 256, 1]
    features = _encode(adapted, latents, uses, condition)
    decoded = _decode(adapted, features, condition)
    for row in range(5):
        alone = _encode(adapted, latents[row : row + 1], uses[row : row + 1], condition[row : row + 1])
        torch.testing.assert_close(alone[0], features[row, : uses[row]], rtol=1e-4, atol=1e-5)
        assert not features[row, uses[row] :].any()
        back = _decode(adapted, alone, condition[row : row + 1])
        torch.testing.assert_close(back[0], decoded[row], rtol=1e-4, atol=1e-4)


def test_gates_follow_the_condition_and_sides_are_apart(adapted: Any) -> None:
    low, high = _conditions(-5), _conditions(20)
    gates = [adapted.base_model.gates("encoder", c)[0] for c in (low, high)]
    assert (gates[0] - gates[1]).abs().max() > 0.01
    assert not torch.allclose(gates[0], adapted.base_model.gates("decoder", low)[0])
    latents = torch.randn(1, *SHAPE)
    assert not torch.allclose(_encode(adapted, latents, [512], low), _encode(adapted, latents, [512], high))


def test_outside_the_context_the_codec_is_the_base_codec(codec: JsccCodec) -> None:
    latents = torch.randn(1, *SHAPE)
    with torch.inference_mode():
        before = codec.features(latents, 300)
        adapted = _stir(get_peft_model(codec, CalaConfig(rank=2)))
        adapted.base_model.fuse()
        assert torch.equal(adapted.base_model.model.features(latents, 300), before)


def test_saved_and_loaded_through_peft(adapted: Any, codec: JsccCodec, tmp_path: Path) -> None:
    latents, condition = torch.randn(2, *SHAPE), _conditions(3, 11)
    before = _encode(adapted, latents, [512, 200], condition)
    adapted.save_pretrained(tmp_path)
    assert isinstance(PeftConfig.from_pretrained(tmp_path), CalaConfig)
    torch.manual_seed(0)
    base = JsccCodec(width=16, blocks=1)
    base.load_state_dict(
        {k.replace(".base_layer", ""): v for k, v in codec.state_dict().items() if "cala_" not in k}
    )
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    assert torch.equal(_encode(loaded, latents, [512, 200], condition), before)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_gradients_reach_factors_and_gates(codec: JsccCodec) -> None:
    adapted = _stir(get_peft_model(codec, CalaConfig(rank=2, gate_width=3)))
    with adapted.base_model.with_condition("encoder", _conditions(0, 10)):
        adapted.base_model.model.features(torch.randn(2, *SHAPE), [512, 512]).real.square().sum().backward()
    for name, parameter in adapted.named_parameters():
        if "cala_" in name and "decoder" not in name:
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rank", {"rank": 0}),
        ("encoder.0", {"rank_pattern": {"encoder.0": 1000}}),
        ("scale", {"scale": 0.0}),
        ("gate_width", {"gate_width": 0}),
        ("gate", {"gate": "step"}),
        ("kernel", {"kernel": "round"}),
        ("sides", {"sides": []}),
        ("condition_features", {"condition_features": 0}),
    ],
)
def test_impossible_configurations_are_refused(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        CalaConfig(**changes)
    assert caught.value.field == field


def test_conditions_of_another_shape_are_refused(adapted: Any) -> None:
    with pytest.raises(InvalidInputError, match="condition"):
        adapted.base_model.gates("encoder", torch.zeros(1, CONDITION_FEATURES + 1))
    with pytest.raises(InvalidInputError, match="side"):
        adapted.base_model.gates("antenna", torch.zeros(1, CONDITION_FEATURES))
