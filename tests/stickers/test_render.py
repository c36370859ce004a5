"""Scenes are drawn alike for the same seed, stand on the ground and show what they say."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from dekag.stickers import Scene, random_scene, render, render_with_mask
from dekag.stickers.colour import PAINTS, to_oklab
from dekag.stickers.render import CELL
from dekag.stickers.scene import SETTINGS, STYLES, TIMELESS, TIMES, colours_of
from dekag.stickers.sprites import forget_sprites
from dekag.stickers.subjects import SUBJECT_BY_NAME

SCENE = Scene("fox", "orange", "large", "middle", "meadow")

pytestmark = pytest.mark.usefixtures("artwork")


def _extent(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """First and last row, first and last column of the subject."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > 40), np.flatnonzero(mask.max(axis=0) > 40)
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("size", [128, 256])
def test_same_seed_same_pixels_and_another_seed_other_pixels(size: int) -> None:
    for n in range(20):
        scene = random_scene(random.Random(n))
        first, mask = render_with_mask(scene, n, size=size)
        assert first.shape == (size, size, 3)
        assert first.dtype == np.uint8
        assert mask.shape == (size, size)
        forget_sprites()
        np.testing.assert_array_equal(first, render(scene, n, size=size))
        assert (first != render(scene, n + 1000, size=size)).any()


def test_a_size_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be a multiple of 32; got 100"):
        render(SCENE, 1, size=100)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_and_hours_differ_from_each_other(setting: str) -> None:
    subject = next(name for name, subject in SUBJECT_BY_NAME.items() if setting in subject.settings)
    colour = SUBJECT_BY_NAME[subject].colour
    base = Scene(subject, colour, "small", "middle", setting)
    hours = ("day",) if setting in TIMELESS else TIMES
    own = [render(replace(base, time=time), 5).astype(int) for time in hours]
    others = [
        render(replace(base, setting=other), 5).astype(int)
        for other in SUBJECT_BY_NAME[subject].settings
        if other != setting
    ]
    for n, picture in enumerate(own):
        for other in (*own[n + 1 :], *others):
            assert np.abs(picture - other).mean() > 8


@pytest.mark.parametrize("style", [style for style in STYLES if style != "sticker"])
def test_every_style_changes_the_picture_and_leaves_the_subject_visible(style: str) -> None:
    for setting, time in (("meadow", "day"), ("city", "night"), ("room", "sunset")):
        plain = replace(SCENE, setting=setting, time=time)
        before = render(plain, 7).astype(int)
        styled, mask = render_with_mask(replace(plain, style=style), 7)
        assert np.abs(styled.astype(int) - before).mean() > 8
        grey = styled.mean(axis=-1)
        top, bottom, left, right = _extent(mask)
        middle = slice((top + bottom) // 2 - 2, (top + bottom) // 2 + 2)
        assert np.ptp(grey[middle, left - 6 : left + 10].mean(axis=0)) > 20
        assert np.ptp(grey[middle, right - 10 : right + 6].mean(axis=0)) > 20
        assert np.ptp(grey[top:bottom, left:right]) > 40


def test_styles_stay_cheap_to_code() -> None:
    """No style may need much more than the plain picture: random texture would."""

    def size(picture: npt.NDArray[np.uint8]) -> int:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "WEBP", quality=75)
        return file.tell()

    scenes = [random_scene(random.Random(n), styles=("sticker",)) for n in range(6)]
    plain = sum(size(render(scene, 3, size=128)) for scene in scenes)
    for style in STYLES:
        assert (
            sum(size(render(replace(scene, style=style), 3, size=128)) for scene in scenes) < 2.5 * plain
        ), style


