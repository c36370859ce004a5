"""Light: the lighting that a setting passes to the compositor, and colours at each time of day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dekag.stickers.colour import Colour, mix, rgb


@dataclass(frozen=True)
class Light:
    """The light that falls on a subject.

    `above` and `below` are factors for its colours at the top and at the bottom; `key` is the colour that a
    lamp or the sun at column `source` (fraction of the width) adds to the near side, with `strength` 0..1;
    `shade` darkens the far side; `shadow` is the colour of the shadow on the ground.
    """

    above: Colour
    below: Colour
    key: Colour
    source: float
    strength: float
    shade: float
    shadow: Colour


def gain(red: float, green: float, blue: float) -> Colour:
    """Factors of a light for red, green and blue."""
    return np.array([red, green, blue], np.float32)


def tone(colour: Colour, time: str) -> Colour:
    """A daytime colour in the light of `time`."""
    if time == "sunset":
        return mix(colour * gain(1.0, 0.77, 0.70), rgb("6a3a78"), 0.17)
    if time == "night":
        return mix(colour * gain(0.38, 0.49, 0.76), rgb("22307a"), 0.28)
    return colour


def outdoors(time: str, source: float, bounce: Colour, shadow: Colour) -> Light:
    """The light outdoors; `bounce` is the colour of the ground, which tints the bottom of the subject."""
    lift = bounce / max(float(bounce.max()), 1.0)
    if time == "sunset":
        return Light(
            above=gain(1.03, 0.97, 0.90),
            below=gain(0.97, 0.88, 0.83) * (0.75 + 0.25 * lift),
            key=rgb("ffc070"),
            source=source,
            strength=0.55,
            shade=0.30,
            shadow=shadow,
        )
    if time == "night":
        return Light(
            above=gain(0.92, 0.93, 1.02),
            below=gain(0.78, 0.80, 0.92) * (0.8 + 0.2 * lift),
            key=rgb("cfe0ff"),
            source=source,
            strength=0.55,
            shade=0.30,
            shadow=shadow,
        )
    return Light(
        above=gain(1.03, 1.02, 1.0),
        below=gain(0.94, 0.94, 0.94) * (0.8 + 0.2 * lift),
        key=rgb("fff6dc"),
        source=source,
        strength=0.34,
        shade=0.18,
        shadow=shadow,
    )
