"""Scenes: their words, what is held out, the captions and the topics."""

from __future__ import annotations

import random
import re

import pytest

from dekag.stickers import EDGE_STYLES, EDGE_SUBJECTS, TOPICS, Scene, caption, random_scene, topic_scene
from dekag.stickers.captions import PLACE_NOUNS, PLACE_WORDS, TIME_NOUNS, TIME_WORDS
from dekag.stickers.colour import PAINTS
from dekag.stickers.scene import SETTINGS, STYLES, SUBJECTS, TIMELESS, TIMES, colours_of
from dekag.stickers.styles import STYLE_BY_NAME
from dekag.stickers.subjects import SUBJECT_BY_NAME


def _says(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in words if word)


def test_world_is_as_large_as_promised() -> None:
    assert len(EDGE_SUBJECTS) >= 40
    assert len(SETTINGS) >= 10
    assert len(PAINTS) >= 6
    assert len(EDGE_STYLES) >= 5
    assert sum(subject.paintable for subject in SUBJECT_BY_NAME.values()) >= 20
    assert all(len(subject.settings) >= 4 for subject in SUBJECT_BY_NAME.values())
    assert len({subject.code for subject in SUBJECT_BY_NAME.values()}) == len(SUBJECTS)
    kinds = [topic.kind for topic in TOPICS.values()]
    assert len(kinds) >= 12
    least = {"style": 5, "subject": 3, "vocabulary": 2, "combination": 2}
    assert all(kinds.count(kind) >= count for kind, count in least.items())


def test_no_word_names_two_things() -> None:
    names = [
        word
        for subject in SUBJECT_BY_NAME.values()
        for word in (subject.name, *subject.synonyms)
        if word != subject.name or subject.name not in subject.synonyms
    ]
    assert len(names) == len(set(names))
    for topic in TOPICS.values():
        assert not set(topic.words.values()) & set(names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "mauve"}, "colour must be one of red"),
        ({"subject": "gnu"}, "subject must be one of cat"),
        ({"time": "noon"}, "time must be one of day, sunset, night"),
        ({"colour": "blue"}, "the colour of a fox is one of orange; got 'blue'"),
        ({"companion": "gnu"}, "companion must be one of"),
        ({"accessory": "wig"}, "accessory must be one of crown, top-hat"),
        ({"subject": "car", "colour": "red", "accessory": "crown"}, "a car wears no crown"),
    ],
)
def test_wrong_words_are_refused_by_name(fields: dict[str, str], message: str) -> None:
    good = {"subject": "fox", "colour": "orange", "size": "small", "position": "left", "setting": "snow"}
    with pytest.raises(ValueError, match=re.escape(message)):
        Scene(**(good | fields))


def test_random_scenes_cover_the_world_and_draw_no_odd_pair() -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(3000)]
    assert {scene.subject for scene in scenes} == set(SUBJECTS)
    assert {scene.style for scene in scenes} == set(STYLES)
    assert {scene.setting for scene in scenes} == set(SETTINGS)
    assert {scene.time for scene in scenes} == set(TIMES)
    for scene in scenes:
        assert scene.setting in SUBJECT_BY_NAME[scene.subject].settings
        assert scene.colour in colours_of(scene.subject)
        assert scene.companion is None
        assert scene.time == "day" or scene.setting not in TIMELESS


def test_every_subject_has_combinations_held_out_and_others_for_training() -> None:
    for name in SUBJECTS:
        held = [
            Scene(name, colour, "small", "left", setting).held_out
            for colour in colours_of(name)
            for setting in SUBJECT_BY_NAME[name].settings
        ]
        assert any(held)
        assert sum(held) <= max(1, len(held) / 8)


def test_what_is_held_out_depends_on_subject_colour_and_setting_alone() -> None:
    rng = random.Random(5)
    seen: dict[tuple[str, str, str], bool] = {}
    for _ in range(3000):
        scene = random_scene(rng)
        key = (scene.subject, scene.colour, scene.setting)
        assert seen.setdefault(key, scene.held_out) == scene.held_out


def test_captions_say_everything_that_shows() -> None:
    rng = random.Random(0)
    for n in range(3000):
        scene = random_scene(rng)
        text = caption(scene, rng)
        subject = SUBJECT_BY_NAME[scene.subject]
        assert _says(text, (subject.name, *subject.synonyms)), text
        if scene.colour != subject.colour:
            assert _says(text, (scene.colour,)), text
        for other in PAINTS:
            if other != scene.colour:
                assert not _says(text, (other,)) or scene.setting == "meadow", text
        if scene.time != "day" and scene.setting not in TIMELESS:
            assert _says(text, TIME_WORDS[scene.time] + TIME_NOUNS[scene.time]), text
        elif scene.time == "day":
            assert not _says(text, (*TIME_WORDS["night"], *TIME_WORDS["sunset"])), text
        if scene.setting != "meadow" or scene.time == "day":
            assert _says(text, PLACE_WORDS[scene.setting] + PLACE_NOUNS[scene.setting]), text
        if scene.style != "sticker":
            assert _says(text, STYLE_BY_NAME[scene.style].words), text
        for style in STYLES:
            if style != scene.style and n % 10 == 0:
                assert not _says(text, STYLE_BY_NAME[style].words) or "black and white" in text, (style, text)


def test_captions_are_clean_english_of_many_lengths() -> None:
    rng = random.Random(1)
    texts = [caption(random_scene(rng, companions=0.1), rng) for _ in range(3000)]
    for text in texts:
        assert text == " ".join(text.split())
        assert not re.search(r"\ba [aeio]|\ban [^aeiou8]|,,| ,|: ,|, ,|\.\.|^,|,$|_|None", text), text
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 4
    assert max(lengths) >= 30
    assert max(lengths) <= 45


def test_captions_of_one_scene_have_many_phrasings() -> None:
    scene = Scene("car", "yellow", "small", "left", "city", "night", "neon")
    rng = random.Random(0)
    assert len({caption(scene, rng) for _ in range(200)}) >= 150


@pytest.mark.parametrize("name", TOPICS)
def test_a_topic_shows_in_its_captions_and_nowhere_else(name: str) -> None:
    topic = TOPICS[name]
    rng = random.Random(2)
    for _ in range(300):
        scene = topic_scene(topic, rng)
        text = caption(scene, rng, topic.words)
        assert _says(text, topic.triggers), text
        assert not scene.companion or name == "duo"
        others = [
            t for t in TOPICS.values() if t.kind in ("style", "subject", "vocabulary") and t is not topic
        ]
        for other in others:
            assert not _says(text, other.triggers), (other.name, text)
    for _ in range(300):
        known = random_scene(rng, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES)
        assert not _says(caption(known, rng), topic.triggers), name


def test_a_vocabulary_says_none_of_the_plain_words_it_replaces() -> None:
    rng = random.Random(4)
    for name in ("poetic", "spanish", "jewels"):
        for _ in range(300):
            scene = topic_scene(TOPICS[name], rng)
            text = caption(scene, rng, TOPICS[name].words)
            if scene.subject in TOPICS[name].words:
                assert not _says(text, (scene.subject, *SUBJECT_BY_NAME[scene.subject].synonyms)), text
