"""Pictures in few bytes: bounds, round trips, and failures that say so."""

from __future__ import annotations

import pytest

from dekag.errors import InvalidInputError
from dekag.generation.images import (
    IMAGE_FORMATS,
    FileFormat,
    ImageFormat,
    Pixels,
    from_bytes,
    to_format,
    to_plain_jpeg,
)
from dekag.link import image_coding
from dekag.link.image_coding import SCALES, decode, encode, ladders
from dekag.metrics.image import psnr_db
from tests.made_pictures import picture


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return picture()


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_every_format_comes_back_and_tells_its_kind(pixels: Pixels, image_format: ImageFormat) -> None:
    data = to_format(pixels, image_format)
    assert psnr_db(from_bytes(data), pixels) > 27
    assert len(to_format(pixels, image_format, 5)) < len(data)
    assert to_format(pixels, image_format) == data


@pytest.mark.parametrize("image_format", ["hevc", "jxl"])
@pytest.mark.parametrize(("quality", "scale"), [(0, 1), (39, 2), (40, 1), (99, 4)])
def test_compared_formats_come_back_bare(
    pixels: Pixels, image_format: FileFormat, quality: int, scale: int
) -> None:
    """Chroma of HEVC changes from 4:2:0 to 4:4:4 at quality 40, and with it the header that is put back."""
    pytest.importorskip("pillow_heif")
    pytest.importorskip("pillow_jxl")
    bare = encode(pixels, image_format, quality, scale=scale, headerless=True)
    whole = encode(pixels, image_format, quality, scale=scale)
    assert image_coding._restore_header(bare, 128, 128) == whole
    assert len(whole) - len(bare) > 350 if image_format == "hevc" else len(whole) - len(bare) == 1
    shown = decode(bare, 128, 128, headerless=True)
    assert shown.shape == pixels.shape
    assert (shown == decode(whole, 128, 128)).all()
    assert psnr_db(shown, pixels) > (30 if (quality, scale) == (40, 1) else 14)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("scale", SCALES)
def test_bare_pictures_are_the_same_file_in_fewer_bytes(
    pixels: Pixels, image_format: ImageFormat, scale: int
) -> None:
    small = image_coding._resized(pixels, 128 // scale, 128 // scale)
    for quality in (0, 30, 99):
        headerless = encode(pixels, image_format, quality, scale=scale, headerless=True)
        file = (
            to_plain_jpeg(small, max(1, quality))
            if image_format == "jpeg"
            else to_format(small, image_format, quality)
        )
        assert image_coding._restore_header(headerless, 128, 128) == file
        assert len(headerless) <= len(file) - 25
        assert decode(headerless, 128, 128, headerless=True).shape == pixels.shape


def test_ladder_is_a_frontier(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_coding, "QUALITIES", (0, 20, 60))
    whole, headerless = ladders(pixels, "webp")
    for rungs in (whole, headerless):
        sizes, quality = [len(rung.data) for rung in rungs], [rung.psnr_db for rung in rungs]
        assert sizes == sorted(set(sizes))
        assert quality == sorted(set(quality))
        for rung in rungs:
            shown = decode(rung.data, 128, 128, headerless=rungs is headerless)
            assert rung.psnr_db == psnr_db(shown, pixels)
    assert len(headerless[0].data) < len(whole[0].data)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x0c12345", b"\x00" * 40, b"\x04" + b"\xff" * 30, b"\x08\x00ab"]
)
def test_garbage_is_refused_as_an_image(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="image"):
        decode(data, 64, 64, headerless=True)


def test_a_picture_larger_than_asked_is_refused(pixels: Pixels) -> None:
    for image_format in IMAGE_FORMATS:
        with pytest.raises(InvalidInputError, match="64 pixels a side"):
            decode(to_format(pixels, image_format), 64, 64)
