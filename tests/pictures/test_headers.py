"""The size that a picture's file announces is never less than what is decoded of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dekag.api.limits import MAX_PICTURE_PIXELS
from dekag.errors import InvalidInputError
from dekag.pictures import announced_size, read_picture
from tests.hostile.pictures import KINDS, gradient, saved

FILES: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}),
    ("WEBP", {"exif": b"Exif\0\0MM"}), ("AVIF", {}), ("BMP", {}), ("PPM", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), FILES)
@pytest.mark.parametrize("size", [(40, 24), (1, 1), (1000, 17)])
def test_each_kind_says_its_size(kind: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    assert announced_size(saved(gradient(*size), kind, **options)) == size


def test_hostile_pictures_announce_what_is_decoded_or_nothing() -> None:
    for name, (make, size, _) in KINDS.items():
        if size is not None:
            announced = announced_size(make())
            assert announced is not None, name
            assert sorted(announced) == sorted(size), name


@given(data=st.data(), which=st.sampled_from(range(len(FILES))))
def test_no_damage_makes_a_picture_announce_less_than_is_decoded(data: st.DataObject, which: int) -> None:
    kind, options = FILES[which]
    file = bytearray(saved(gradient(64, 48), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(file), 400) - 1))
        file[at] = data.draw(st.integers(0, 255))
    try:
        picture = read_picture(bytes(file), max_pixels=MAX_PICTURE_PIXELS)
    except InvalidInputError:
        return
    announced = announced_size(bytes(file))
    assert announced is None or announced[0] * announced[1] >= picture.width * picture.height


def test_a_small_size_that_overlaps_the_right_one_hides_nothing() -> None:
    file = saved(gradient(300, 200), "AVIF")
    at = file.index(b"ispe")
    small = b"ispe" + bytes(4) + b"\0\0\0\1"  # followed by the box of the right one
    width, height = announced_size(file[: at - 4] + small + file[at - 4 :]) or (0, 0)
    assert width * height >= 300 * 200


def test_headers_beyond_the_first_part_of_a_file_are_not_looked_for() -> None:
    file = saved(gradient(40, 24), "JPEG")
    comments = b"\xff\xfe\xff\xff" + bytes(2**16 - 3)
    assert announced_size(file[:2] + 3 * comments + file[2:]) == (40, 24)
    assert announced_size(file[:2] + 4 * comments + file[2:]) is None


def test_a_number_that_the_first_part_of_a_file_cuts_off_is_not_taken_for_a_smaller_one() -> None:
    for cut in (1, 2, 3):
        begin = b"P4 1024 #"
        comment = b"a" * (2**18 - len(begin) - 1 - cut)
        file = begin + comment + b"\n1024\n" + bytes(1024 * 128)
        picture = read_picture(file, max_pixels=MAX_PICTURE_PIXELS)
        assert (picture.width, picture.height) == (1024, 1024)
        assert announced_size(file) in (None, (1024, 1024))


def test_many_items_are_not_all_looked_at() -> None:
    assert announced_size(b"\0\0\0\x20ftypavif" + b"ispe" + bytes(4) + b"\0\0\1\0" * 2) == (256, 256)
    assert announced_size(b"\0\0\0\x20ftypavif" + b"ispe" * 2**20) is None
