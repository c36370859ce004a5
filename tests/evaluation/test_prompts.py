"""Test prompts: those of another subject fit every scene, and what is held out is as the pages say."""

from __future__ import annotations

import random

from dekag.evaluation.prompts import (
    edge_prompts,
    held_out_combinations,
    held_out_share,
    topic_prompts,
    wrong_prompts,
)
from dekag.stickers import EDGE_SUBJECTS, TOPICS, Scene
from dekag.stickers.scene import colours_of
from dekag.training.data import image_number
from dekag.training.worlds import STICKERS


def test_a_wrong_prompt_has_another_subject_that_the_scene_can_have() -> None:
    sets = [edge_prompts(40), *(topic_prompts(topic, 40) for topic in TOPICS.values())]
    for prompts in sets:
        wrong = wrong_prompts(prompts)
        assert len(wrong) == len(prompts)
        assert all(other != own for other, (_, own, _) in zip(wrong, prompts, strict=True))
        assert wrong == wrong_prompts(prompts)
    crowned = topic_prompts(TOPICS["crown"], 40)
    assert all("crown" in other for other in wrong_prompts(crowned)), "all but the subject stays"
    assert len(EDGE_SUBJECTS) > 1


def test_combinations_are_counted_as_scenes_are_drawn() -> None:
    counts = held_out_combinations()
    assert set(counts) == set(EDGE_SUBJECTS)
    assert all(0 < held_out < every for held_out, every in counts.values())
    rng, draw = random.Random(2), STICKERS.scenes(cloud=False)
    scenes = [draw(rng) for _ in range(20_000)]
    held_out = {(each.subject, each.colour, each.setting) for each in scenes if each.held_out}
    assert len(held_out) == sum(held_out for held_out, _ in counts.values())
    assert abs(sum(each.held_out for each in scenes) / len(scenes) - held_out_share()) < 0.02


def test_a_second_subject_may_stand_in_a_setting_that_is_held_out_for_it() -> None:
    """Decision 19 says so, and how often."""
    scenes = [image_number("train", n, STICKERS)[0] for n in range(8000)]
    alone = [
        Scene(pair.companion, colours_of(pair.companion)[0], pair.size, pair.position, pair.setting)
        for pair in scenes
        if pair.companion is not None
    ]
    assert not any(scene.held_out for scene in scenes)
    assert 0.06 < sum(each.held_out for each in alone) / len(alone) < 0.14
