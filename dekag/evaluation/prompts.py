"""Test prompts: combinations of attributes that no training ever drew, on seeds of the test split."""

from __future__ import annotations

import random

from dekag.training.data import scene_number
from dekag.world import EDGE_STYLES, EDGE_SUBJECTS, Scene, caption
from dekag.world.topics import Topic

Prompt = tuple[Scene, str, int]  # what should be seen, what is asked for, the seed


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
