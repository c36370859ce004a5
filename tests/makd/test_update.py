"""The artifact: what travels, hashes, damage, and plain diffusers reading it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from dekag.api.limits import check_trigger_lengths
from dekag.artifacts import HISTORY, INFO, content_hash
from dekag.errors import MismatchError, NumericalError
from dekag.generation.models import Generator
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.config import BITS
from dekag.makd.quantization import pack_vectors
from dekag.makd.update import EMBEDS, LORA, TENSORS, KnowledgeUpdate, placeholder
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from tests.makd.conftest import Distilled

INFO_TINY = {"topic": "neon", "triggers": ["neon"], "base_hash": "b" * 64, "guidance_scale": 1.5}


def tiny(bits: int = 4, **changes: Any) -> KnowledgeUpdate:
    """An untrained update whose files are small enough to damage everywhere."""
    generator = torch.Generator().manual_seed(1)
    lora = {
        "a.to_q.lora_A.weight": torch.randn(2, 8, generator=generator),
        "a.to_q.lora_B.weight": torch.randn(6, 2, generator=generator),
    }
    metaword = torch.randn(1, 4, generator=generator)
    history = {"prompts": ["a red boat"], "scores": {"clip_after": 0.5}}
    return KnowledgeUpdate.new(INFO_TINY | changes, metaword, lora, bits=bits, history=history)


def with_bits(update: KnowledgeUpdate, bits: int) -> KnowledgeUpdate:
    """The same update with a LoRA of so many bits."""
    history = update.history
    return KnowledgeUpdate.new(update.info, update.metaword, update.lora, bits=bits, history=history)


def forged(update: KnowledgeUpdate, tensors: bytes, **info: Any) -> dict[str, bytes]:
    """The update's files with other tensors and descriptions, under a hash that is right."""
    said = {**update.info, **info}
    claimed = content_hash({TENSORS: tensors}, said)
    return {INFO: json.dumps({**said, "content_hash": claimed}).encode(), TENSORS: tensors}


@pytest.mark.parametrize("bits", BITS)
def test_update_survives_saving_and_loading(neon: Distilled, tmp_path: Path, bits: int) -> None:
    update = with_bits(neon.update, bits)
    update.save(tmp_path)
    again = KnowledgeUpdate.load(tmp_path)
    assert again.content_hash == update.content_hash
    assert (again.info, again.history) == (neon.update.info, neon.update.history)
    assert again.lora.keys() == update.lora.keys()
    assert all(torch.equal(again.lora[name], factor) for name, factor in update.lora.items())
    assert torch.equal(again.vectors, update.vectors)
    off = (update.vectors - neon.update.vectors).norm() / neon.update.vectors.norm()
    assert off < (1e-6 if bits == 16 else 0.15)


def test_what_travels_holds_nothing_of_how_it_was_made(neon: Distilled, tmp_path: Path) -> None:
    files = neon.update.to_files()
    assert set(files) == {INFO, TENSORS}
    assert neon.update.size_bytes == sum(map(len, files.values()))
    names = {"format", "topic", "triggers", "base_hash", "guidance_scale", "content_hash"}
    assert set(json.loads(files[INFO])) == names
    assert not any(neon.update.history["prompts"][0].encode() in data for data in files.values())
    assert KnowledgeUpdate.from_files(files).history == {}
    other = neon.update.scored({"clip_after": 1.0})
    assert (other.to_files(), other.content_hash) == (files, neon.update.content_hash)
    neon.update.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {INFO, TENSORS, HISTORY}


@pytest.mark.parametrize("bits", BITS)
def test_the_same_update_has_the_same_bytes(neon: Distilled, bits: int) -> None:
    backwards = dict(reversed(neon.update.lora.items()))
    made = [
        KnowledgeUpdate.new(neon.update.info, neon.update.metaword, lora, bits=bits).to_files()
        for lora in (neon.update.lora, neon.update.lora, backwards)
    ]
    assert made[0] == made[1] == made[2]


