"""Test prompts that no training ever drew, on seeds of the test split, and how many there can be."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from dekag.errors import InvalidInputError
from dekag.makd.config import DistillConfig
from dekag.makd.topics import TopicFile
from dekag.makd.topics import topic_prompts as distillation_prompts
from dekag.stickers import EDGE_SUBJECTS, Scene, Topic, caption, topic_scene
from dekag.stickers.scene import POSITIONS, SIZES, colours_of
from dekag.stickers.subjects import SUBJECT_BY_NAME
from dekag.training.data import SPLIT_START, scene_number
from dekag.training.worlds import STICKERS

Prompt = tuple[Scene | None, str, int]
"""What should be seen, if it is a scene of the world; what is asked for; the seed."""


def world_prompts(
    count: int, draw: Callable[[random.Random], Scene], words: Mapping[str, str] | None = None
) -> list[Prompt]:
    """`count` held-out scenes of the test split that `draw` draws, with a prompt in those words."""
    prompts = []
    for n in range(count):
        scene, seed = scene_number("test", n, draw)
        prompts.append((scene, caption(scene, random.Random(seed), words), seed))
    return prompts


def edge_prompts(count: int) -> list[Prompt]:
    """`count` such prompts of what the edge knows without any update."""
    return world_prompts(count, STICKERS.scenes(cloud=False))


def cloud_prompts(count: int) -> list[Prompt]:
    """`count` such prompts of all that the cloud knows."""
    return world_prompts(count, STICKERS.scenes(cloud=True))


def held_out_combinations() -> dict[str, tuple[int, int]]:
    """Combinations of colour and setting of each subject that the edge knows: held out, and all."""
    found = {}
    for subject in EDGE_SUBJECTS:
        held_out = [
            Scene(subject, colour, SIZES[0], POSITIONS[0], setting).held_out
            for colour in colours_of(subject)
            for setting in SUBJECT_BY_NAME[subject].settings
        ]
        found[subject] = sum(held_out), len(held_out)
    return found


def held_out_share(count: int = 10_000, seed: int = 1) -> float:
    """Fraction of random scenes that the edge knows whose combination is held out, from `count` of them."""
    rng, draw = random.Random(seed), STICKERS.scenes(cloud=False)
    return sum(bool(draw(rng).held_out) for _ in range(count)) / count


def topic_prompts(topic: Topic, count: int) -> list[Prompt]:
    """`count` such prompts that need `topic`, which the edge does not know."""
    return world_prompts(count, partial(topic_scene, topic), topic.words)


def wrong_prompts(prompts: Sequence[Prompt]) -> list[str]:
    """For each prompt of a scene, one of the same scene with another subject that the edge knows.

    The colour stays as well, unless the other subject cannot have it.
    """
    found = []
    for scene, _, seed in prompts:
        if scene is None:
            raise ValueError("a prompt without a scene")
        rng = random.Random(seed)
        others = [name for name in EDGE_SUBJECTS if name not in (scene.subject, scene.companion)]
        if scene.accessory is not None:
            others = [name for name in others if SUBJECT_BY_NAME[name].wears]
        subject = rng.choice(others)
        own, *paints = colours_of(subject)
        colour = scene.colour if scene.colour in paints else own
        found.append(caption(replace(scene, subject=subject, colour=colour), rng))
    return found


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
