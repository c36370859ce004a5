"""The world draws the same picture for the same seed and says what it draws."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dekag.training.data import scene_number
from dekag.world import ATTRIBUTES, EDGE_STYLES, EDGE_SUBJECTS, TOPICS, Scene, caption, random_scene, render
from dekag.world.scene import COLOURLESS_STYLES, COLOURS, SETTINGS, STYLES, SUBJECTS

SCENE = Scene("cat", "red", "large", "left", "beach", "comic")


def test_world_is_as_large_as_promised() -> None:
    assert len(EDGE_SUBJECTS) >= 12
    assert len(COLOURS) >= 10
    assert len(SETTINGS) >= 6
    assert len(EDGE_STYLES) >= 8
    kinds = [topic.kind for topic in TOPICS.values()]
    assert [kinds.count(kind) for kind in ("style", "subject", "vocabulary")] == [4, 2, 2]


def test_same_seed_same_pixels_and_another_seed_other_pixels() -> None:
    first = render(SCENE, 5)
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render(SCENE, 5))
    assert (first != render(SCENE, 6)).any()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_visible_attribute_changes_the_picture(name: str) -> None:
    values = ATTRIBUTES[name]
    pictures = []
    for value in values:
        fields = {n: getattr(SCENE, n) for n in ATTRIBUTES} | {name: value}
        pictures.append(render(Scene(**fields), 5).astype(int))
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert np.abs(first - second).mean() > 1.0


@pytest.mark.parametrize("style", sorted({"sepia", "noir", "thermal", "stencil"}))
def test_colourless_styles_show_brightness_alone(style: str) -> None:
    assert style in COLOURLESS_STYLES
    assert "colour" not in Scene("cat", "red", "large", "left", "beach", style).visible_attributes()


def test_wrong_word_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="colour must be one of red"):
        Scene("cat", "mauve", "large", "left", "beach", "comic")


def test_caption_says_subject_colour_setting_and_style() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = random_scene(rng)
        words = caption(scene, rng).replace(",", " ").split()
        assert {scene.subject, scene.colour, scene.setting} <= set(words)
        assert scene.style in words or scene.style == "storybook"
        assert words.count("a") + words.count("an") >= 1


def test_captions_have_several_phrasings() -> None:
    rng = random.Random(0)
    assert len({caption(SCENE, rng) for _ in range(100)}) >= 12


def test_vocabulary_replaces_every_word_it_knows() -> None:
    scene = Scene("cat", "red", "small", "left", "sea", "comic")
    text = caption(scene, random.Random(1), TOPICS["poetic"].words)
    assert "feline" in text
    assert "depths" in text
    assert "cat" not in text.split()


def test_splits_never_share_a_combination_of_attributes() -> None:
    def combinations(split: str) -> set[tuple[str, ...]]:
        scenes = [scene_number(split, n)[0] for n in range(600)]
        return {(s.subject, s.colour, s.setting, s.style) for s in scenes}

    assert not combinations("train") & combinations("test")
    assert not combinations("train") & combinations("validation")


def test_random_scene_covers_the_world() -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(600)]
    assert {s.subject for s in scenes} == set(SUBJECTS)
    assert {s.style for s in scenes} == set(STYLES)
