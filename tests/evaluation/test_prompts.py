"""Test prompts: those of another subject fit every scene."""

from __future__ import annotations

import re

from dekag.evaluation.prompts import edge_prompts, topic_prompts, wrong_prompts
from dekag.stickers import EDGE_SUBJECTS, TOPICS
from dekag.stickers.subjects import SUBJECT_BY_NAME


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
