"""Test prompts that no training ever drew, on seeds of the test split."""

from __future__ import annotations

import random
from collections.abc import Collection

from dekag.errors import InvalidInputError
from dekag.makd.config import DistillConfig
from dekag.makd.topics import TopicFile
from dekag.makd.topics import topic_prompts as distillation_prompts
from dekag.training.data import SPLIT_START, scene_number
from dekag.world import EDGE_STYLES, EDGE_SUBJECTS, Scene, caption
from dekag.world.topics import Topic

Prompt = tuple[Scene | None, str, int]
"""What should be seen, if it is a scene of the embedded world; what is asked for; the seed."""


def world_prompts(count: int, *, subjects: tuple[str, ...], styles: tuple[str, ...]) -> list[Prompt]:
    """`count` held-out scenes of the test split with a prompt in plain words."""
    prompts = []
    for n in range(count):
        scene, seed = scene_number("test", n, subjects=subjects, styles=styles)
        prompts.append((scene, caption(scene, random.Random(seed)), seed))
    return prompts


def edge_prompts(count: int) -> list[Prompt]:
    """`count` such prompts of what the edge knows without any update."""
    return world_prompts(count, subjects=EDGE_SUBJECTS, styles=EDGE_STYLES)


def topic_prompts(topic: Topic, count: int) -> list[Prompt]:
    """`count` such prompts that need `topic`, which the edge does not know."""
    subjects = (topic.name,) if topic.kind == "subject" else EDGE_SUBJECTS
    styles = (topic.name,) if topic.kind == "style" else EDGE_STYLES
    prompts = []
    for n in range(count):
        scene, seed = scene_number("test", n, subjects=subjects, styles=styles)
        prompts.append((scene, caption(scene, random.Random(seed), topic.words), seed))
    return prompts


def own_prompts(
    name: str, file: TopicFile, count: int, config: DistillConfig, learnt: Collection[str] = ()
) -> list[Prompt]:
    """`count` test prompts of a profile's own topic, without scenes; with other seeds if they repeat.

    Args:
        name: name of the topic.
        file: its prompts.
        count: number of prompts.
        config: the distillation whose held-out prompts these are, after the file's own test prompts.
        learnt: prompts that an update was trained on, which are left out.

    Raises:
        InvalidInputError: all were trained on.
    """
    kept = distillation_prompts(
        name, topics={name: file}, count=config.images, held_out=config.held_out, seed=config.seed
    ).held_out
    fresh = [prompt for prompt in dict.fromkeys([*file.test_prompts, *kept]) if prompt not in learnt]
    if not fresh:
        raise InvalidInputError("test_prompts", f"some that the update of {name} was not trained on", "none")
    return [(None, fresh[n % len(fresh)], SPLIT_START["test"] + n) for n in range(count)]
