"""Test prompts: those of another subject fit every scene, and what is held out is as the pages say."""

from __future__ import annotations

import random
import re

from dekag.evaluation.pages import read_rows
from dekag.evaluation.prompts import (
    cloud_prompts,
    edge_prompts,
    held_out_combinations,
    held_out_share,
    topic_prompts,
    wrong_prompts,
)
from dekag.evaluation.registry import RESULTS
from dekag.stickers import EDGE_SUBJECTS, TOPICS, Scene
from dekag.stickers.scene import colours_of
from dekag.stickers.subjects import SUBJECT_BY_NAME
from dekag.training.data import image_number
from dekag.training.worlds import STICKERS


def _subjects(prompt: str) -> set[str]:
    """The subjects that a prompt names, by a name or a synonym."""
    return {
        subject.name
        for subject in SUBJECT_BY_NAME.values()
        if any(re.search(rf"\b{name}\b", prompt) for name in (subject.name, *subject.synonyms))
    }


def test_a_wrong_prompt_names_another_subject_that_the_edge_knows() -> None:
    sets = [edge_prompts(40), *(topic_prompts(topic, 40) for topic in TOPICS.values())]
    for prompts in sets:
        wrong = wrong_prompts(prompts)
        assert len(wrong) == len(prompts)
        assert wrong == wrong_prompts(prompts)
        for other, (scene, _, _) in zip(wrong, prompts, strict=True):
            assert scene is not None
            assert scene.subject not in _subjects(other)
            assert _subjects(other) & set(EDGE_SUBJECTS)
    crowned = topic_prompts(TOPICS["crown"], 40)
    assert all("crown" in other for other in wrong_prompts(crowned)), "all but the subject stays"


def test_combinations_are_counted_as_scenes_are_drawn() -> None:
    counts = held_out_combinations()
    assert set(counts) == set(EDGE_SUBJECTS)
    assert all(0 < held_out < every for held_out, every in counts.values())
    rng, draw = random.Random(2), STICKERS.scenes(cloud=False)
    scenes = [draw(rng) for _ in range(20_000)]
    held_out = {(each.subject, each.colour, each.setting) for each in scenes if each.held_out}
    assert len(held_out) == sum(held_out for held_out, _ in counts.values())
    assert abs(sum(each.held_out for each in scenes) / len(scenes) - held_out_share()) < 0.02


def test_no_subject_of_a_training_scene_has_a_held_out_combination() -> None:
    scenes = [image_number("train", n, STICKERS)[0] for n in range(8000)]
    alone = [
        Scene(pair.companion, colours_of(pair.companion)[0], pair.size, pair.position, pair.setting)
        for pair in scenes
        if pair.companion is not None
    ]
    assert len(alone) > 200
    assert not any(scene.held_out for scene in [*scenes, *alone])


def test_test_scenes_are_those_that_the_committed_results_show() -> None:
    """The first subject alone decides about them, so a companion's combination may be either."""
    pairs = [scene for scene, *_ in topic_prompts(TOPICS["duo"], 200) if scene is not None]
    assert all(scene.held_out and not scene.trainable for scene in pairs)
    of_companions = [
        Scene(pair.companion, colours_of(pair.companion)[0], pair.size, pair.position, pair.setting).held_out
        for pair in pairs
        if pair.companion is not None
    ]
    assert set(of_companions) == {True, False}
    for name, draw in (("cloud", cloud_prompts), ("edge_known", edge_prompts)):
        rows = read_rows(RESULTS / "first-image" / f"{name}.jsonl")[:40]
        assert [row["prompt"] for row in rows] == [prompt for _, prompt, _ in draw(len(rows))]
