"""Updates at work: switched per picture, without a trace in the others."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from dekag.errors import DeadlineError, InvalidInputError, MismatchError, NotFoundError
from dekag.generation.models import Generator
from dekag.generation.request import GenerationRequest, Sampling
from dekag.generation.traced_denoiser import TracedDenoiser
from dekag.makd.aligned_generator import TOGETHER, AlignedGenerator
from dekag.makd.batched_lora import BatchedLora
from dekag.makd.metaword import encode_prompts
from dekag.makd.update import PREFIX, KnowledgeUpdate
from dekag.profile import load_profile
from dekag.training.distill import distill
from tests.makd.conftest import TINY, Distilled, prompts_of

PROMPT = "a red boat on the beach"


@pytest.fixture(scope="session")
def snail(cloud: Generator, dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> KnowledgeUpdate:
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
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


def test_rows_of_a_batch_meet_their_own_updates(
    edge: Generator, neon: Distilled, snail: KnowledgeUpdate
) -> None:
    aligned = AlignedGenerator(edge)
    hashes = neon.update.content_hash, snail.content_hash
    aligned.add(neon.update)
    aligned.add(snail)
    drawings = [
        GenerationRequest(PROMPT, 1, 128, 128, hashes[:1]),
        GenerationRequest("a neon snail", 2, 128, 128, hashes),
        GenerationRequest(PROMPT, 1, 128, 128, hashes[1:]),
        GenerationRequest("a neon boat", 3, 128, 128, hashes[:1]),
    ]
    alone = [aligned.latents(each.prompt, each.seed, updates=each.updates) for each in drawings]
    together = aligned.batch(drawings)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-2, "each its own"
    assert torch.equal(aligned.latents(PROMPT, 1, updates=hashes[:1]), alone[0])
    plain = [GenerationRequest(PROMPT, seed, 128, 128) for seed in (1, 2, 3)]
    expected = torch.cat([edge.latents(PROMPT, seed) for seed in (1, 2, 3)])
    torch.testing.assert_close(aligned.batch(plain), expected, rtol=0, atol=1e-4)
    with pytest.raises(InvalidInputError, match="guidance"):
        aligned.batch([*plain, drawings[0]])


def test_several_updates_are_drawn_with_guidance(
    edge: Generator, neon: Distilled, snail: KnowledgeUpdate
) -> None:
    def guided(update: KnowledgeUpdate, scale: float) -> KnowledgeUpdate:
        return KnowledgeUpdate.new({**update.info, "guidance_scale": scale}, update.metaword, update.lora)

    aligned = AlignedGenerator(edge)
    one, two, more = guided(neon.update, 1.0), guided(snail, 1.0), guided(snail, 4.0)
    assert aligned.guidance_scale([]) == edge.guidance_scale
    assert aligned.guidance_scale([one]) == 1.0
    assert aligned.guidance_scale([one, two]) == aligned.guidance_scale([one, more]) == TOGETHER
    assert aligned.guidance_scale([guided(neon.update, 3.0), more]) == 3.0
    assert aligned.guidance_scale([one, two], Sampling(guidance_scale=1.0)) == 1.0


def test_merged_updates_act_as_stacked_ones(edge: Generator, neon: Distilled, snail: KnowledgeUpdate) -> None:
    """Also with fewer layers than another update, with a scale, and in a traced denoiser."""
    unet = copy.deepcopy(edge.pipeline.unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    half = dict(list(snail.lora.items())[: len(snail.lora) // 4 * 2])
    given = (torch.randn(3, 4, 16, 16), torch.tensor(3), torch.randn(3, 77, unet.config.cross_attention_dim))
    said = {}
    for merge in (True, False):
        adapters = BatchedLora(unet, merge=merge)
        adapters.add("neon", neon.update.lora)
        adapters.add("snail", half)
        traced = TracedDenoiser(unet)
        with torch.inference_mode(), adapters.active([["neon", "snail"]] * 3, scale=0.7):
            said[merge] = unet(*given).sample
            if merge:
                with traced.in_use():
                    assert torch.equal(unet(*given).sample, said[merge])
        assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    torch.testing.assert_close(said[True], said[False], rtol=0, atol=1e-5)
    with torch.inference_mode():
        assert (said[True] - unet(*given).sample).abs().max() > 1e-3


def test_weights_are_as_before_when_drawing_fails(edge: Generator, neon: Distilled) -> None:
    unet = copy.deepcopy(edge.pipeline.unet)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    adapters = BatchedLora(unet, merge=True)
    adapters.add("neon", neon.update.lora)
    with pytest.raises(DeadlineError), adapters.active([["neon"]]):
        raise DeadlineError("the image is no longer needed")
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())


def test_an_update_acts_as_diffusers_and_peft_have_it(
    edge: Generator, neon: Distilled, dummy_profile: Path
) -> None:
    aligned = AlignedGenerator(edge)
    aligned.add(neon.update)
    ours = aligned.latents("a neon boat", 5, updates=[neon.update.content_hash])
    plain = Generator.from_profile(load_profile(dummy_profile), "edge")
    factors = {PREFIX + name: factor.float() for name, factor in neon.update.lora.items()}
    plain.pipeline.load_lora_into_unet(factors, network_alphas=None, unet=plain.pipeline.unet)
    none = torch.zeros(0, neon.update.metaword.shape[1])
    vectors = neon.update.vectors_for("a neon boat")
    reader, rows = plain.reader, neon.update.token_rows
    theirs = plain.latents(
        None,
        5,
        guidance_scale=neon.update.guidance_scale,
        prompt_embeds=encode_prompts(reader, [reader.windows("a neon boat", rows)], vectors)[0],
        negative_prompt_embeds=encode_prompts(reader, [reader.windows("")], none)[0],
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_drawing_ends_when_nobody_waits(edge: Generator) -> None:
    asked: list[bool] = []
    with pytest.raises(DeadlineError):
        AlignedGenerator(edge).latents(PROMPT, 1, should_continue=lambda: bool(asked.append(True)))  # type: ignore[func-returns-value]
    assert len(asked) == 1 < edge.steps


def test_more_vectors_than_a_window_has_room_for_are_all_read(edge: Generator, neon: Distilled) -> None:
    aligned, width = AlignedGenerator(edge), neon.update.metaword.shape[1]
    words = [f"word{i}" for i in range(60)]
    vectors = dict(zip(words, torch.randn(60, width), strict=True))
    vocabulary = KnowledgeUpdate.new(
        {**neon.update.info, "topic": "words", "triggers": words}, neon.update.metaword, {}, words=vectors
    )
    others = [
        KnowledgeUpdate.new({**neon.update.info, "topic": topic}, torch.randn(16, width), {})
        for topic in ("a", "b", "c", "d")
    ]
    for update in (vocabulary, *others):
        aligned.add(update)
    assert torch.isfinite(aligned.latents(" ".join(words), 1, updates=[vocabulary.content_hash])).all()
    assert torch.isfinite(aligned.latents(PROMPT, 1, updates=[each.content_hash for each in others])).all()
    windows = aligned.windows(" ".join(words), [vocabulary])
    said = {row for window in windows for row in window.rows}
    assert said == set(range(len(vocabulary.vectors)))
    windows = aligned.windows(PROMPT, others)
    assert [window.rows for window in windows] == [tuple(range(16 * i, 16 * i + 16)) for i in range(4)]
    assert {window.text for window in windows} == {PROMPT}
