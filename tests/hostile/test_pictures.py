"""Hostile pictures: each is sent or clearly refused, by the library and by the gateway, and never a 5xx."""

from __future__ import annotations

import base64
from functools import cache

import httpx2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dekag.api.limits import MAX_PICTURE_PIXELS
from dekag.errors import InvalidInputError
from dekag.generation.images import from_bytes
from dekag.pictures import read_picture
from tests.hostile.budgets import examples
from tests.hostile.pictures import KINDS, gradient, saved
from tests.hostile.rest import check_answer
from tests.hostile.tally import Tally

pytestmark = pytest.mark.asyncio(loop_scope="session")
FILES = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "PPM")
LIBRARY, REST = "pictures for the library", "pictures, rest POST /v1/pictures"


@cache
def made(kind: str) -> bytes:
    return KINDS[kind][0]()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_library_reads_or_refuses_each_kind(picture_tally: Tally, kind: str) -> None:
    _, size, word = KINDS[kind]
    if size is not None:
        picture = read_picture(made(kind), max_pixels=MAX_PICTURE_PIXELS)
        assert (picture.width, picture.height) == size
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape == (*size[::-1], 3)
        assert word in "; ".join(picture.notes)
        assert bool(word) == bool(picture.notes)
        picture_tally.note(LIBRARY, "read")
        return
    with pytest.raises(InvalidInputError) as error:
        read_picture(made(kind), max_pixels=MAX_PICTURE_PIXELS)
    assert error.value.field == "picture"
    if kind != "empty":  # whose size is refused before it is read
        assert word in str(error.value)
    picture_tally.note(LIBRARY, "refused")


@pytest.mark.parametrize("way", ["json", "form"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_gateway_sends_or_refuses_each_kind(
    client: httpx2.AsyncClient, picture_tally: Tally, kind: str, way: str
) -> None:
    data, (_, size, word) = made(kind), KINDS[kind]
    if way == "json":
        answer = await client.post("/v1/pictures", json={"picture": base64.b64encode(data).decode()})
    else:  # names and types lie
        answer = await client.post("/v1/pictures", files={"picture": ("photo.jpg", data, "image/jpeg")})
    check_answer(answer.status_code, answer.headers, answer.text)
    picture_tally.answered(REST, answer.status_code)
    if size is None:
        assert answer.status_code == 422, answer.text
        assert word in answer.json()["errors"][0]["detail"]
        return
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    report = image["link_report"]["picture"]
    assert (report["width"], report["height"]) == size
    assert word in "; ".join(report["notes"])
    assert from_bytes(base64.b64decode(image["b64_json"])).shape == (*size[::-1], 3)


@examples(quick=20, thorough=1000)
@given(data=st.data(), kind=st.sampled_from(FILES))
async def test_any_damage_is_survived(
    client: httpx2.AsyncClient, picture_tally: Tally, data: st.DataObject, kind: str
) -> None:
    file = bytearray(_whole(kind))
    for _ in range(data.draw(st.integers(1, 5))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del file[data.draw(st.integers(0, len(file) - 1)) :]
    answer = await client.post("/v1/pictures", json={"picture": base64.b64encode(file).decode()})
    check_answer(answer.status_code, answer.headers, answer.text)
    picture_tally.answered(f"{REST}, damaged", answer.status_code)
    assert answer.status_code in (200, 422), answer.text


@cache
def _whole(kind: str) -> bytes:
    return saved(gradient(33, 20), kind)


async def test_sixteen_bits_keep_the_upper_eight() -> None:
    for kind in ("16 bits, grey", "16 bits, RGB", "16 bits, PPM"):
        assert np.unique(read_picture(made(kind)).pixels).tolist() == [0x80]


async def test_transparent_parts_are_white() -> None:
    pixels = read_picture(made("transparent")).pixels
    blended = np.array(gradient(40, 24))
    expected = np.round(blended * (128 / 255) + 255 * (127 / 255))
    assert np.abs(pixels - expected).max() <= 1


async def test_a_turned_picture_is_upright() -> None:
    upright = read_picture(made("EXIF, on its side")).pixels.astype(int)
    assert np.abs(upright - np.rot90(np.array(gradient(40, 24)).astype(int), -1)).mean() < 12
