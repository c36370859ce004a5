"""Transmission knowledge as an artifact: round trip, refusal of damage, and the codec that carries it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save

from dekag.artifacts import INFO
from dekag.cala import CalaConfig, condition_vector
from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.artifact import CONFIG, WEIGHTS, TransmissionKnowledge
from dekag.cala.rate import QualityModel
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError
from dekag.generation.loading import folder_hash
from dekag.link.conditions import LinkConditions

SHAPE = (4, 16, 16)
MEAN, SPREAD = [[[[10, 16], [16, 22]]] * 2] * 2, [[[[1, 1], [1, 1]]] * 2] * 2
QUALITY = QualityModel((1 / 768, 1 / 96), (0.0, 10.0), (0.0, 1.0), (1e-7, 1e-6), MEAN, SPREAD)


@pytest.fixture
def folders(codec: JsccCodec, tmp_path: Path) -> tuple[Path, Path]:
    """A saved base codec, and knowledge for it."""
    codec.save_pretrained(tmp_path / "codec")
    base = JsccCodec.load(tmp_path / "codec")
    torch.manual_seed(4)
    adapted = get_peft_model(base, CalaConfig(rank=2, gate_width=3))
    for name, parameter in adapted.named_parameters():
        if "cala_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    info = {"base_hash": folder_hash(tmp_path / "codec"), "quality": QUALITY.to_json(), "scores": {}}
    TransmissionKnowledge.new(info, adapted).save(tmp_path / "cala")
    return tmp_path / "codec", tmp_path / "cala"


def _condition(*snrs_db: float) -> torch.Tensor:
    return torch.stack([condition_vector(1 / 96, LinkConditions(snr_db=snr), at="sender") for snr in snrs_db])


def test_artifact_survives_saving_and_loading(folders: tuple[Path, Path]) -> None:
    knowledge = TransmissionKnowledge.load(folders[1])
    again = TransmissionKnowledge.from_files(knowledge.to_files())
    assert again.content_hash == knowledge.content_hash
    assert again.to_files() == knowledge.to_files()
    assert again.config().rank == 2
    assert again.quality == knowledge.quality
    assert again.size_bytes == sum(len(data) for data in knowledge.to_files().values())
    assert knowledge.with_info(scores={"x": 1}).content_hash != knowledge.content_hash


def test_plain_peft_loads_the_folder_alike(folders: tuple[Path, Path]) -> None:
    ours = AlignedCodec.load(*folders)
    theirs = PeftModel.from_pretrained(JsccCodec.load(folders[0]), folders[1]).eval()
    latents, condition = torch.randn(2, *SHAPE), _condition(0, 15)
    with torch.inference_mode(), theirs.base_model.with_condition("encoder", condition):
        features = theirs.base_model.model.features(latents, [512, 100])
    with torch.inference_mode(), ours._adapted.with_condition("encoder", condition):
        torch.testing.assert_close(ours.codec.features(latents, [512, 100]), features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [INFO, CONFIG, WEIGHTS])
def test_damage_is_refused(folders: tuple[Path, Path], name: str) -> None:
    files = TransmissionKnowledge.load(folders[1]).to_files()
    for damaged in (files[name][:-1], files[name][:-9] + b"x" + files[name][-8:], b"", b"\x80pickle"):
        with pytest.raises(MismatchError):
            TransmissionKnowledge.from_files({**files, name: damaged})
    with pytest.raises(MismatchError):
        TransmissionKnowledge.from_files({key: data for key, data in files.items() if key != name})


@pytest.mark.parametrize(
    "changes", [{"format": 9}, {"kind": "generation"}, {"base_hash": 7}, {"quality": {"cbrs": 1}}]
)
def test_what_is_not_transmission_knowledge_is_refused(
    folders: tuple[Path, Path], changes: dict[str, object]
) -> None:
    odd = TransmissionKnowledge.load(folders[1]).with_info(**changes)
    with pytest.raises(MismatchError):
        TransmissionKnowledge.from_files(odd.to_files())


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"name": "lora"},
        {"name": "lora", "share": 0},
        "lora",
        {"name": "fine-tune", "share": 1, "text_width": 10**9},
        {"name": "fine-tune", "share": 1, "text_width": -1},
    ],
)
def test_a_method_without_a_share_is_refused(folders: tuple[Path, Path], method: object) -> None:
    odd = TransmissionKnowledge.load(folders[1]).with_info(method=method)
    with pytest.raises(MismatchError):
        TransmissionKnowledge.from_files(odd.to_files())


def test_another_codec_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    JsccCodec(width=16, blocks=1).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="is for codec"):
        AlignedCodec.load(tmp_path / "other", folders[1])
    wider = JsccCodec(width=24, blocks=2)
    with pytest.raises(MismatchError, match="does not fit"):
        TransmissionKnowledge.load(folders[1]).attach(wider)


def test_no_paths_of_the_maker_travel(folders: tuple[Path, Path]) -> None:
    files = TransmissionKnowledge.load(folders[1]).to_files()
    assert json.loads(files[CONFIG])["base_model_name_or_path"] is None
    assert str(folders[0]).encode() not in b"".join(files.values())


def test_a_mixed_batch_through_the_aligned_codec(folders: tuple[Path, Path]) -> None:
    aligned = AlignedCodec.load(*folders)
    latents, uses, condition = torch.randn(3, *SHAPE), [512, 64, 130], _condition(-5, 8, 20)
    symbols = aligned.encode(latents, uses, condition)
    at_once = aligned.encode(latents, uses, condition, exact=False)
    assert symbols.shape == at_once.shape == (3, 512)
    for row, count in enumerate(uses):
        assert symbols[row, :count].abs().square().mean() == pytest.approx(1, abs=1e-5)
        assert not symbols[row, count:].any()
        alone = aligned.encode(latents[row : row + 1], [count], condition[row : row + 1])
        assert torch.equal(alone[0], symbols[row, :count])
        agree = (at_once[row] - symbols[row]).abs() < 1e-4
        assert agree.float().mean() > 0.99  # a feature on the edge between two points may snap either way
    decoded = aligned.decode(symbols, SHAPE, condition)
    assert torch.equal(aligned.decode(symbols[1:2], SHAPE, condition[1:2])[0], decoded[1])
    at_once = aligned.decode(symbols, SHAPE, condition, exact=False)
    torch.testing.assert_close(at_once, decoded, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidInputError, match="condition"):
        aligned.decode(symbols, SHAPE, condition[:2])


@pytest.mark.parametrize(("modulation", "points"), [("qam4", 4), ("qam16", 16), ("qam256", 256)])
def test_modulations_differ_in_their_points(folders: tuple[Path, Path], modulation: str, points: int) -> None:
    aligned = AlignedCodec.load(*folders)
    symbols = aligned.encode(torch.randn(1, *SHAPE), [512], _condition(10), modulation=modulation)  # type: ignore[arg-type]
    assert len(torch.unique(torch.view_as_real(symbols[0]).mul(1e3).round(), dim=0)) <= points
    free = aligned.encode(torch.randn(1, *SHAPE), [512], _condition(10), modulation="unquantised")
    assert len(torch.unique(torch.view_as_real(free[0]), dim=0)) > 256
    with pytest.raises(InvalidInputError, match="modulation"):
        aligned.encode(torch.randn(1, *SHAPE), [512], _condition(10), modulation="qam8")  # type: ignore[arg-type]


def with_config(knowledge: TransmissionKnowledge, **changes: object) -> dict[str, bytes]:
    """The files with other entries in PEFT's configuration, under a hash that is right."""
    files = knowledge.to_files()
    config = json.dumps({**json.loads(files[CONFIG]), **changes}).encode()
    return TransmissionKnowledge(knowledge.info, {CONFIG: config, WEIGHTS: files[WEIGHTS]}).to_files()


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "(a+)+$"},
        {"exclude_modules": ".*"},
        {"target_modules": ["(a+)+$"]},
        {"rank_pattern": {"(a+)+$": 2}},
        {"sides": ["encoder", "(a+)+$"]},
        {"condition_features": 10**9},
        {"gate_width": 10**9},
        {"text_modules": ["encoder.0"], "text_width": 16384, "text_rank": 256},
        {"rank": 10**400},
        {"scale": float("inf")},
        {"scale": float("nan")},
        {"scale": 10**400},
        {"target_modules": [["x"]]},
    ],
)
def test_a_configuration_that_costs_or_does_anything_else_is_refused(
    folders: tuple[Path, Path], changes: dict[str, object]
) -> None:
    with pytest.raises(MismatchError):
        TransmissionKnowledge.from_files(with_config(TransmissionKnowledge.load(folders[1]), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sides": ["decoder"]},
        {"sides": ["encoder", "decoder", "x"]},
        {"condition_features": 5},
        {"target_modules": []},
    ],
)
def test_adapters_that_do_not_work_are_refused_before_they_are_used(
    folders: tuple[Path, Path], changes: dict[str, object]
) -> None:
    odd = TransmissionKnowledge.from_files(with_config(TransmissionKnowledge.load(folders[1]), **changes))
    with pytest.raises(MismatchError):
        AlignedCodec(JsccCodec.load(folders[0]), folder_hash(folders[0]), odd)


def test_what_peft_matched_is_written_by_name(codec: JsccCodec) -> None:
    adapted = get_peft_model(codec, CalaConfig(rank=2, target_modules=r"encoder\.[03]"))
    knowledge = TransmissionKnowledge.new({"base_hash": "x"}, adapted)
    assert TransmissionKnowledge.from_files(knowledge.to_files()).config().target_modules == [
        "encoder.0",
        "encoder.3",
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(folders: tuple[Path, Path], value: float) -> None:
    knowledge = TransmissionKnowledge.load(folders[1])
    tensors = knowledge.tensors()
    next(iter(tensors.values())).view(-1)[0] = value
    files = knowledge.to_files()
    odd = TransmissionKnowledge(knowledge.info, {CONFIG: files[CONFIG], WEIGHTS: save(tensors)})
    with pytest.raises(MismatchError):
        TransmissionKnowledge.from_files(odd.to_files())
