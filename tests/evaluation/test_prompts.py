"""Test prompts: those of another subject fit every scene."""

from __future__ import annotations

from dekag.evaluation.prompts import edge_prompts, topic_prompts, wrong_prompts
from dekag.stickers import EDGE_SUBJECTS, TOPICS


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
