"""A tiny base codec for the tests of transmission knowledge."""

from __future__ import annotations

import pytest
import torch

from dekag.codec import JsccCodec


@pytest.fixture
def codec() -> JsccCodec:
    torch.manual_seed(0)
    codec = JsccCodec(width=16, blocks=1).eval()
    for parameter in codec.parameters():  # residual blocks start at zero: give them something to do
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.05)
    return codec
