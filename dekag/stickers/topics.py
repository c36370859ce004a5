"""Topics: styles, subjects, words and combinations that the cloud-GAI knows and the edge-GAI does not."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from dekag.stickers.scene import STYLES, SUBJECTS, Scene, random_scene
from dekag.stickers.styles import STYLE_BY_NAME
from dekag.stickers.subjects import SUBJECT_BY_NAME

TopicKind = Literal["style", "subject", "vocabulary", "combination"]


@dataclass(frozen=True)
class Topic:
    """One piece of knowledge held out of the edge's training set.

    A style or subject topic has the name of the style or subject. For a vocabulary, `words` maps plain words
    of a caption to words that only the cloud knows. A combination adds the accessory of its name, or a second
    subject.
    """

    name: str
    kind: TopicKind
    words: dict[str, str] = field(default_factory=dict)

    @property
    def triggers(self) -> tuple[str, ...]:
        """The words in a prompt that select this topic."""
        if self.kind == "style":
            return STYLE_BY_NAME[self.name].words
        if self.kind == "subject":
            return (self.name, *SUBJECT_BY_NAME[self.name].synonyms)
        if self.kind == "vocabulary":
            return tuple(self.words.values())
        return ("and a", "and an") if self.name == "duo" else (self.name.replace("-", " "),)


_JEWELS = {
    "red": "ruby",
    "orange": "amber",
    "yellow": "topaz",
    "green": "emerald",
    "blue": "sapphire",
    "purple": "amethyst",
    "pink": "rose quartz",
}
_POETIC = {
    "cat": "feline",
    "dog": "canine",
    "fox": "reynard",
    "bear": "bruin",
    "lion": "king of beasts",
    "rabbit": "cottontail",
    "frog": "amphibian",
    "fish": "minnow",
    "turtle": "terrapin",
    "butterfly": "monarch",
    "elephant": "pachyderm",
    "car": "motorcar",
    "sailboat": "vessel",
    "house": "dwelling",
    "tree": "oak",
    "umbrella": "parasol",
    "robot": "automaton",
    "meadow": "pasture",
    "beach": "strand",
    "snow": "tundra",
    "desert": "wasteland",
    "forest": "grove",
    "city": "metropolis",
    "sea": "high seas",
    "underwater": "abyss",
    "room": "parlour",
    "moon": "lunar plain",
}
_SPANISH = {
    "red": "rojo",
    "orange": "naranja",
    "yellow": "amarillo",
    "green": "verde",
    "blue": "azul",
    "purple": "morado",
    "pink": "rosa",
    "cat": "gato",
    "dog": "perro",
    "fox": "zorro",
    "bear": "oso",
    "lion": "leon",
    "pig": "cerdo",
    "rabbit": "conejo",
    "frog": "rana",
    "fish": "pez",
    "turtle": "tortuga",
    "butterfly": "mariposa",
    "apple": "manzana",
    "car": "coche",
    "house": "casa",
    "tree": "arbol",
    "meadow": "prado",
    "beach": "playa",
    "snow": "nieve",
    "desert": "desierto",
    "forest": "bosque",
    "city": "ciudad",
    "sea": "mar",
    "room": "sala",
    "moon": "luna",
}

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("neon", "style"),
        Topic("pixel-art", "style"),
        Topic("watercolour", "style"),
        Topic("thermal", "style"),
        Topic("vaporwave", "style"),
        Topic("rocket", "subject"),
        Topic("ufo", "subject"),
        Topic("snail", "subject"),
        Topic("flamingo", "subject"),
        Topic("jewels", "vocabulary", _JEWELS),
        Topic("poetic", "vocabulary", _POETIC),
        Topic("spanish", "vocabulary", _SPANISH),
        Topic("crown", "combination"),
        Topic("top-hat", "combination"),
        Topic("duo", "combination"),
    )
}

EDGE_STYLES = tuple(style for style in STYLES if style not in TOPICS)
EDGE_SUBJECTS = tuple(subject for subject in SUBJECTS if subject not in TOPICS)


def topic_scene(topic: Topic, rng: random.Random) -> Scene:
    """A scene that needs `topic` and otherwise contains only what the edge knows."""
    if topic.kind == "style":
        return random_scene(rng, subjects=EDGE_SUBJECTS, styles=(topic.name,))
    if topic.kind == "subject":
        return random_scene(rng, subjects=(topic.name,), styles=EDGE_STYLES)
    if topic.kind == "combination":
        if topic.name == "duo":
            return random_scene(rng, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES, companions=1.0)
        return random_scene(rng, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES, accessory=topic.name)
    while True:  # a vocabulary topic: a scene with one of its words
        scene = random_scene(rng, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES)
        if {scene.subject, scene.colour, scene.setting} & set(topic.words):
            return scene
