"""Topics to distil: their prompts, and the selection of topics by a user's prompt. Imports no torch.

A topic is described by its prompts in a request, by a file `topics/NAME.yaml` in the profile's folder, or by
the sticker world.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.api.limits import (
    MAX_ALTERNATIVES,
    MAX_PROMPT_CHARS,
    MAX_PROMPTS,
    MAX_TRIGGER_CHARS,
    check_topic,
    check_trigger_lengths,
)
from dekag.documents import read_yaml
from dekag.errors import FileError, InvalidInputError, NotFoundError
from dekag.files import list_folder
from dekag.stickers import TOPICS, Topic, caption, topic_scene
from dekag.words import Phrases, is_common, words

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


class TopicFile(BaseModel):
    """A topic of a profile: the content of topics/NAME.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: list[str] = Field(
        min_length=1, description="Templates of training prompts, with alternatives: a {red|blue} car."
    )
    triggers: list[str] = Field(
        default_factory=list,
        description="Words or phrases by which a prompt needs the topic. Default: its name.",
    )
    test_prompts: list[str] = Field(
        default_factory=list,
        description="Prompts that are never trained on. Default: some are drawn from the templates.",
    )


def read_topics(folder: Path | str | None) -> dict[str, TopicFile]:
    """The topics in a folder, by name; none if `folder` is None.

    Raises:
        FileError: the folder cannot be read, or a file is not a topic; names the field.
        DocumentError: a file is not YAML; names the line.
        InvalidInputError: a file's name is not that of a topic.
    """
    if folder is None:
        return {}
    found = {}
    for file in (Path(folder, name) for name in list_folder(folder)):
        if file.suffix in (".yml", ".json"):
            raise FileError(file, "is not read: the name of a topic's file ends in .yaml")
        if file.suffix != ".yaml":  # a note beside them
            continue
        check_topic(file.stem)
        found[file.stem] = _read_topic(file)
    return found


def _read_topic(file: Path) -> TopicFile:
    content = read_yaml(file)
    try:
        topic = TopicFile.model_validate(content)
        check_trigger_lengths(topic.triggers)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(file, f"is not a topic: {where + ': ' if where else ''}{first['msg']}") from None
    except InvalidInputError as error:
        raise FileError(file, f"is not a topic: {error}") from None
    return topic


def topic_prompts(
    name: str,
    *,
    prompts: Sequence[str] = (),
    triggers: Sequence[str] = (),
    topics: Mapping[str, TopicFile] | None = None,
    count: int,
    held_out: int,
    seed: int,
) -> TopicPrompts:
    """The topic `name` with `count` training prompts and `held_out` further prompts.

    Args:
        name: name of the topic.
        prompts: templates, which may contain alternatives, "a {red|blue} car, neon style"; one alternative
            is drawn each time. If empty, those of the topic of that name in `topics`, or else in the
            sticker world.
        triggers: words or phrases by which a prompt needs this topic; the name of the topic if empty.
        topics: the profile's own topics.
        count: number of training prompts; they are repeated if there are fewer distinct ones.
        held_out: number of held-out prompts.
        seed: seed of the draws.

    Raises:
        InvalidInputError: a name, prompt or trigger is not allowed, or there are too few different prompts.
        NotFoundError: no prompts, and neither profile nor sticker world has a topic of that name.
    """
    check_topic(name)
    check_triggers(triggers)  # topics that come with a profile or the world may have others, such as "and a"
    rng = random.Random(seed)
    kept: dict[str, None] = {}
    if not prompts and topics and (file := topics.get(name)):
        prompts, triggers = file.prompts, triggers or file.triggers
        kept = dict.fromkeys(_checked_prompts(file.test_prompts[:held_out], "test_prompts"))
    if prompts:
        checked = _checked_prompts(prompts, "prompts")
        if any(len(_ALTERNATIVES.findall(prompt)) > MAX_ALTERNATIVES for prompt in checked):
            raise InvalidInputError("prompts", f"of at most {MAX_ALTERNATIVES} alternatives", "more")
        chosen = _checked_triggers(triggers or [name])
        if chosen == [name]:
            check_triggers(chosen)

        def draw() -> str:
            return expanded(rng.choice(checked), rng)
    else:
        if name not in TOPICS:
            known = ", ".join([*(topics or ()), *TOPICS])
            raise NotFoundError(f"no topic {name!r} (there are {known}): specify its prompts")
        topic = TOPICS[name]
        chosen = _checked_triggers(triggers or topic.triggers)

        def draw() -> str:
            return world_prompt(topic, rng)

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


