"""Rows of a batch keep the bits that they have alone."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from dekag.cala import CONDITION_FEATURES, CalaConfig
from dekag.codec import JsccCodec
from dekag.codec.rows import safe_batch, same_kernels

ROWS = 7


@pytest.mark.parametrize("latent", [(4, 8, 8), (4, 16, 16), (4, 12, 28)])
@pytest.mark.parametrize("adapted", [False, True])
@torch.inference_mode()
def test_no_row_of_a_mixed_batch_depends_on_the_others(latent: tuple[int, int, int], adapted: bool) -> None:
    torch.manual_seed(0)
    codec = JsccCodec(width=64, blocks=1).eval()
    model = get_peft_model(codec, CalaConfig(rank=5)) if adapted else None
    for parameter in codec.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    most = codec.max_channel_uses(latent)
    latents, conditions = torch.randn(ROWS, *latent), torch.randn(ROWS, CONDITION_FEATURES)
    counts = torch.randint(1, most + 1, (ROWS,)).tolist()

    def run(rows: slice) -> torch.Tensor:
        with same_kernels():
            if model is None:
                sent = codec.encode(latents[rows], counts[rows], modulation="unquantised")
                return torch.cat([codec.decode(sent, latent).flatten(1), _padded(sent, most)], dim=1)
            with model.base_model.conditioned("encoder", conditions[rows]):
                sent = codec.encode(latents[rows], counts[rows], modulation="unquantised")
            with model.base_model.conditioned("decoder", conditions[rows]):
                return torch.cat([codec.decode(sent, latent).flatten(1), _padded(sent, most)], dim=1)

    assert safe_batch(ROWS, run) == ROWS
    if model is not None:
        model.base_model.fuse()
        assert safe_batch(ROWS, run) == ROWS


def _padded(symbols: torch.Tensor, count: int) -> torch.Tensor:
    return torch.view_as_real(F.pad(symbols, (0, count - symbols.shape[1]))).flatten(1)


def test_the_same_kernels_compute_the_same() -> None:
    torch.manual_seed(1)
    images, conv = torch.randn(3, 5, 9, 7), torch.nn.Conv2d(5, 6, 3, stride=2, padding=1, dilation=1)
    same = torch.nn.Conv2d(5, 6, 3, padding="same")
    left, right = torch.randn(3, 2, 4), torch.randn(3, 4, 5)
    gates = torch.randn(3, 5)
    work = [
        lambda: conv(images),
        lambda: same(images),
        lambda: F.conv2d(images.double(), conv.weight.double()),
        lambda: torch.bmm(left, right),
        lambda: torch.baddbmm(torch.ones(3, 2, 5), left, right),
        lambda: torch.sigmoid(gates),
        lambda: F.linear(gates, torch.ones(2, 5), torch.ones(2)),
        lambda: F.softmax(gates, dim=-1),
    ]
    for each in work:
        plain = each()
        with same_kernels():
            torch.testing.assert_close(each(), plain)


def test_a_batch_that_changes_bits_is_not_safe() -> None:
    values = torch.arange(6.0)
    assert safe_batch(6, lambda rows: values[rows] + (rows.stop - rows.start > 3)) == 3
    assert safe_batch(6, lambda rows: values[rows] + (rows.stop - rows.start > 1)) == 1
    assert safe_batch(6, lambda rows: values[rows]) == 6
    assert safe_batch(1, lambda rows: values[rows]) == 1