@pytest.mark.parametrize("place", ["left", "middle", "right"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_subjects_stand_on_the_grid_of_the_latents(size: str, place: str) -> None:
    for seed in range(6):
        _, mask = render_with_mask(Scene("car", "red", size, place, "city"), seed)
        top, bottom, left, right = _extent(mask)
        assert (bottom + 1) % CELL == 0
        assert left % CELL <= 1
        assert top > 0
        assert right < 255
        middle = (left + right) / 2
        assert {"left": middle < 116, "middle": 104 < middle < 152, "right": middle > 140}[place]


def test_margins_of_the_artwork_do_not_lift_a_subject_off_the_ground(artwork: Path) -> None:
    path = artwork / f"{SUBJECT_BY_NAME['fox'].code}.webp"
    before = render(SCENE, 3)
    with Image.open(path) as picture:
        wide = Image.new("RGBA", (picture.width + 60, picture.height + 90))
        wide.paste(picture, (40, 20))
    wide.save(path, lossless=True)
    forget_sprites()
    np.testing.assert_array_equal(render(SCENE, 3), before)


def test_a_shadow_touches_the_subject() -> None:
    for setting in ("meadow", "snow", "beach", "desert"):
        with_one, mask = render_with_mask(replace(SCENE, setting=setting), 3)
        _, bottom, left, right = _extent(mask)
        middle = slice((left + right) // 2 - 8, (left + right) // 2 + 8)
        under = with_one[bottom + 2 : bottom + 4, middle].mean()
        away = with_one[bottom + 2 : bottom + 4, [4, 5, 6, 7]].mean()
        assert under < 0.9 * away


@pytest.mark.parametrize("time", TIMES)
def test_the_light_of_the_hour_falls_on_the_subject(time: str) -> None:
    scene = Scene("elephant", "grey", "large", "middle", "meadow", time)
    picture, mask = render_with_mask(scene, 4)
    red, _, blue = picture[mask > 250].mean(axis=0)
    if time == "day":
        assert abs(red - blue) < 12
    elif time == "sunset":
        assert red > blue + 15
    else:
        assert blue > red + 15


@pytest.mark.parametrize("word", PAINTS)
def test_the_colour_word_holds_in_every_light(word: str) -> None:
    for setting, time in (("city", "day"), ("city", "sunset"), ("city", "night"), ("moon", "day")):
        picture, mask = render_with_mask(Scene("car", word, "large", "middle", setting, time), 4)
        lab = to_oklab(picture[mask > 250] / 255)
        strong = lab[np.hypot(lab[:, 1], lab[:, 2]) > 0.06].mean(axis=0)
        hue = float(np.degrees(np.arctan2(strong[2], strong[1])) % 360)
        away = {other: abs((hue - PAINTS[other].hue + 180) % 360 - 180) for other in PAINTS}
        assert away[word] < 30, (setting, time, hue)
        assert away[word] <= min(away.values()) + 12, (setting, time, hue)


def test_a_subject_like_its_background_is_set_apart(artwork: Path) -> None:
    """A sprite in the very colour of what is behind it still has an edge."""
    scene = Scene("frog", "green", "large", "middle", "meadow")
    picture, mask = render_with_mask(scene, 3)
    ring = (mask < 5) & (np.roll(mask, 6, 0) > 250)
    colour = tuple(int(value) for value in np.median(picture[ring], axis=0))
    Image.new("RGBA", (64, 64), (*colour, 255)).save(artwork / f"{SUBJECT_BY_NAME['owl'].code}.webp")
    forget_sprites()
    picture, mask = render_with_mask(Scene("owl", "brown", "large", "middle", "meadow"), 3)
    top, bottom, left, _ = _extent(mask)
    row = slice((top + bottom) // 2 - 4, (top + bottom) // 2 + 4)
    inside = picture[row, left + 12 : left + 16].mean(axis=(0, 1))
    outside = picture[row, left - 4 : left - 1].mean(axis=(0, 1))
    assert np.abs(inside - outside).max() > 20


def test_what_flies_and_what_swims_is_off_the_ground() -> None:
    lowest = {
        name: _extent(render_with_mask(Scene(name, colours_of(name)[0], "small", "middle", setting), 2)[1])[1]
        for name, setting in (("balloon", "meadow"), ("fish", "underwater"), ("fox", "meadow"))
    }
    assert lowest["balloon"] < lowest["fox"] - 32
    assert lowest["fish"] < lowest["fox"] - 16


def test_water_hides_the_foot_of_what_is_afloat() -> None:
    def height(setting: str) -> int:
        top, bottom, _, _ = _extent(
            render_with_mask(Scene("duck", "mixed", "large", "middle", setting), 2)[1]
        )
        return bottom - top

    assert height("sea") < 0.95 * height("meadow")


def test_two_subjects_stand_side_by_side_and_the_mask_is_the_first_ones() -> None:
    scene = Scene("fox", "orange", "small", "left", "snow", companion="panda")
    alone = replace(scene, companion=None)
    both, mask = render_with_mask(scene, 3)
    _, _, _, right = _extent(mask)
    assert right < 150
    assert np.abs(both.astype(int) - render(alone, 3)).max(axis=-1)[:, 150:].max() > 60


@pytest.mark.parametrize("accessory", ["crown", "top-hat"])
def test_a_hat_makes_its_wearer_taller_by_a_hat(accessory: str) -> None:
    plain = _extent(render_with_mask(SCENE, 3)[1])
    worn = _extent(render_with_mask(replace(SCENE, accessory=accessory), 3)[1])
    assert worn[0] < plain[0] - 20
    assert worn[1] == plain[1]


def test_every_subject_is_drawn_in_every_setting_it_has() -> None:
    for name, subject in SUBJECT_BY_NAME.items():
        for setting in subject.settings:
            _, mask = render_with_mask(Scene(name, subject.colour, "large", "right", setting), 1, size=128)
            assert (mask > 200).mean() > 0.05, (name, setting)
