"""Rows of a batch keep the bits that they have alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dekag.codec import JsccCodec
from dekag.codec.batch_invariance import Conv2d, safe_batch

ROWS = 9


@pytest.mark.parametrize("latent", [(4, 8, 8), (4, 16, 16), (4, 12, 28)])
@torch.inference_mode()
def test_no_row_of_a_batch_of_mixed_rates_depends_on_the_others(latent: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    codec = JsccCodec(width=64, blocks=2).eval()
    for parameter in codec.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    most = codec.max_channel_uses(latent)
    latents, symbols = torch.randn(ROWS, *latent), torch.randn(ROWS, most, dtype=torch.complex64)
    counts = torch.randint(1, most + 1, (ROWS,)).tolist()

    def encode(rows: slice) -> torch.Tensor:
        sent = codec.encode(latents[rows], counts[rows], modulation="unquantised")
        return F.pad(sent, (0, most - sent.shape[1]))

    assert safe_batch(ROWS, encode) == ROWS
    assert safe_batch(ROWS, lambda rows: codec.decode(symbols[rows], latent)) == ROWS


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({"padding": 1}, torch.float32),
        ({"padding": (0, 1), "stride": 2, "dilation": 2, "bias": False}, torch.float32),
        ({"padding": "same"}, torch.float32),
        ({"padding": 1, "groups": 2}, torch.float64),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_a_convolution_like_any_other(
    arguments: dict[str, object], dtype: torch.dtype, batch: int
) -> None:
    torch.manual_seed(1)
    plain = torch.nn.Conv2d(4, 6, 3, **arguments).to(dtype)
    ours = Conv2d(4, 6, 3, **arguments).to(dtype)
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(batch, 4, 9, 7, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), plain(images))
    images.requires_grad_()
    ours(images).square().sum().backward()
    assert images.grad is not None


def test_a_batch_that_changes_bits_is_not_safe() -> None:
    values = torch.arange(6.0)
    assert safe_batch(6, lambda rows: values[rows] + (rows.stop - rows.start > 3)) == 3
    assert safe_batch(6, lambda rows: values[rows] + (rows.stop - rows.start > 1)) == 1
    assert safe_batch(6, lambda rows: values[rows]) == 6
    assert safe_batch(1, lambda rows: values[rows]) == 1
