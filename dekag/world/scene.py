"""What a scene says: six attributes, and how to draw them at random."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

SUBJECTS = (
    "cat",
    "fish",
    "bird",
    "butterfly",
    "boat",
    "car",
    "house",
    "tree",
    "flower",
    "balloon",
    "mushroom",
    "umbrella",
    "rocket",
    "snail",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "middle", "right")
SETTINGS = ("meadow", "beach", "mountains", "desert", "city", "sea")
STYLES = (
    "storybook",
    "pastel",
    "comic",
    "sepia",
    "negative",
    "watercolor",
    "noir",
    "sunset",
    "neon",
    "blueprint",
    "thermal",
    "stencil",
)

# Styles that paint by brightness alone: what colour the subject is cannot be read off the picture.
COLOURLESS_STYLES = frozenset({"sepia", "noir", "blueprint", "thermal", "stencil"})

HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Scene:
    """The attributes of one picture; every field holds a word of the tuple of the same name."""

    subject: str
    colour: str
    size: str
    position: str
    setting: str
    style: str

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")

    @property
    def held_out(self) -> bool:
        """Whether this combination of subject, colour, setting and style is kept out of all training."""
        words = f"{self.subject} {self.colour} {self.setting} {self.style}"
        return zlib.crc32(words.encode()) % HELD_OUT_ONE_IN == 0

    def visible_attributes(self) -> tuple[str, ...]:
        """Names of the judged attributes that this scene's style leaves visible."""
        judged = ("subject", "colour", "setting", "style")
        if self.style in COLOURLESS_STYLES:
            return tuple(name for name in judged if name != "colour")
        return judged


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "size": SIZES,
    "position": POSITIONS,
    "setting": SETTINGS,
    "style": STYLES,
}


def random_scene(
    rng: random.Random,
    *,
    subjects: tuple[str, ...] = SUBJECTS,
    styles: tuple[str, ...] = STYLES,
) -> Scene:
    """Draw every attribute uniformly; `subjects` and `styles` restrict what may come up."""
    return Scene(
        subject=rng.choice(subjects),
        colour=rng.choice(COLOURS),
        size=rng.choice(SIZES),
        position=rng.choice(POSITIONS),
        setting=rng.choice(SETTINGS),
        style=rng.choice(styles),
    )
