"""Packed convolutions compute what the others do."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from dekag.codec import JsccCodec
from dekag.codec.batch_invariance import Conv2d
from dekag.codec.packed import PackedConv2d, pack, packable

needs_operators = pytest.mark.skipif(not packable(Conv2d(1, 1, 1)), reason="this torch has no oneDNN")


@needs_operators
@pytest.mark.parametrize(
    "changes",
    [{"padding": 1}, {"padding": (0, 1), "stride": 2, "dilation": 2, "bias": False}, {"groups": 4}],
)
@pytest.mark.parametrize("side", [5, 8, 24])
def test_a_packed_convolution_is_the_same_for_every_size_and_batch(
    changes: dict[str, Any], side: int
) -> None:
    torch.manual_seed(3)
    plain = Conv2d(4, 8, 3, **changes)
    packed = PackedConv2d(plain)
    with torch.inference_mode():
        for images in (torch.randn(1, 4, side, side), torch.randn(3, 4, side, side + 1)):
            torch.testing.assert_close(packed(images), plain(images), rtol=1e-4, atol=1e-5)
            last = images.contiguous(memory_format=torch.channels_last)
            assert torch.equal(packed(images), packed(last))


@pytest.mark.parametrize("changes", [{"padding": "same"}, {"padding_mode": "circular", "padding": 1}])
def test_what_cannot_be_packed_stays(changes: dict[str, Any]) -> None:
    assert not packable(Conv2d(2, 2, 3, **changes))
    assert not packable(Conv2d(2, 2, 3).double())
    held = torch.nn.Sequential(Conv2d(2, 2, 3, **changes))
    pack(held)
    assert type(held[0]) is Conv2d


@needs_operators
def test_a_packed_codec_computes_what_it_did() -> None:
    torch.manual_seed(4)
    codec = JsccCodec(width=16, blocks=2, text_width=8).eval()
    for parameter in codec.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    packed = copy.deepcopy(codec)
    pack(packed)
    assert not any(isinstance(module, Conv2d) for module in packed.modules())
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 3, 8)
    with torch.inference_mode():
        features = codec.features(latents, 512, text=text)
        torch.testing.assert_close(packed.features(latents, 512, text=text), features, rtol=1e-4, atol=1e-4)
        received = codec.decode(features, (4, 16, 16), text=text)
        torch.testing.assert_close(
            packed.decode(features, (4, 16, 16), text=text), received, rtol=1e-4, atol=1e-4
        )


@needs_operators
def test_a_packed_convolution_is_a_copy_that_can_be_copied() -> None:
    plain, images = Conv2d(4, 8, 3, groups=4), torch.randn(1, 4, 8, 8)
    packed = PackedConv2d(plain)
    with torch.inference_mode():
        before = packed(images)
        plain.weight.add_(1)
        for each in (
            packed,
            copy.deepcopy(packed),
            pickle.loads(pickle.dumps(packed)),  # noqa: S301
            packed.to(torch.bfloat16),
        ):
            assert torch.equal(each(images), before)


@needs_operators
def test_other_types_and_gradients_take_the_plain_path() -> None:
    plain = Conv2d(4, 8, 3, padding=1)
    packed, images = PackedConv2d(plain), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        half = packed(images.bfloat16())
        torch.testing.assert_close(half, copy.deepcopy(plain).bfloat16()(images.bfloat16()))
    images.requires_grad_()
    packed(images).sum().backward()
    assert images.grad is not None


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    held = torch.nn.Sequential(Conv2d(2, 2, 3))
    pack(held)
    assert type(held[0]) is Conv2d


def test_classes_of_others_stay() -> None:
    class Other(Conv2d):
        """Computes what it likes."""

    assert not packable(Other(2, 2, 3))
