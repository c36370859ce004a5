"""Topics to distil: their prompts, and the selection of topics by a user's prompt. Imports no torch."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dekag.api.limits import MAX_ALTERNATIVES, MAX_PROMPT_CHARS, MAX_PROMPTS, MAX_TRIGGERS, check_topic
from dekag.errors import InvalidInputError, NotFoundError
from dekag.words import contains_phrase, words
from dekag.world import EDGE_STYLES, EDGE_SUBJECTS, TOPICS, caption, random_scene
from dekag.world.topics import Topic

_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class TopicPrompts:
    """The input of a distillation.

    Attributes:
        name: 1 to 32 lower-case letters a to z, digits and hyphens.
        prompts: prompts of the training images, one image each.
        held_out: prompts that are not used in training; none of them is in `prompts`.
        triggers: words or phrases by which a prompt needs this topic.
    """

    name: str
    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    triggers: tuple[str, ...]


def topic_prompts(
    name: str,
    *,
    prompts: Sequence[str] = (),
    triggers: Sequence[str] = (),
    count: int,
    held_out: int,
    seed: int,
) -> TopicPrompts:
    """The topic `name` with `count` training prompts and `held_out` further prompts.

    Args:
        name: name of the topic.
        prompts: templates, which may contain alternatives, "a {red|blue} boat, neon style"; one alternative
            is drawn each time. If empty, those of the embedded world's topic of that name.
        triggers: words or phrases by which a prompt needs this topic; the name of the topic if empty.
        count: number of training prompts; they are repeated if there are fewer distinct ones.
        held_out: number of held-out prompts.
        seed: seed of the draws.

    Raises:
        InvalidInputError: a name, prompt or trigger is not allowed, or there are too few different prompts.
        NotFoundError: no prompts, and the embedded world has no topic of that name.
    """
    check_topic(name)
    rng = random.Random(seed)
    if prompts:
        checked = _checked(prompts, "prompts", MAX_PROMPTS)
        if any(len(_ALTERNATIVES.findall(prompt)) > MAX_ALTERNATIVES for prompt in checked):
            raise InvalidInputError("prompts", f"of at most {MAX_ALTERNATIVES} alternatives", "more")
        chosen = _checked(triggers or [name], "triggers", MAX_TRIGGERS)

        def draw() -> str:
            return expanded(rng.choice(checked), rng)
    else:
        if name not in TOPICS:
            known = ", ".join(TOPICS)
            raise NotFoundError(f"no topic {name!r} in the embedded world ({known}): specify its prompts")
        topic = TOPICS[name]
        chosen = _checked(triggers or world_triggers(topic), "triggers", MAX_TRIGGERS)

        def draw() -> str:
            return world_prompt(topic, rng)

    kept: dict[str, None] = {}
    for _ in range(20 * held_out):
        if len(kept) < held_out:
            kept[draw()] = None
    learnt: dict[str, None] = {}
    for _ in range(20 * count if len(kept) == held_out else 0):
        if len(learnt) < count and (prompt := draw()) not in kept:
            learnt[prompt] = None
    if len(kept) < held_out or not learnt:
        raise InvalidInputError(
            "prompts", f"enough for {held_out} distinct held-out ones besides training", f"{len(kept)}"
        )
    different = list(learnt)
    repeated = tuple(different[i % len(different)] for i in range(count))
    return TopicPrompts(name, repeated, tuple(kept), tuple(chosen))


def expanded(prompt: str, rng: random.Random) -> str:
    """`prompt` with one of each of its alternatives: "a {red|blue} boat" becomes "a blue boat"."""
    return _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), prompt)


def world_triggers(topic: Topic) -> list[str]:
    """The words by which a prompt of the embedded world needs `topic`."""
    return list(topic.words.values()) if topic.kind == "vocabulary" else [topic.name]


def world_prompt(topic: Topic, rng: random.Random) -> str:
    """A caption of a scene that needs `topic`, from the combinations that training may draw."""
    while True:
        scene = random_scene(
            rng,
            subjects=(topic.name,) if topic.kind == "subject" else EDGE_SUBJECTS,
            styles=(topic.name,) if topic.kind == "style" else EDGE_STYLES,
        )
        if not scene.held_out:
            return caption(scene, rng, topic.words)


def matching(prompt: str, triggers: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the topics with a trigger in `prompt` as whole words, sorted.

    See `dekag.words` for the definition of words in any script.
    """
    prompt_words = words(prompt)
    return sorted(
        name
        for name, phrases in triggers.items()
        if any(contains_phrase(prompt_words, words(phrase)) for phrase in phrases)
    )


def _checked(values: Sequence[str], field: str, most: int) -> list[str]:
    if len(values) > most:
        raise InvalidInputError(field, f"at most {most}", f"{len(values)}")
    for value in values:
        if not words(value) or len(value) > MAX_PROMPT_CHARS:
            raise InvalidInputError(
                field, f"1 to {MAX_PROMPT_CHARS} characters with a letter, digit or symbol", value
            )
    return list(values)