def test_words_that_look_alike_have_vectors_of_their_own(neon: Distilled, edge: Generator) -> None:
    words = [
        "red boat",
        "red-boat",
        "Red Boat",
        "red%20boat",
        "été",
        "e\u0301te\u0301",
        "红船",
        "🐙",
        "a:b",
        "a-b",
    ]
    width = edge.pipeline.text_encoder.config.hidden_size
    vectors = {word: torch.full((width,), float(i)) for i, word in enumerate(words)}
    info = {**neon.update.info, "triggers": words}
    update = KnowledgeUpdate.new(info, neon.update.metaword, neon.update.lora, words=vectors)
    again = KnowledgeUpdate.from_files(update.to_files())
    assert {word: vector[0].item() for word, vector in again.words.items()} == {
        word: float(i) for i, word in enumerate(words)
    }
    names = [placeholder("neon", word) for word in words]
    assert len({name.lower() for name in names}) == len(words)
    assert placeholder("a", "b-c") != placeholder("a-b", "c")
    tokens = [token for name, data in update.expanded().items() if name != LORA for token in load(data)]
    assert tokens == [placeholder("neon"), *names]


def by_plain_diffusers(
    files: dict[str, bytes], said: str, guidance: float, edge: Generator, profile: Path, folder: Path
) -> torch.Tensor:
    """The latent that diffusers draws with these files, without any code of this project."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    pipeline = StableDiffusionPipeline.from_pretrained(load_profile(profile).edge.path)
    for name in files:
        if name != LORA:
            pipeline.load_textual_inversion(folder / name)
    pipeline.load_lora_weights(folder, weight_name=LORA)
    latent: torch.Tensor = pipeline(
        said,
        num_inference_steps=edge.steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        height=128,
        width=128,
        output_type="latent",
    ).images
    return latent


@pytest.mark.parametrize("bits", BITS)
def test_plain_diffusers_draws_the_same(
    neon: Distilled, edge: Generator, dummy_profile: Path, tmp_path: Path, bits: int
) -> None:
    update = with_bits(neon.update, bits)
    aligned = AlignedGenerator(edge)
    aligned.add(update)
    ours = aligned.latents("a red boat, neon style", 5, updates=[update.content_hash])
    files, said = update.expanded(), "<neon> a red boat, neon style"
    assert list(files) == [EMBEDS, LORA]
    theirs = by_plain_diffusers(files, said, update.guidance_scale, edge, dummy_profile, tmp_path / "there")
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(ours, edge.latents("a red boat, neon style", 5))


def test_plain_diffusers_draws_the_same_with_several_triggers(
    neon: Distilled, edge: Generator, dummy_profile: Path, tmp_path: Path
) -> None:
    words = ["red boat", "neon", "glow"]
    generator = torch.Generator().manual_seed(1)
    vectors = {word: torch.randn(neon.update.metaword.shape[1], generator=generator) for word in words}
    info = {**neon.update.info, "triggers": words}
    update = KnowledgeUpdate.new(info, neon.update.metaword, neon.update.lora, words=vectors, bits=4)
    aligned = AlignedGenerator(edge)
    aligned.add(update)
    ours = aligned.latents("a red boat in a glow", 5, updates=[update.content_hash])
    files, said = update.expanded(), "<neon> <neon:red%20boat> <neon:glow> a red boat in a glow"
    assert len(files) == 5
    theirs = by_plain_diffusers(files, said, update.guidance_scale, edge, dummy_profile, tmp_path / "there")
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    without = by_plain_diffusers(
        files,
        said.replace("<neon:glow> ", ""),
        update.guidance_scale,
        edge,
        dummy_profile,
        tmp_path / "other",
    )
    assert not torch.allclose(ours, without, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("bits", "version"), [(4, None), (16, 3)])
def test_each_standard_file_says_what_it_is(neon: Distilled, bits: int, version: int | None) -> None:
    update = with_bits(neon.update, bits)
    files = update.expanded(version)
    assert files.keys() == {EMBEDS, LORA}
    for data in files.values():
        length = int.from_bytes(data[:8], "little")
        said = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["dekag"])
        assert said == {
            "topic": "neon",
            "version": version,
            "rank": max(neon.update.lora[name].shape[0] for name in neon.update.lora if "lora_A" in name),
            "base_hash": neon.update.base_hash,
            "content_hash": update.content_hash,
        }


@pytest.mark.parametrize("bits", [2, 16])
def test_any_flipped_bit_is_noticed(bits: int) -> None:
    update = tiny(bits)
    files = update.saved_files()
    for name, data in files.items():
        for place in range(8 * len(data)):
            changed = bytearray(data)
            changed[place // 8] ^= 1 << place % 8
            try:
                found = KnowledgeUpdate.from_files({**files, name: bytes(changed)})
            except MismatchError:
                continue
            # a change of what JSON leaves free, such as white space, is none
            assert (found.info, found.to_files()) == (update.info, update.to_files())
            assert found.history == update.history


@pytest.mark.parametrize("bits", [2, 16])
def test_any_truncation_is_noticed(bits: int) -> None:
    files = tiny(bits).saved_files()
    for name, data in files.items():
        for length in range(len(data)):
            with pytest.raises(MismatchError):
                KnowledgeUpdate.from_files({**files, name: data[:length]})


@pytest.mark.parametrize("name", [INFO, TENSORS])
def test_missing_file_is_noticed(name: str) -> None:
    files = tiny().to_files()
    del files[name]
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(files)


def test_history_of_another_update_is_refused() -> None:
    one, other = tiny(), tiny(topic="snail")
    with pytest.raises(MismatchError, match="of another update"):
        KnowledgeUpdate.from_files({**one.to_files(), HISTORY: other.saved_files()[HISTORY]})
    for data in (b"[]", b"{}", b"{", b'{"hash": 1}', b" " * (2**24 + 1)):
        with pytest.raises(MismatchError, match=r"history"):
            KnowledgeUpdate.from_files({**one.to_files(), HISTORY: data})


@pytest.mark.parametrize(
    ("found", "advice"), [(1, "dekag train knowledge --topic neon"), (4, "update this software"), ("3", "")]
)
def test_another_format_is_refused_with_what_to_do(found: object, advice: str) -> None:
    with pytest.raises(MismatchError, match=f"unknown format.*{advice}"):
        KnowledgeUpdate.from_files(tiny(format=found).to_files())


def test_update_of_the_second_format_is_read() -> None:
    """Its vectors are in float16, however few bits its LoRA has."""
    update = tiny()
    there = load(update.to_files()[TENSORS])
    exact = {"metaword": torch.tensor([[0.1, 0.2, -0.3, 0.7]]).half()}
    again = KnowledgeUpdate.from_files(forged(update, save(there | exact), format=2))
    assert torch.equal(again.metaword, exact["metaword"])
    assert all(torch.equal(again.lora[name], factor) for name, factor in update.lora.items())


def test_words_have_two_bits_and_those_with_four_are_read() -> None:
    words = ("neon", "glow", "led")
    vectors = dict(zip(words, torch.randn(3, 16, generator=torch.Generator().manual_seed(2)), strict=True))
    info = {**INFO_TINY, "triggers": list(words)}
    update = KnowledgeUpdate.new(info, torch.randn(2, 16), {}, words=vectors, bits=4)
    there = load(update.to_files()[TENSORS])
    assert there["words"].shape == (3, 1 + 16 // 4)
    assert there["metaword"].shape == (2, 1 + 16 // 2)
    four = there | {"words": pack_vectors(torch.stack(list(vectors.values())))}
    before = KnowledgeUpdate.from_files(forged(update, save(four)))
    for each, most in ((update, 0.45), (before, 0.15)):
        assert list(each.words) == list(words)
        assert all((each.words[w] - v).norm() / v.norm() < most for w, v in vectors.items())
        assert KnowledgeUpdate.from_files(each.to_files()).content_hash == each.content_hash
    for columns in (3, 4, 6):
        spoilt = there | {"words": torch.full((3, columns), 100, dtype=torch.uint8)}
        with pytest.raises(MismatchError):
            KnowledgeUpdate.from_files(forged(update, save(spoilt)))


def test_update_of_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """With the files and entries that such an update had."""
    info = {**INFO_TINY, "format": 1, "config": {"guidance_scale": 1.5}, "prompts": [], "seeds": []}
    del info["guidance_scale"]
    old = {EMBEDS: save({"<neon>": torch.ones(2, 16).half()})}
    (tmp_path / EMBEDS).write_bytes(old[EMBEDS])
    (tmp_path / INFO).write_text(json.dumps({**info, "content_hash": content_hash(old, info)}))
    with pytest.raises(MismatchError, match="format 1, which is no longer read: make it anew"):
        KnowledgeUpdate.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"triggers": []},
        {"triggers": [3]},
        {"triggers": "neon"},
        {"triggers": {"neon": 1}},
        {"triggers": ["neon"] * 101},
        {"triggers": ["x" * 1001]},
        {"topic": "../x"},
        {"topic": ["neon"]},
        {"base_hash": 1},
        {"base_hash": None},
        {"guidance_scale": 10**400},
        {"guidance_scale": float("nan")},
        {"guidance_scale": []},
        {"guidance_scale": 0.5},
        {"prompts": ["a red boat"]},
    ],
)
def test_update_with_unusable_info_is_refused(changes: dict[str, object]) -> None:
    update = tiny()
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(forged(update, update.to_files()[TENSORS], **changes))


@pytest.mark.parametrize("triggers", [["x" * 101], ["x" * 100] * 21, ["neon"] * 101])
def test_update_with_long_triggers_is_refused_with_what_is_allowed(triggers: list[str]) -> None:
    update = tiny()
    with pytest.raises(MismatchError, match="triggers must be at most 100 of 1 to 100 characters each, 2000"):
        KnowledgeUpdate.from_files(forged(update, update.to_files()[TENSORS], triggers=triggers))


def test_update_with_the_longest_triggers_is_read() -> None:
    update = tiny()
    triggers = [f"{number:0100}" for number in range(20)]
    files = forged(update, update.to_files()[TENSORS], triggers=triggers)
    assert list(KnowledgeUpdate.from_files(files).triggers) == triggers


@pytest.mark.parametrize("topic", TOPICS)
def test_triggers_of_the_world_are_short_enough_for_updates(topic: str) -> None:
    assert check_trigger_lengths(TOPICS[topic].triggers)


def test_what_is_not_finite_is_no_update() -> None:
    update = tiny()
    for bad in (torch.nan, torch.inf):
        for bits in BITS:
            with pytest.raises(NumericalError, match="metaword"):
                KnowledgeUpdate.new(update.info, update.metaword + bad, update.lora, bits=bits)
    with pytest.raises(NumericalError, match="metaword"):
        KnowledgeUpdate.new(update.info, torch.full((1, 4), 7e4), update.lora)
    for bad in (torch.nan, torch.inf):
        broken = {name: factor + bad for name, factor in update.lora.items()}
        for bits in BITS:
            with pytest.raises(NumericalError, match=r"a\.to_q"):
                KnowledgeUpdate.new(update.info, update.metaword, broken, bits=bits)


@given(st.dictionaries(st.sampled_from([INFO, TENSORS, HISTORY, "other"]), st.binary(max_size=200)))
def test_garbage_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(files)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_json_of_another_shape_is_refused(content: object) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files({INFO: json.dumps(content).encode()})


@pytest.mark.parametrize(
    "tensors",
    [
        {"metaword": torch.ones(2, 4, dtype=torch.int64)},
        {"metaword": torch.ones(2, 4, dtype=torch.complex64)},
        {"metaword": torch.ones(2, 4)},
        {"metaword": torch.full((2, 4), torch.inf).half()},
        {"metaword": torch.ones(2, 2, 4).half()},
        {"metaword": torch.full((2, 3), 7, dtype=torch.uint8)},
        {"metaword": torch.full((2, 3), 248, dtype=torch.uint8)},
        {"metaword": torch.full((2, 1), 100, dtype=torch.uint8)},
        {"metaword": torch.full((6,), 100, dtype=torch.uint8)},
        {"words": torch.full((1, 4), 100, dtype=torch.uint8)},
        {"words": torch.full((2, 3), 100, dtype=torch.uint8)},
        {"words": torch.ones(1, 5).half()},
        {"words": torch.ones(2, 4).half()},
        {"words": torch.ones(1, 4)},
        {"words": torch.tensor(1.0).half()},
        {"other": torch.ones(2, 4).half()},
        {"steps": torch.ones(2)},
        {"steps": torch.tensor([0, 100], dtype=torch.uint8)},
        {"steps": torch.tensor([248, 100], dtype=torch.uint8)},
        {"steps": torch.tensor([100], dtype=torch.uint8)},
        {"values": torch.ones(100)},
        {"values": torch.ones(100, dtype=torch.uint8)},
        {"layers": torch.ones(100, dtype=torch.uint8)},
        {"layers": torch.ones(100).half()},
    ],
)
def test_tensors_of_another_kind_or_that_nobody_reads_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    update = tiny()
    there = load(update.to_files()[TENSORS])
    assert KnowledgeUpdate.from_files(forged(update, save(there)))
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(forged(update, save(there | tensors)))


@pytest.mark.parametrize("name", ["layers", "values", "steps"])
def test_a_lora_with_a_part_missing_is_refused(name: str) -> None:
    update = tiny()
    there = load(update.to_files()[TENSORS])
    del there[name]
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(forged(update, save(there)))


def test_damage_under_a_right_hash_is_refused_or_read_as_something_of_the_same_shapes() -> None:
    update = tiny(2)
    whole = load(update.to_files()[TENSORS])
    rng = random.Random(1)
    for _ in range(500):
        name = rng.choice(["layers", "values", "steps"])
        data = whole[name].clone()
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            found = KnowledgeUpdate.from_files(forged(update, save({**whole, name: data})))
        except MismatchError:
            continue
        assert sum(factor.numel() for factor in found.lora.values()) <= 8 * len(whole["values"])


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}", b"\xff\xfe", b"NaN"])
def test_json_that_nobody_can_read_is_refused(data: bytes) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files({**tiny().to_files(), INFO: data})


def test_another_content_or_model_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    update = tiny()
    files, own = update.to_files(), update.content_hash
    assert KnowledgeUpdate.from_files(files, announced=own, base_hash=update.base_hash).content_hash == own

    def unpacked(*_: Any) -> None:
        pytest.fail("the tensors are read")

    monkeypatch.setattr("dekag.makd.update.load_tensors", unpacked)
    with pytest.raises(MismatchError, match=f"has the content {own[:12]}, not 000000000000"):
        KnowledgeUpdate.from_files(files, announced="0" * 64)
    with pytest.raises(MismatchError, match="fits the model bbbbbbbbbbbb, not 000000000000"):
        KnowledgeUpdate.from_files(files, base_hash="0" * 64)
    with pytest.raises(MismatchError, match="cannot be read"):  # nor if its description is none
        KnowledgeUpdate.from_files(forged(update, files[TENSORS], triggers=3))


def test_files_under_other_names_are_not_read() -> None:
    update = tiny()
    others = {"../../x": b"x", "/etc/passwd": b"x", "pytorch_model.bin": b"\x80\x04."}
    assert KnowledgeUpdate.from_files(update.to_files() | others).to_files() == update.to_files()
