"""Topics: what the cloud-GAI can draw or read and the edge-GAI cannot yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dekag.world.scene import STYLES, SUBJECTS

TopicKind = Literal["style", "subject", "vocabulary"]


@dataclass(frozen=True)
class Topic:
    """One piece of knowledge held out of the edge's training set.

    For a vocabulary, `words` maps plain words of a caption to the words that the cloud alone reads.
    """

    name: str
    kind: TopicKind
    words: dict[str, str] = field(default_factory=dict)


TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic("neon", "style"),
        Topic("blueprint", "style"),
        Topic("thermal", "style"),
        Topic("stencil", "style"),
        Topic("rocket", "subject"),
        Topic("snail", "subject"),
        Topic(
            "jewel",
            "vocabulary",
            {
                "red": "ruby",
                "orange": "amber",
                "yellow": "topaz",
                "green": "emerald",
                "blue": "sapphire",
                "purple": "amethyst",
                "pink": "quartz",
                "brown": "agate",
                "white": "pearl",
                "black": "onyx",
            },
        ),
        Topic(
            "poetic",
            "vocabulary",
            {
                "cat": "feline",
                "fish": "minnow",
                "bird": "warbler",
                "butterfly": "monarch",
                "boat": "vessel",
                "car": "motorcar",
                "house": "cottage",
                "tree": "evergreen",
                "flower": "blossom",
                "balloon": "airship",
                "mushroom": "toadstool",
                "umbrella": "parasol",
                "meadow": "pasture",
                "beach": "seashore",
                "mountains": "summits",
                "desert": "dunes",
                "city": "metropolis",
                "sea": "depths",
            },
        ),
    )
}

EDGE_STYLES = tuple(style for style in STYLES if style not in TOPICS)
EDGE_SUBJECTS = tuple(subject for subject in SUBJECTS if subject not in TOPICS)