def topic_triggers(topics: Mapping[str, TopicFile]) -> dict[str, Sequence[str]]:
    """Triggers of every topic that can be distilled by its name alone, by topic.

    Args:
        topics: the profile's own; if there are none, the sticker world's.
    """
    if topics:
        return {name: file.triggers or [name] for name, file in topics.items()}
    return {name: topic.triggers for name, topic in TOPICS.items()}


def expanded(prompt: str, rng: random.Random) -> str:
    """`prompt` with one of each of its alternatives: "a {red|blue} car" becomes "a blue car"."""
    return _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), prompt)


def world_prompt(topic: Topic, rng: random.Random) -> str:
    """A caption of a scene that needs `topic`, from the combinations that training may draw."""
    while True:
        scene = topic_scene(topic, rng)
        if not scene.held_out:
            return caption(scene, rng, topic.words)


def matching(prompt: str, triggers: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the topics with a trigger in `prompt` as whole words, sorted.

    See `dekag.words` for the definition of words in any script.
    """
    return sorted(_found(prompt, triggers))


def best_matching(
    prompt: str, triggers: Mapping[str, Sequence[str]], most: int, *, own: Collection[str] = ()
) -> list[str]:
    """Names of the topics whose triggers fit a prompt best, sorted by name.

    A topic fits the better the longer its longest trigger in the prompt is, in words and then in characters.
    Where topics fit equally well, those in `own` go first, then those with more triggers in the prompt.

    Args:
        prompt: the prompt.
        triggers: words or phrases by which a prompt needs a topic, by topic.
        most: upper limit of the topics.
        own: topics that are preferred among equals.

    Example:
        >>> triggers = {"signs": ["neon sign"], "dark": ["night"], "a": ["sign"]}
        >>> best_matching("a neon sign at night", triggers, 2)
        ['dark', 'signs']
    """
    found = _found(prompt, triggers)

    def fit(name: str) -> tuple[int, int, bool, int]:
        longest = max(found[name], key=lambda each: (len(each), sum(map(len, each))))
        return len(longest), sum(map(len, longest)), name in own, len(found[name])

    # sorted by name first, which decides in the end
    return sorted(sorted(sorted(found), key=fit, reverse=True)[:most])


def _found(prompt: str, triggers: Mapping[str, Sequence[str]]) -> dict[str, set[tuple[str, ...]]]:
    """The different triggers in a prompt, as words, of each topic that has one there."""
    phrases = Phrases(words(prompt))
    found = {name: {each for each in _words(tuple(of)) if each in phrases} for name, of in triggers.items()}
    return {name: each for name, each in found.items() if each}


@lru_cache(2**13)
def _words(triggers: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """The words of each trigger of a topic; kept for as many topics, as each prompt is compared with all."""
    return frozenset(map(words, triggers))


def check_triggers(triggers: Sequence[str]) -> None:
    """Raises InvalidInputError if a trigger consists of common words alone, which nearly every prompt has."""
    for trigger in triggers:
        if is_common(trigger):
            raise InvalidInputError(
                "triggers", "more than common words, such as 'the', and single letters", trigger
            )


def _checked_prompts(values: Sequence[str], field: str) -> list[str]:
    if len(values) > MAX_PROMPTS:
        raise InvalidInputError(field, f"at most {MAX_PROMPTS}", f"{len(values)}")
    return [_checked(value, field, MAX_PROMPT_CHARS) for value in values]


def _checked_triggers(values: Sequence[str]) -> list[str]:
    return [_checked(value, "triggers", MAX_TRIGGER_CHARS) for value in check_trigger_lengths(values)]


def _checked(value: str, field: str, longest: int) -> str:
    if len(value) > longest or not words(value):
        raise InvalidInputError(field, f"1 to {longest} characters with a letter, digit or symbol", value)
    return value
