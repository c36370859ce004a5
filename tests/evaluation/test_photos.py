"""Photographs: how they are read, what is sent of them, and the arithmetic that HEVC is compared with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dekag.errors import FileError, InvalidInputError
from dekag.evaluation.photographs import Photograph, load_photograph, photographs_in
from dekag.evaluation.studies import photos
from dekag.evaluation.studies.digital import Ladder, conditions_of
from dekag.evaluation.studies.photos import (
    PhotoSet,
    arithmetic_psnr_db,
    capacity_values,
    enlarged_size,
    hevc_gap,
    measure_ladder,
)
from dekag.generation.images import Pixels
from dekag.metrics.image import psnr_db


def picture(width: int = 120, height: int = 100) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8)


def test_a_folder_is_read_by_name_upright_and_reduced(tmp_path: Path) -> None:
    Image.fromarray(picture(300, 200)).save(tmp_path / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture(300, 200)).save(tmp_path / "a.jpg", exif=turned)
    (tmp_path / "notes.txt").write_text("no photograph")
    first, second = photographs_in(tmp_path, 150)
    assert (first.name, first.pixels.shape) == ("a", (150, 100, 3))
    assert (second.name, second.pixels.shape, second.original) == ("b", (100, 150, 3), (300, 200))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16", "LA", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.full((100, 100), 200, np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey)
    if mode not in ("L", "I;16"):
        image = image.convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    image.save(path)
    pixels = load_photograph(path).pixels
    assert pixels.shape == (100, 100, 3)
    expected = 255 if mode == "1" else 200
    assert abs(float(pixels.mean()) - expected) < (60 if mode == "1" else 2)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (100, 100), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (load_photograph(tmp_path / "x.png").pixels == 255).all()


def test_what_is_no_photograph_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="existing folder"):
        photographs_in(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="without any"):
        photographs_in(tmp_path)
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    with pytest.raises(FileError, match=r"x\.png is no image"):
        photographs_in(tmp_path)


def test_the_enlarged_photograph_fills_the_rate() -> None:
    assert enlarged_size(256, 192, 1 / 96) == (256, 192)
    assert enlarged_size(256, 192, 1 / 24) == (512, 384)
    assert enlarged_size(256, 192, 1 / 6) == (1024, 768)
    wide, high = enlarged_size(272, 181, 1 / 48)
    assert wide % 32 == high % 32 == 0
    assert wide * high == pytest.approx(2 * 272 * 181, rel=0.1)


def test_the_gap_is_what_calibrated_ldpc_and_qam_have() -> None:
    gap = hevc_gap()
    assert 0.5 < gap.code_db < 3.5
    assert 0 < gap.steps_db < 1.5
    assert gap.bits_per_use(10) == pytest.approx(math.log2(1 + 10 ** ((10 - gap.total_db) / 10)))


@pytest.mark.parametrize(("size", "expected"), [(99, 12.0), (101, 20.0), (399, 20.0), (401, 30.0)])
def test_arithmetic_takes_the_best_file_within_its_bytes(size: int, expected: float) -> None:
    ladder = Ladder([100, 400], [(0, 1), (9, 1)], np.array([[20.0], [30.0]]))
    uses = math.ceil(size * 8 / hevc_gap().bits_per_use(10))
    assert arithmetic_psnr_db(ladder, 12.0, uses, 10) == expected


def test_a_ladder_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "SETTINGS", ((20, 1), (60, 1), (20, 2)))
    photo = Photograph("made", "test", picture(), (120, 100))
    first = measure_ladder((photo, "webp"), runs=tmp_path)
    monkeypatch.setattr(photos, "ladders", None)
    again = measure_ladder((photo, "webp"), runs=tmp_path)
    assert first.sizes == again.sizes == sorted(first.sizes)
    assert (np.diff(first.values[:, 0]) > 0).all()


def test_capacity_sends_more_than_nothing_and_fading_costs() -> None:
    photo = Photograph("made", "test", picture(), (120, 100))
    values = np.array([[25.0], [30.0], [35.0]])
    grey = psnr_db(np.full_like(photo.pixels, 128), photo.pixels)
    sizes = [100, 1000, 3000]
    known = PhotoSet([photo], {("hevc", True): [Ladder(sizes, [(0, 1)] * 3, values)]}, np.array([[grey]]))
    names = [("hevc", True)]
    # K = 1/6 of 36,000 values; at 10 dB log2(11) bits a channel use are 2,594 bytes
    assert capacity_values(known, names, 1 / 6, conditions_of("awgn", 10.0)).tolist() == [30.0]
    faded = capacity_values(known, names, 1 / 6, conditions_of("rayleigh-1us", 10.0))[0]
    assert grey < faded < 30
    assert capacity_values(known, names, 1 / 96, conditions_of("awgn", -20.0)).tolist() == [grey]
