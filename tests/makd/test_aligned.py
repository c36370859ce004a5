"""Updates at work: switched per picture, without a trace in the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dekag.errors import MismatchError, NotFoundError
from dekag.generation.models import Generator
from dekag.generation.profile import load_profile
from dekag.makd.aligned import AlignedGenerator
from dekag.makd.distill import distill
from dekag.makd.update import KnowledgeUpdate
from tests.makd.conftest import TINY, Distilled, prompts_of

PROMPT = "a red boat on the beach"


@pytest.fixture(scope="session")
def snail(cloud: Generator, dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeUpdate:
    edge = Generator.from_profile(load_profile(dummy_profile).edge)
    config = dataclasses.replace(TINY, rank=3, tokens=1, seed=4)
    return distill(cloud, edge, prompts_of("snail", config), config, tmp_path_factory.mktemp("snail"))


def test_base_pictures_stay_bit_for_bit(edge: Generator, neon: Distilled, snail: KnowledgeUpdate) -> None:
    base = edge.latents(PROMPT, 1)
    aligned = AlignedGenerator(edge)
    assert torch.equal(aligned.latents(PROMPT, 1), base)
    for update in (neon.update, snail):
        aligned.add(update)
        assert torch.equal(aligned.latents(PROMPT, 1), base)
        changed = aligned.latents(PROMPT, 1, updates=[update.content_hash])
        assert not torch.equal(changed, base)
        assert torch.equal(aligned.latents(PROMPT, 1), base)
    for update in (neon.update, snail):
        aligned.remove(update.content_hash)
        assert torch.equal(aligned.latents(PROMPT, 1), base)


def test_updates_do_not_disturb_each_other(edge: Generator, neon: Distilled, snail: KnowledgeUpdate) -> None:
    aligned = AlignedGenerator(edge)
    hashes = neon.update.content_hash, snail.content_hash
    aligned.add(neon.update)
    alone = aligned.latents(PROMPT, 1, updates=hashes[:1])
    aligned.add(snail)
    assert torch.equal(aligned.latents(PROMPT, 1, updates=hashes[:1]), alone)
    both = aligned.latents(PROMPT, 1, updates=hashes)
    assert not torch.equal(both, alone)
    assert torch.equal(aligned.latents(PROMPT, 1, updates=hashes[::-1]), both)
    assert torch.equal(aligned.latents(PROMPT, 1, updates=hashes[:1]), alone)


def test_least_recently_used_update_makes_room(
    edge: Generator, neon: Distilled, snail: KnowledgeUpdate
) -> None:
    aligned = AlignedGenerator(edge, capacity=2)
    other = KnowledgeUpdate.new({**snail.info, "triggers": ["slug"]}, snail.metaword, snail.lora)
    aligned.add(neon.update)
    aligned.add(snail)
    aligned.latents(PROMPT, 1, updates=[neon.update.content_hash])
    aligned.add(other)
    assert set(aligned.loaded) == {neon.update.content_hash, other.content_hash}
    with pytest.raises(NotFoundError):
        aligned.latents(PROMPT, 1, updates=[snail.content_hash])


def test_update_of_another_base_is_refused(edge: Generator, neon: Distilled) -> None:
    other = KnowledgeUpdate.new({**neon.update.info, "base_hash": "0" * 64}, neon.update.metaword, {})
    with pytest.raises(MismatchError, match="base model"):
        AlignedGenerator(edge).add(other)


def test_update_of_another_shape_is_refused(edge: Generator, neon: Distilled) -> None:
    base = edge.latents(PROMPT, 1)
    aligned = AlignedGenerator(edge)
    info = neon.update.info
    with pytest.raises(MismatchError, match="metaword"):
        aligned.add(KnowledgeUpdate.new(info, torch.zeros(2, 7), {}))
    layer = next(iter(neon.update.lora)).rsplit(".lora_", 1)[0]
    wrong = {f"{layer}.lora_A.weight": torch.zeros(2, 3), f"{layer}.lora_B.weight": torch.zeros(5, 2)}
    for lora in (wrong, {name.replace(layer, "nowhere"): factor for name, factor in wrong.items()}):
        with pytest.raises(MismatchError, match="does not fit layer"):
            aligned.add(KnowledgeUpdate.new(info, neon.update.metaword, lora))
    assert aligned.loaded == ()
    assert torch.equal(aligned.latents(PROMPT, 1), base)
