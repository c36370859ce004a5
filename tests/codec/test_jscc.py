"""Shapes, power and rates of the joint source-channel codec."""

from __future__ import annotations

import pytest
import torch

from dekag.codec import JsccCodec
from dekag.codec.constellation import quantize_to_qam
from dekag.codec.jscc import with_text
from dekag.errors import InvalidInputError


@pytest.fixture
def codec() -> JsccCodec:
    torch.manual_seed(0)
    return JsccCodec(width=8, blocks=1).eval()


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_qam_has_its_points_and_unit_power(bits: int) -> None:
    symbols = torch.view_as_complex(torch.randn(200_000, 2, generator=torch.Generator().manual_seed(1)) * 4)
    points = torch.unique(torch.view_as_real(quantize_to_qam(symbols, bits)).mul(1e4).round().long(), dim=0)
    assert len(points) == 2**bits
    assert points.double().div(1e4).square().sum(1).mean() == pytest.approx(1, abs=1e-3)


def test_a_point_of_the_constellation_stays() -> None:
    symbols = quantize_to_qam(torch.view_as_complex(torch.randn(1000, 2)), 6)
    torch.testing.assert_close(quantize_to_qam(symbols, 6), symbols)


@pytest.mark.parametrize("channel_uses", [1, 63, 64, 200, 512])
def test_any_rate_has_unit_power_per_image(codec: JsccCodec, channel_uses: int) -> None:
    latents = torch.randn(3, 4, 16, 16) * torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1)
    with torch.inference_mode():
        symbols = codec.encode(latents, channel_uses)
    assert symbols.shape == (3, channel_uses)
    assert symbols.dtype == torch.complex64
    torch.testing.assert_close(symbols.abs().square().mean(1), torch.ones(3))
    assert codec.decode(symbols, (4, 16, 16)).shape == latents.shape


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (24, 32)])
def test_latents_of_any_even_size(codec: JsccCodec, height: int, width: int) -> None:
    most = codec.max_channel_uses((4, height, width))
    assert most == 2 * height * width
    symbols = codec.encode(torch.randn(1, 4, height, width), most)
    assert codec.decode(symbols, (4, height, width)).shape == (1, 4, height, width)


def test_a_larger_fold_carries_as_many_symbols(codec: JsccCodec) -> None:
    folded = JsccCodec(width=8, blocks=1, fold=4)
    for shape in ((4, 16, 16), (4, 32, 24)):
        assert folded.max_channel_uses(shape) == codec.max_channel_uses(shape)
        symbols = folded.encode(torch.randn(2, *shape), [77, folded.max_channel_uses(shape)])
        assert folded.decode(symbols, shape).shape == (2, *shape)


def test_a_codec_that_learns_to_read_starts_as_it_was(codec: JsccCodec) -> None:
    reading = with_text(codec, 6)
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 6)
    with torch.inference_mode():
        assert torch.equal(reading.features(latents, 512, text=text), codec.features(latents, 512))
        torch.nn.init.normal_(reading.encoder[1].spoken.weight)
        said, unsaid = (
            reading.features(latents, 512, text=text),
            reading.features(latents, 512, text=text * 0),
        )
    assert not torch.allclose(said, unsaid)
    torch.testing.assert_close(unsaid, codec.features(latents, 512))


@torch.inference_mode()
def test_each_image_may_have_its_own_constellation(codec: JsccCodec) -> None:
    latents = torch.randn(3, 4, 16, 16)
    names = ["qam4", "qam16", "unquantised"]
    mixed = codec.encode(latents, [512, 100, 300], modulation=names)
    for row, (name, uses) in enumerate(zip(names, (512, 100, 300), strict=True)):
        assert torch.equal(
            mixed[row, :uses], codec.encode(latents[row : row + 1], [uses], modulation=name)[0]
        )


def test_symbols_are_ordered(codec: JsccCodec) -> None:
    """A shorter transmission holds the same features as the beginning of a longer one, but for its gain."""
    latents = torch.randn(1, 4, 16, 16)
    long, short = codec.features(latents, 512)[:, :128], codec.features(latents, 128)
    torch.testing.assert_close(long / long.abs().mean(), short / short.abs().mean())


@pytest.mark.parametrize("channel_uses", [0, -3, 513])
def test_impossible_rates_are_refused(codec: JsccCodec, channel_uses: int) -> None:
    with pytest.raises(InvalidInputError, match="between 1 and 512"):
        codec.encode(torch.randn(1, 4, 16, 16), channel_uses)


def test_saved_and_loaded_codec_encodes_alike(codec: JsccCodec, tmp_path) -> None:  # type: ignore[no-untyped-def]
    codec.save_pretrained(tmp_path)
    latents = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        assert torch.equal(JsccCodec.load(tmp_path).encode(latents, 100), codec.encode(latents, 100))
