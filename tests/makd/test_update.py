"""The artifact: hashes, damage, and plain diffusers reading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from dekag.artifacts import INFO, content_hash
from dekag.errors import MismatchError
from dekag.generation.models import Generator
from dekag.makd.aligned_generator import AlignedGenerator
from dekag.makd.update import COMPACT, LORA, METAWORD, KnowledgeUpdate, placeholder
from dekag.profile import load_profile
from tests.makd.conftest import Distilled


def test_update_survives_saving_and_loading(neon: Distilled, tmp_path: Path) -> None:
    neon.update.save(tmp_path / "update")
    again = KnowledgeUpdate.load(tmp_path / "update")
    assert again.content_hash == neon.update.content_hash
    assert again.info == neon.update.info
    assert sum(path.stat().st_size for path in (tmp_path / "update").iterdir()) == again.size_bytes


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


def test_an_update_from_before_such_words_is_read(neon: Distilled) -> None:
    vectors = {"<neon>": neon.update.metaword.half(), "<neon-red-boat>": torch.ones(1, 16).half()}
    info = {**neon.update.info, "triggers": ["red boat", "neon"]}
    update = KnowledgeUpdate(info, {METAWORD: save(vectors)})
    again = KnowledgeUpdate.from_files(update.to_files())
    assert list(again.words) == ["red boat"]


def by_plain_diffusers(folder: Path, update: KnowledgeUpdate, edge: Generator, profile: Path) -> torch.Tensor:
    """The latent that diffusers draws with the files in ``folder``, without any code of this project."""
    pipeline = StableDiffusionPipeline.from_pretrained(load_profile(profile).edge.path)
    pipeline.load_textual_inversion(folder / METAWORD)
    pipeline.load_lora_weights(folder, weight_name=LORA)
    latent: torch.Tensor = pipeline(
        "<neon> a red boat, neon style",
        num_inference_steps=edge.steps,
        guidance_scale=update.guidance_scale,
        generator=torch.Generator().manual_seed(5),
        height=128,
        width=128,
        output_type="latent",
    ).images
    return latent


def test_plain_diffusers_draws_the_same(
    neon: Distilled, edge: Generator, dummy_profile: Path, tmp_path: Path
) -> None:
    neon.update.save(tmp_path)
    aligned = AlignedGenerator(edge)
    aligned.add(neon.update)
    ours = aligned.latents("a red boat, neon style", 5, updates=[neon.update.content_hash])
    theirs = by_plain_diffusers(tmp_path, neon.update, edge, dummy_profile)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, edge.latents("a red boat, neon style", 5))


def test_compact_update_expands_to_what_plain_diffusers_reads(
    neon: Distilled, edge: Generator, dummy_profile: Path, tmp_path: Path
) -> None:
    compact = KnowledgeUpdate.new(neon.update.info, neon.update.metaword, neon.update.lora, bits=8)
    assert LORA not in compact.to_files()
    expanded = KnowledgeUpdate.from_files(compact.expanded().to_files())
    assert LORA in expanded.to_files()
    assert expanded.content_hash != compact.content_hash
    for name, factor in compact.lora.items():
        torch.testing.assert_close(expanded.lora[name].float(), factor, rtol=1e-3, atol=1e-6)
    compact.save(tmp_path / "compact")
    KnowledgeUpdate.load(tmp_path / "compact").expanded().save(tmp_path / "standard")
    aligned = AlignedGenerator(edge)
    aligned.add(compact)
    ours = aligned.latents("a red boat, neon style", 5, updates=[compact.content_hash])
    theirs = by_plain_diffusers(tmp_path / "standard", compact, edge, dummy_profile)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", [INFO, METAWORD, LORA])
def test_any_changed_byte_is_noticed(name: str, neon: Distilled) -> None:
    files = neon.update.to_files()
    for place in range(0, len(files[name]), max(1, len(files[name]) // 40)):
        data = bytearray(files[name])
        data[place] ^= 1
        try:
            changed = KnowledgeUpdate.from_files({**files, name: bytes(data)})
        except MismatchError:
            continue
        # a change of what JSON leaves free, such as white space, is none
        assert changed.content_hash == neon.update.content_hash


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_make_it_smaller_and_little_coarser(bits: int, neon: Distilled, tmp_path: Path) -> None:
    compact = KnowledgeUpdate.new(neon.update.info, neon.update.metaword, neon.update.lora, bits=bits)
    compact.save(tmp_path)
    again = KnowledgeUpdate.load(tmp_path)
    assert again.content_hash == compact.content_hash
    assert again.size_bytes < 0.6 * neon.update.size_bytes
    assert again.lora.keys() == neon.update.lora.keys()
    for name, factor in neon.update.lora.items():
        step = factor.float().flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        error = (again.lora[name] - factor.float()).flatten(1).abs().amax(1)
        assert (error <= 0.51 * step + 1e-6).all()


@pytest.mark.parametrize("name", [INFO, METAWORD, LORA])
def test_missing_file_is_noticed(name: str, neon: Distilled) -> None:
    files = neon.update.to_files()
    del files[name]
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(files)


def test_wrong_content_under_a_right_hash_is_noticed(neon: Distilled) -> None:
    for changes in ({"triggers": []}, {"triggers": [3]}, {"topic": "../x"}, {"format": 2}, {"base_hash": 1}):
        files = KnowledgeUpdate.new({**neon.update.info, **changes}, neon.update.metaword, {}).to_files()
        with pytest.raises(MismatchError):
            KnowledgeUpdate.from_files(files)
    broken = {name: factor * torch.nan for name, factor in neon.update.lora.items()}
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(
            KnowledgeUpdate.new(neon.update.info, neon.update.metaword, broken).to_files()
        )


@given(st.dictionaries(st.sampled_from([INFO, METAWORD, LORA, "other"]), st.binary(max_size=200)))
def test_garbage_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(files)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_json_of_another_shape_is_refused(content: object) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files({INFO: json.dumps(content).encode()})


def forged(update: KnowledgeUpdate, **changes: bytes) -> dict[str, bytes]:
    """The update's files with some of them changed, under a hash that is right."""
    parts = {name: data for name, data in (update.to_files() | changes).items() if name != INFO}
    info = {**update.info, "content_hash": content_hash(parts, update.info)}
    return {INFO: json.dumps(info).encode(), **parts}


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        (METAWORD, {"<neon>": torch.ones(2, 16, dtype=torch.int64)}),
        (METAWORD, {"<neon>": torch.ones(2, 16, dtype=torch.complex64)}),
        (METAWORD, {"<neon>": torch.full((2, 16), torch.inf)}),
        (METAWORD, {"<neon>": torch.ones(2, 2, 16)}),
        (METAWORD, {"<neon-neon>": torch.zeros(0, 16)}),
        (METAWORD, {"<neon-neon>": torch.tensor(1.0)}),
        (METAWORD, {"<snail>": torch.ones(2, 16)}),
        (LORA, {"text_encoder.x.lora_A.weight": torch.ones(1, 1)}),
        (LORA, {"unet.x.lora_A.weight": torch.ones(1, 1)}),
        (LORA, {"unet.x": torch.ones(1, 1)}),
    ],
)
def test_tensors_of_another_kind_or_that_nobody_reads_are_refused(
    neon: Distilled, name: str, tensors: dict[str, torch.Tensor]
) -> None:
    there = load(neon.update.to_files()[name])
    assert KnowledgeUpdate.from_files(forged(neon.update, **{name: save(there)}))
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(forged(neon.update, **{name: save(there | tensors)}))


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"guidance_scale": 10**400}},
        {"config": {"guidance_scale": float("nan")}},
        {"config": []},
        {"triggers": "neon"},
        {"triggers": {"neon": 1}},
        {"triggers": ["neon"] * 101},
        {"triggers": ["x" * 1001]},
        {"topic": ["neon"]},
        {"base_hash": None},
    ],
)
def test_update_with_unusable_info_is_refused(neon: Distilled, changes: dict[str, object]) -> None:
    info = {**neon.update.info, **changes}
    parts = {name: data for name, data in neon.update.to_files().items() if name != INFO}
    said = json.dumps({**info, "content_hash": content_hash(parts, info)}).encode()
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files({INFO: said, **parts})


