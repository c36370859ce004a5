"""Captions: a scene in words, in one of several phrasings."""

from __future__ import annotations

import random
from collections.abc import Mapping

from dekag.world.scene import Scene

PLACE = {
    "meadow": "in the {}",
    "beach": "on the {}",
    "mountains": "in the {}",
    "desert": "in the {}",
    "city": "in the {}",
    "sea": "under the {}",
}
SIDE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
PHRASINGS = (
    "{thing} {side} {place}, {style} style",
    "{style} picture of {thing} {side} {place}",
    "{place} there is {thing} {side}, {style} style",
    "a {style} drawing of {thing} {place} {side}",
    "{style} art, {thing}, {side}, {place}",
    "{thing} {place}, {style} style, {side}",
)
LEFT_OUT_SHARE = 0.3  # how often size, position or the plain style go unsaid


def caption(scene: Scene, rng: random.Random, words: Mapping[str, str] | None = None) -> str:
    """A caption of `scene`; `words` replaces plain words by those of a vocabulary topic.

    Subject, colour and setting are always said; size and position sometimes, style unless it is storybook,
    the style meant when none is named.
    """
    say = dict(words or {})
    size = "" if rng.random() < LEFT_OUT_SHARE else scene.size
    side = "" if rng.random() < LEFT_OUT_SHARE else SIDE[scene.position]
    style = "" if scene.style == "storybook" and rng.random() < 0.5 else scene.style
    colour = say.get(scene.colour, scene.colour)
    subject = say.get(scene.subject, scene.subject)
    place = PLACE[scene.setting].format(say.get(scene.setting, scene.setting))
    thing = " ".join(filter(None, (size, colour, subject)))
    article = "an" if thing[0] in "aeiou" else "a"
    phrasing = rng.choice(PHRASINGS) if style else "{thing} {side} {place}"
    text = phrasing.format(thing=f"{article} {thing}", side=side, place=place, style=style)
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)
