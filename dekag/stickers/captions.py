"""Captions of scenes in free English: any order, with synonyms, from a few words to a few sentences."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from dekag.stickers.scene import Scene
from dekag.stickers.styles import STYLE_BY_NAME
from dekag.stickers.subjects import SUBJECT_BY_NAME

SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
SIDE_WORDS = {
    "left": ("on the left", "on the left side", "to the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "to the right"),
}
PLACE_WORDS = {
    "meadow": ("in a meadow", "in the meadow", "on a green meadow", "in a grassy field", "among green hills"),
    "beach": ("on a beach", "on the beach", "on a sandy beach", "at the seaside", "by the shore"),
    "snow": ("in the snow", "in a snowy field", "in a snowy landscape", "in front of snowy mountains"),
    "desert": ("in the desert", "in a sandy desert", "among desert dunes", "in a desert"),
    "forest": ("in a forest", "in the forest", "in the woods", "among pine trees"),
    "city": ("in a city", "in the city", "on a city street", "in town", "in front of city buildings"),
    "sea": ("on the sea", "at sea", "on the water", "on the ocean waves"),
    "underwater": ("under the sea", "underwater", "at the bottom of the sea", "deep under water"),
    "room": ("in a room", "in a living room", "indoors", "at home", "inside a cosy room"),
    "moon": ("on the moon", "on the surface of the moon", "in space on the moon"),
}
# Phrases for a place with a word of a vocabulary topic, and bare nouns.
PLACE_WITH = {
    "meadow": "in the {}",
    "beach": "on the {}",
    "snow": "in the {}",
    "desert": "in the {}",
    "forest": "in the {}",
    "city": "in the {}",
    "sea": "on the {}",
    "underwater": "in the {}",
    "room": "in the {}",
    "moon": "on the {}",
}
PLACE_NOUNS = {
    "meadow": ("meadow", "green meadow", "grassy field"),
    "beach": ("beach", "sandy beach", "seaside"),
    "snow": ("snow", "snowy field", "snowy mountains"),
    "desert": ("desert", "sand dunes"),
    "forest": ("forest", "woods", "pine forest"),
    "city": ("city", "city street", "town"),
    "sea": ("sea", "ocean waves", "open sea"),
    "underwater": ("underwater", "under the sea", "sea floor"),
    "room": ("room", "living room", "indoors"),
    "moon": ("moon", "moon surface"),
}
TIME_WORDS = {
    "day": ("on a sunny day", "in daylight", "by day"),
    "sunset": ("at sunset", "at dusk", "in the evening", "with a setting sun"),
    "night": ("at night", "by night", "on a moonlit night", "by moonlight"),
}
TIME_NOUNS = {
    "day": ("sunny day", "daylight"),
    "sunset": ("sunset", "dusk"),
    "night": ("night", "moonlit night"),
}
WEARS = {
    "crown": ("wearing a crown", "with a crown on its head", "with a royal crown"),
    "top-hat": ("wearing a top hat", "with a top hat on its head", "in a black top hat"),
}
# Names of mixed colours.
MIXED_WORDS = {"panda": "black and white", "penguin": "black and white", "cow": "black and white"}

# Probabilities that size, position, the subject's own colour, daytime and the sticker style are mentioned.
SIZE_SHARE = 0.6
SIDE_SHARE = 0.6
OWN_COLOUR_SHARE = 0.5
DAY_SHARE = 0.15
STICKER_SHARE = 0.35


# Sentences without information about the scene, as people write them.
EXTRAS = ("It looks friendly and clean", "The light is soft", "Please make it look nice")
VOWEL_SOUNDS = ("a", "e", "i", "o", "u", "8")


def caption(scene: Scene, rng: random.Random, words: Mapping[str, str] | None = None) -> str:
    """A caption of `scene`; `words` replaces plain words by those of a vocabulary topic.

    Always mentioned: subject, setting, a colour other than the subject's own, sunset and night, and style.
    The rest is mentioned sometimes. Exception: at sunset and at night, the setting meadow is sometimes
    omitted.
    """
    parts = _Parts(scene, rng, words or {})
    form = rng.random()
    if form < 0.40:
        return _clauses(parts, rng)
    if form < 0.65:
        return _sentence(parts, rng)
    if form < 0.82:
        return _keywords(parts, rng)
    return _story(parts, rng)


def says_size_and_side(prompt: str, scene: Scene) -> bool:
    """Whether a caption of `scene` names both, so that where its subject is to be seen follows from it.

    Example:
        >>> from dekag.stickers import Scene
        >>> from dekag.stickers.captions import says_size_and_side
        >>> fox = Scene("fox", "red", "small", "left", "snow")
        >>> says_size_and_side("a tiny red fox in the snow, on the left", fox)
        True
    """
    return all(
        any(re.search(rf"\b{re.escape(phrase)}\b", prompt) for phrase in phrases)
        for phrases in (SIZE_WORDS[scene.size], SIDE_WORDS[scene.position])
    )


class _Parts:
    """The words for each attribute, selected once per caption; empty if an attribute is not mentioned."""

    def __init__(self, scene: Scene, rng: random.Random, words: Mapping[str, str]) -> None:
        subject = SUBJECT_BY_NAME[scene.subject]
        self.subject = words.get(subject.name) or _one_of(rng, subject.name, subject.synonyms)
        self.colour = ""
        if scene.colour != subject.colour or scene.colour in words or rng.random() < OWN_COLOUR_SHARE:
            plain = MIXED_WORDS.get(subject.name, "") if scene.colour == "mixed" else scene.colour
            self.colour = words.get(plain, plain)
        if self.colour and self.subject.startswith(self.colour):
            self.colour = ""
        self.size = rng.choice(SIZE_WORDS[scene.size]) if rng.random() < SIZE_SHARE else ""
        # Of two subjects, there is one on each side.
        says_side = scene.companion is None and rng.random() < SIDE_SHARE
        self.side = rng.choice(SIDE_WORDS[scene.position]) if says_side else ""
        said = scene.time != "day" or rng.random() < DAY_SHARE
        timeless = scene.setting in ("underwater", "moon")
        self.time = rng.choice(TIME_WORDS[scene.time]) if said and not timeless else ""
        self.time_noun = rng.choice(TIME_NOUNS[scene.time]) if self.time else ""
        if scene.setting in words:
            self.place = PLACE_WITH[scene.setting].format(words[scene.setting])
            self.place_noun = words[scene.setting]
        else:
            self.place = rng.choice(PLACE_WORDS[scene.setting])
            self.place_noun = rng.choice(PLACE_NOUNS[scene.setting])
        if scene.setting == "meadow" and scene.time != "day" and not words and rng.random() < 0.25:
            self.place = self.place_noun = ""
        self.style = ""
        if scene.style != "sticker" or rng.random() < STICKER_SHARE:
            self.style = rng.choice(STYLE_BY_NAME[scene.style].words)
        self.wears = rng.choice(WEARS[scene.accessory]) if scene.accessory else ""
        self.companion = ""
        if scene.companion is not None:
            other = SUBJECT_BY_NAME[scene.companion]
            self.companion = words.get(other.name) or _one_of(rng, other.name, other.synonyms)
        self.verb = "flies" if subject.flies else "is"

    @property
    def bare(self) -> str:
        """The subject with size and colour, without an article."""
        return _join(self.size, self.colour, self.subject)

    @property
    def thing(self) -> str:
        """The subject with an article, its accessory and its companion."""
        return _join(_with_article(self.bare), self.wears, self.beside)

    @property
    def beside(self) -> str:
        """The companion of the subject."""
        return f"and {_with_article(self.companion)}" if self.companion else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _with_article(words: str) -> str:
    """`words` with the article "a" or "an"."""
    vowel = words.startswith(VOWEL_SOUNDS) and not words.startswith("ufo")
    return f"an {words}" if vowel else f"a {words}"


def _one_of(rng: random.Random, name: str, synonyms: tuple[str, ...]) -> str:
    """The plain name with probability 2/3, otherwise a synonym."""
    return rng.choice(synonyms) if synonyms and rng.random() < 1 / 3 else name


def _clauses(parts: _Parts, rng: random.Random) -> str:
    """Phrases separated by commas: 'neon style: a red fox in the snow, on the left'."""
    where = [part for part in (parts.place, parts.time, parts.side) if part]
    rng.shuffle(where)
    held = rng.randint(0, len(where))
    clauses = [_join(parts.thing, *where[:held]), *where[held:]]
    if rng.random() < 0.3:
        rng.shuffle(clauses)
    text = ", ".join(clauses)
    if not parts.style:
        return text
    style = rng.choice((f"{parts.style} style", f"in {parts.style} style", parts.style))
    if rng.random() < 0.6:
        return f"{text}, {style}"
    return f"{style}{rng.choice((': ', ', '))}{text}"


def _sentence(parts: _Parts, rng: random.Random) -> str:
    """One phrase: 'a neon image of a red fox in the snow'."""
    where = [part for part in (parts.place, parts.time, parts.side) if part]
    rng.shuffle(where)
    place = " ".join(where)
    style = parts.style
    picture = _join(style, rng.choice(("picture", "image", "scene")))
    return rng.choice(
        (
            _join(_with_article(picture), "of", parts.thing, place),
            _join(picture, "showing", parts.thing, place),
            _join(parts.thing, place, style and f"in {style} style"),
            _join(place, "there is", parts.thing) + (f", {style} style" if style else ""),
        )
    ).strip()


def _keywords(parts: _Parts, rng: random.Random) -> str:
    """Keywords: 'neon style: fox, red, snowy field'."""
    name, rest = parts.bare, []
    if rng.random() < 0.5 and not parts.companion:
        name, rest = parts.subject, [parts.colour, parts.size]
    rest += [parts.wears, parts.place_noun, parts.time_noun, parts.side]
    rest = [part for part in rest if part]
    rng.shuffle(rest)
    text = ", ".join([_join(name, parts.beside), *rest])
    if not parts.style:
        return text
    return rng.choice((f"{parts.style} style: {text}", f"{text}, {parts.style}", f"{parts.style}, {text}"))


def _story(parts: _Parts, rng: random.Random) -> str:
    """Sentences of up to about forty words."""
    opening = rng.choice(("Please draw", "I would like to see", "The picture shows", "Here is", "Imagine"))
    pronoun = "They are" if parts.companion else "It flies" if parts.verb == "flies" else "It is"
    where = _join(parts.place, parts.time)
    sentences = []
    if where and rng.random() < 0.5:
        sentences = [f"{opening} {parts.thing}", f"{pronoun} {_join(where, parts.side)}"]
    else:
        sentences = [f"{opening} {_join(parts.thing, where)}"]
        if parts.side:
            sentences.append(f"{pronoun} {parts.side} of the picture")
    if parts.style:
        sentences.append(
            rng.choice(
                (
                    f"The whole scene is in {parts.style} style",
                    f"Make it look like {parts.style}",
                    f"The style is {parts.style}",
                )
            )
        )
    elif rng.random() < 0.4:
        sentences.append(rng.choice(EXTRAS))
    return ". ".join(sentences) + "."