def test_a_lora_in_two_files_is_refused(neon: Distilled) -> None:
    compact = KnowledgeUpdate.new(neon.update.info, neon.update.metaword, neon.update.lora, bits=4)
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files(forged(neon.update, **{COMPACT: compact.to_files()[COMPACT]}))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}", b"\xff\xfe", b"NaN"])
def test_json_that_nobody_can_read_is_refused(neon: Distilled, data: bytes) -> None:
    with pytest.raises(MismatchError):
        KnowledgeUpdate.from_files({**neon.update.to_files(), INFO: data})


def test_files_under_other_names_are_not_read(neon: Distilled) -> None:
    others = {"../../x": b"x", "/etc/passwd": b"x", "pytorch_model.bin": b"\x80\x04."}
    found = KnowledgeUpdate.from_files(neon.update.to_files() | others)
    assert found.to_files() == neon.update.to_files()


@pytest.mark.parametrize("bits", [4, 16])
def test_each_file_of_an_update_says_what_it_is(neon: Distilled, bits: int) -> None:
    info = {**neon.update.info, "base_hash": "b" * 64}
    made = [KnowledgeUpdate.new(info, neon.update.metaword, neon.update.lora, bits=bits) for _ in range(2)]
    assert made[0].content_hash == made[1].content_hash
    files = {name: data for name, data in made[0].to_files().items() if name.endswith(".safetensors")}
    assert len(files) == 2
    for data in files.values():
        length = int.from_bytes(data[:8], "little")
        said = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["dekag"])
        assert said == {"topic": "neon", "base_hash": "b" * 64, "rank": 2, "version": 1}
