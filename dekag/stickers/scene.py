"""The attributes of a scene, and random scenes."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace
from functools import cache

from dekag.stickers.colour import PAINTS
from dekag.stickers.settings import DRAW_SETTING
from dekag.stickers.styles import STYLE_BY_NAME
from dekag.stickers.subjects import ACCESSORIES, SUBJECT_BY_NAME

SUBJECTS = tuple(SUBJECT_BY_NAME)
# "mixed" is the colour of a multicoloured subject; captions do not contain the word.
COLOURS = (*PAINTS, "brown", "grey", "white", "mixed")
SIZES = ("small", "large")
POSITIONS = ("left", "middle", "right")
SETTINGS = tuple(DRAW_SETTING)
TIMES = ("day", "sunset", "night")
STYLES = tuple(STYLE_BY_NAME)

TIMELESS = frozenset({"underwater", "moon"})  # settings that look the same at every time of day
PAINTED_SHARE = 0.6  # probability that a paintable subject has another colour than its own
TIME_SHARES = (0.7, 0.15, 0.15)
STICKER_SHARE = 0.5  # probability of the style "sticker", where it is allowed
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Scene:
    """The attributes of one image; each field has a value of the tuple of the same name.

    `companion` is a second subject in its own colour, if any; `accessory` is what the first subject wears, if
    anything.
    """

    subject: str
    colour: str
    size: str
    position: str
    setting: str
    time: str = "day"
    style: str = "sticker"
    companion: str | None = None
    accessory: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        if self.companion is not None and self.companion not in SUBJECTS:
            raise ValueError(f"companion must be one of {', '.join(SUBJECTS)}; got {self.companion!r}")
        if self.accessory is not None and self.accessory not in ACCESSORIES:
            raise ValueError(f"accessory must be one of {', '.join(ACCESSORIES)}; got {self.accessory!r}")
        if self.accessory is not None and not SUBJECT_BY_NAME[self.subject].wears:
            raise ValueError(f"a {self.subject} wears no {self.accessory}")
        colours = colours_of(self.subject)
        if self.colour not in colours:
            raise ValueError(
                f"the colour of a {self.subject} is one of {', '.join(colours)}; got {self.colour!r}"
            )

    @property
    def held_out(self) -> bool:
        """Whether this combination of first subject, colour and setting is excluded from training."""
        return (self.colour, self.setting) in _held_out(self.subject)

    @property
    def trainable(self) -> bool:
        """Whether a rendered training image may show this: a companion's combination is not held out either.

        The models that ship learned from images for which only the first subject was looked at.
        """
        if self.companion is None:
            return not self.held_out
        own = SUBJECT_BY_NAME[self.companion].colour
        return not self.held_out and (own, self.setting) not in _held_out(self.companion)

    def visible_attributes(self) -> tuple[str, ...]:
        """Names of the judged attributes that this scene shows."""
        shows_colour = STYLE_BY_NAME[self.style].keeps_colour and self.colour != "mixed"
        return tuple(
            name for name in ("subject", "colour", "setting", "style") if name != "colour" or shows_colour
        )


@cache
def _held_out(subject: str) -> frozenset[tuple[str, str]]:
    """The held-out colours and settings of `subject`: a tenth of them, at least one, selected by a hash."""
    pairs = [
        (colour, setting) for colour in colours_of(subject) for setting in SUBJECT_BY_NAME[subject].settings
    ]
    count = max(1, round(len(pairs) / HELD_OUT_ONE_IN))
    return frozenset(
        sorted(pairs, key=lambda pair: zlib.crc32(f"{subject} {' '.join(pair)}".encode()))[:count]
    )


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "size": SIZES,
    "position": POSITIONS,
    "setting": SETTINGS,
    "time": TIMES,
    "style": STYLES,
}


def colours_of(subject: str) -> tuple[str, ...]:
    """The allowed colours of `subject`, its own first."""
    own = SUBJECT_BY_NAME[subject].colour
    if not SUBJECT_BY_NAME[subject].paintable:
        return (own,)
    return (own, *(colour for colour in PAINTS if colour != own))


def random_scene(
    rng: random.Random,
    *,
    subjects: tuple[str, ...] = SUBJECTS,
    styles: tuple[str, ...] = STYLES,
    companions: float = 0.0,
    accessory: str | None = None,
) -> Scene:
    """A random scene with one of `subjects` and one of `styles`.

    If `styles` contains "sticker", its probability is `STICKER_SHARE`; other styles are equally likely.
    `companions` is the probability of a second subject. With an `accessory`, only subjects that can wear one
    occur.
    """
    if accessory is not None:
        subjects = tuple(name for name in subjects if SUBJECT_BY_NAME[name].wears)
    subject = SUBJECT_BY_NAME[rng.choice(subjects)]
    own, *others = colours_of(subject.name)
    colour = rng.choice(others) if others and rng.random() < PAINTED_SHARE else own
    setting = rng.choice(subject.settings)
    time = "day" if setting in TIMELESS else rng.choices(TIMES, TIME_SHARES)[0]
    treated = tuple(style for style in styles if style != "sticker")
    plain = "sticker" in styles and (not treated or rng.random() < STICKER_SHARE)
    scene = Scene(
        subject=subject.name,
        colour=colour,
        size=rng.choice(SIZES),
        position=rng.choice(POSITIONS),
        setting=setting,
        time=time,
        style="sticker" if plain else rng.choice(treated),
        accessory=accessory,
    )
    if companions and rng.random() < companions:
        partners = [
            name for name in subjects if name != subject.name and setting in SUBJECT_BY_NAME[name].settings
        ]
        if partners:
            side = rng.choice(("left", "right"))
            scene = replace(scene, companion=rng.choice(partners), position=side, size="small")
    return scene
