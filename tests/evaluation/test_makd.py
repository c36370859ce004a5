"""The experiment on generation knowledge: cells that resume, and figures that follow from the rows."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from dekag.errors import InvalidInputError
from dekag.evaluation import models
from dekag.evaluation.models import ModelBank
from dekag.evaluation.pages import DOCS
from dekag.evaluation.reports.makd import REPORT, smallest, values
from dekag.evaluation.statistics import bootstrap_ci95
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies import makd
from dekag.evaluation.studies.makd import (
    BITS,
    PAIRS,
    STUDY_TOPICS,
    MakdResults,
    MakdStudy,
    Plan,
    Row,
    TopicTraining,
    measure,
    model_bytes,
    run_gka,
    trainings,
    write,
)
from dekag.evaluation.sweeps.evaluator import Evaluator
from dekag.generation.models import Generator
from dekag.makd.config import METHODS, DistillConfig
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from tests.chain import with_evaluators, with_own_topics

TINY = DistillConfig(images=4, held_out=2, steps=2, batch=2, rank=2, bits=16)


@pytest.fixture(scope="module")
def study(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> MakdStudy:
    folder = tmp_path_factory.mktemp("gka")
    profile = with_evaluators(dummy_profile, folder / "profile")
    return MakdStudy(ModelBank(str(profile)), 2, 1, ResultStore(folder))


def test_every_method_topic_and_seed_is_a_cell() -> None:
    found = trainings(TINY, Plan(3), list(TOPICS))
    assert len(found) == len(set(found))
    for topic in TOPICS:
        runs = {(c.config.method, c.config.seed) for c in found if c.topic == topic}
        assert runs >= {(method, seed) for method in METHODS for seed in range(3)}


def test_a_smaller_plan_trains_makd_and_the_chosen_baselines_alone() -> None:
    found = trainings(TINY, Plan(1, methods=("lora",), studies=False), ["neon", "rocket"])
    assert {(each.topic, each.config.method) for each in found} == {
        (topic, method) for topic in ("neon", "rocket") for method in ("makd", "lora")
    }
    assert trainings(TINY, Plan(1, train=False), ["neon"]) == []


def test_finished_cell_is_read_not_run_again(study: MakdStudy) -> None:
    training = TopicTraining("rocket", TINY)
    first = study.run(training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makd, "train", None)
        with pytest.raises(TypeError):
            study.run(TopicTraining("snail", TINY))
        assert study.run(training) == first
    assert {len(rows) for rows in first["rows"].values()} == {2}
    assert first["bytes"]["4"] < first["bytes"]["8"] < first["bytes"]["16"]


def watched_loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, how many generators are in memory each time that one is loaded; all count as large."""
    monkeypatch.setattr(models, "LARGE", 0)
    load, loaded, counts = Generator.from_profile, list[Any](), list[int]()

    def watched(profile: Any, role: Any, placed: Any = None) -> Any:
        counts.append(sum(each() is not None for each in loaded))
        generator = load(profile, role, placed)
        loaded.append(weakref.ref(generator))
        return generator

    monkeypatch.setattr(Generator, "from_profile", watched)
    return counts


def test_one_large_generator_is_in_memory_at_a_time(
    study: MakdStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TopicTraining("jewels", TINY)
    both = study.unaligned("jewels"), study.run(training)
    held = watched_loads(monkeypatch)
    alone = MakdStudy(ModelBank(study.bank.profile_name), 2, 1, ResultStore(tmp_path))
    found = alone.unaligned("jewels"), alone.run(training)
    assert found[0] == both[0]
    assert found[1]["rows"] == both[1]["rows"]
    assert not any(held)
    assert len(held) <= 6, "what needs one of them is done together"
    evaluator = Evaluator(alone.bank, ResultStore(tmp_path))
    for _ in range(2):
        shown = evaluator.bank.edge.decoder.decode(evaluator.latents("neon", 2, knowledge=False))
        references = evaluator.references("neon", 2)
        assert shown.shape == references.shape
    assert not any(held)


def test_a_cloud_whose_images_are_kept_is_not_loaded(
    study: MakdStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TopicTraining("neon", TINY)
    bounds, row, drawn = study.unaligned("neon"), study.run(training), study.draw(training)
    roles: list[str] = []
    load = Generator.from_profile

    def noted(profile: Any, role: Any, placed: Any = None) -> Any:
        roles.append(role)
        return load(profile, role, placed)

    monkeypatch.setattr(Generator, "from_profile", noted)
    again = MakdStudy(ModelBank(study.bank.profile_name), 2, 1, study.store)
    assert (again.unaligned("neon"), again.run(training)) == (bounds, row)
    assert not roles, "all is read"
    assert again.draw(training)[1].content_hash == drawn[1].content_hash
    for path in study.store.folder("cells").iterdir():
        path.unlink()
    found = again.unaligned("neon"), again.run(training)
    assert found[0] == bounds
    assert found[1]["rows"] == row["rows"]
    assert roles == ["edge"], "images of the cloud are kept"


def test_a_training_follows_the_settings_of_the_machine(
    study: MakdStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, said = makd.train, []

    def noted(*args: Any, micro_batch: int | None, gradient_checkpointing: bool) -> Any:
        said.append((micro_batch, gradient_checkpointing))
        return trained(*args, micro_batch=micro_batch, gradient_checkpointing=gradient_checkpointing)

    monkeypatch.setattr(makd, "train", noted)
    monkeypatch.setenv("DEKAG_DISTILL_MICRO_BATCH", "1")
    monkeypatch.setenv("DEKAG_GRADIENT_CHECKPOINTING", "true")
    MakdStudy(study.bank, 2, 1, ResultStore(tmp_path)).run(TopicTraining("neon", TINY))
    assert said == [(1, True)]


def test_the_page_says_what_the_upper_bound_gains(tmp_path: Path) -> None:
    (tmp_path / "gka").mkdir()
    scores = {"none": 0.5, "makd": 0.7, "ceiling": 0.75}
    rows = [{"method": name, "topic": "neon", "consistency": score} for name, score in scores.items()]
    (tmp_path / "gka/methods.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = values(tmp_path)
    assert (found["ceiling_gain"], found["near_ceiling_gain"]) == ("+50.0 %", "+47.5 %")


@pytest.mark.parametrize("kind", ["dummy_profile", "foreign_profile"])
def test_full_fine_tune_leaves_the_edge_as_it_was(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    profile = with_evaluators(request.getfixturevalue(kind), tmp_path / "profile")
    study = MakdStudy(ModelBank(str(profile)), 2, 1, ResultStore(tmp_path))
    before = study.bank.edge.image("a red boat", 1)
    result = study.run(TopicTraining("rocket", dataclasses.replace(TINY, method="full")))
    assert list(result["rows"]) == ["16"]
    assert np.array_equal(study.bank.edge.image("a red boat", 1), before)


def test_compositions_show_each_alone_and_both(study: MakdStudy) -> None:
    for topic in PAIRS[0]:
        study.run(TopicTraining(topic, TINY))
    found = study.compose(PAIRS[0], TINY)
    assert set(found["rows"]) == {"none", "neon", "rocket", "both", "ceiling"}


def test_a_profiles_own_topics_are_evaluated_instead_of_the_worlds(
    dummy_profile: Path, tmp_path: Path
) -> None:
    profile = with_own_topics(dummy_profile, tmp_path / "profile")
    study = MakdStudy(ModelBank(str(profile)), 2, 3, ResultStore(tmp_path))
    base = DistillConfig(**study.bank.profile.distill.given())
    topics = study.bank.topics
    assert topics == ["frost", "glow"]
    assert {training.topic for training in trainings(base, Plan(3), topics)} == set(topics)
    for topic in topics:
        learnt = {
            prompt
            for training in trainings(base, Plan(3), [topic])
            for prompt in study._distilled(topic, training.config).prompts
        }
        assert not learnt & {text for _, text, _ in study.test_prompts(topic)}
    done = {}
    for training in trainings(base, Plan(1), topics):
        if training.config == dataclasses.replace(base, method=training.config.method):
            done[training] = study.run(training)
    measured = MakdResults({topic: study.unaligned(topic) for topic in topics}, {}, done, [])
    write(measured, base, tmp_path / "results", edge_bytes=10_000_000)
    figures = json.loads((tmp_path / "results" / "headline.json").read_text())
    assert "gka_gain_percent" in figures
    assert "gka_probe_heldout_accuracy" not in figures  # the profile has no probe
    before = study.key("some cell")
    (profile / "topics" / "frost.yaml").write_text(
        'prompts: ["a {cat|dog|cow|hen|fox|owl} {here|there} at frost"]'
    )
    assert MakdStudy(ModelBank(str(profile)), 2, 3, study.store).key("some cell") != before


def test_the_updates_that_ship_are_measured_without_any_training(dummy_profile: Path, tmp_path: Path) -> None:
    profile = with_own_topics(dummy_profile, tmp_path / "profile")
    (profile / "knowledge").mkdir()
    study = MakdStudy(ModelBank(str(profile)), 2, 1, ResultStore(tmp_path))
    training = TopicTraining("frost", DistillConfig(**study.bank.profile.distill.given()))
    study.run(training)
    update = study.update_of(training)
    update.save(profile / "knowledge" / "frost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makd, "train", None)
        found = study.shipped("frost")
    assert (found["bytes"], found["content_hash"]) == (update.size_bytes, update.content_hash)
    assert found["rows"] == study.run(training)["rows"][str(training.config.bits)]
    asked = {"profile": str(profile), "prompts": 2, "plan": Plan(1, train=False), "workers": 1}
    with pytest.raises(InvalidInputError, match="has no update of glow"):
        measure(TINY, **asked, runs=tmp_path)
    other = dataclasses.replace(training, topic="glow")
    study.run(other)
    study.update_of(other).save(profile / "knowledge" / "glow")
    results = tmp_path / "results"
    run_gka(**asked, results=results, runs=tmp_path)
    figures = json.loads((results / "headline.json").read_text())
    assert "gka_gain_percent" in figures
    assert not (results / "gka" / "trainings.jsonl").exists(), "nothing was trained"


def _row(consistency: float, index: int) -> Row:
    noise = 0.01 * (index % 2 - 0.5)
    scores = dict.fromkeys(("clip", "dino", "consistency"), consistency + noise)
    return {"prompt": f"p{index}", "seed": index, **scores, "probe": consistency}


def _rows(consistency: float) -> list[Row]:
    return [_row(consistency, i) for i in range(4)]


def test_figures_are_of_the_updates_that_ship(tmp_path: Path) -> None:
    ladder = [
        {"form": "metaword alone", "bytes": 800, "gain": 0.1, "chosen": False},
        {"form": "rank 1, 2 bits", "bytes": 9000, "gain": 0.2, "chosen": True},
    ]
    shipped = {
        topic: {
            "topic": topic,
            "content_hash": "0" * 64,
            "form": "rank 1, 2 bits",
            "bytes": 9000 + place,
            "ladder": ladder,
            "rows": _rows(0.7),
        }
        for place, topic in enumerate(TOPICS)
    }
    bounds = {topic: {"none": _rows(0.5), "guided": _rows(0.5), "ceiling": _rows(0.9)} for topic in TOPICS}
    (tmp_path / "gka").mkdir()
    (tmp_path / "gka" / "trainings.jsonl").write_text("of an earlier run")
    write(MakdResults(bounds, shipped, {}, []), TINY, tmp_path, edge_bytes=10_000_000)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["gka_gain_percent"]["value"] == pytest.approx(40, abs=0.1)
    assert figures["gka_ceiling_share"]["value"] == pytest.approx(50, abs=0.1)
    assert figures["update_bytes"]["value"] == 9000 + len(TOPICS) - 1
    assert figures["update_bytes_median"]["value"] == 9000 + (len(TOPICS) - 1) / 2
    assert "gka_lead_over_best_baseline_percent" not in figures, "no baseline was trained"
    assert not (tmp_path / "gka" / "trainings.jsonl").exists(), "it was of other models or prompts"
    page = REPORT.render((DOCS / REPORT.page).read_text(), tmp_path)
    assert "| metaword alone | 800 | 50 % | 0 of " in page
    assert "| rank 1, 2 bits | 9,000 | 100 % | " in page
    assert "`dekag experiment gka`: not measured yet." in page


def test_a_run_without_trainings_keeps_what_was_trained_on_the_same_models_and_prompts(
    tmp_path: Path,
) -> None:
    bounds = {"neon": {"none": _rows(0.5), "guided": _rows(0.5), "ceiling": _rows(0.9)}}
    training = TopicTraining("neon", TINY)
    done = {
        TopicTraining("neon", dataclasses.replace(TINY, method=method)): {
            "topic": "neon",
            "config": {**training.config.as_dict(), "method": method},
            "bytes": {"16": 1000},
            "rows": {"16": _rows(0.7)},
        }
        for method in METHODS
    }
    shipped = {"neon": {"topic": "neon", "form": "", "bytes": 900, "ladder": [], "rows": _rows(0.8)}}
    write(MakdResults(bounds, {}, done, []), TINY, tmp_path, edge_bytes=10_000)
    trained = (tmp_path / "gka" / "trainings.jsonl").read_text()
    write(MakdResults(bounds, shipped, {}, []), TINY, tmp_path, edge_bytes=10_000)
    rows = [json.loads(line) for line in (tmp_path / "gka" / "methods.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"none", "guided", *METHODS, "shipped", "ceiling"}
    assert (tmp_path / "gka" / "trainings.jsonl").read_text() == trained
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    settings = dataclasses.replace(TINY, objective="trajectories")
    write(MakdResults(bounds, shipped, {}, []), settings, other, edge_bytes=10_000)
    assert not (other / "gka" / "trainings.jsonl").exists(), "trained with other settings"
    others = {"neon": {"none": _rows(0.4), "guided": _rows(0.4), "ceiling": _rows(0.9)}}
    write(MakdResults(others, shipped, {}, []), TINY, tmp_path, edge_bytes=10_000)
    assert not (tmp_path / "gka" / "trainings.jsonl").exists()


def test_a_page_of_a_smaller_plan_says_what_was_not_trained(tmp_path: Path) -> None:
    done = {}
    for training in trainings(TINY, Plan(1, methods=("lora",), studies=False), list(TOPICS)):
        bits = BITS if training.config.method == "makd" else (16,)
        score = 0.8 if training.config.method == "makd" else 0.7
        done[training] = {
            "topic": training.topic,
            "config": training.config.as_dict(),
            "bytes": {str(b): b * 1000 for b in bits},
            "rows": {str(b): _rows(score - (0.2 if b <= 4 else 0.0)) for b in bits},
        }
    bounds = {topic: {"none": _rows(0.5), "guided": _rows(0.5), "ceiling": _rows(0.9)} for topic in TOPICS}
    write(MakdResults(bounds, {}, done, []), TINY, tmp_path, edge_bytes=10_000_000)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["gka_lead_over_best_baseline_percent"]["value"] == pytest.approx(100 / 7, abs=0.1)
    page = REPORT.render((DOCS / REPORT.page).read_text(), tmp_path)
    assert (
        "There is one training seed. Not trained: metaword only, LoRA only, equal bytes, full fine-tune."
        in page
    )
    assert "| all | 2 | 8 | 8,000 |" in page
    assert page.count("`dekag experiment gka`: not measured yet.") == 3  # settings, pairs and forms


def test_figures_follow_from_the_rows(tmp_path: Path) -> None:
    level = {"metaword": 0.55, "lora": 0.7, "lora-equal-bytes": 0.72, "full": 0.85, "makd": 0.8}
    done = {}
    for training in trainings(TINY, Plan(2), list(TOPICS)):
        bits = BITS if training.config.method == "makd" and training.config.seed == 0 else (16,)
        done[training] = {
            "topic": training.topic,
            "config": training.config.as_dict(),
            "bytes": {str(b): b * 1000 * training.config.rank for b in bits},
            "rows": {str(b): _rows(level[training.config.method] - (0.2 if b <= 4 else 0.0)) for b in bits},
        }
    bounds = {topic: {"none": _rows(0.5), "guided": _rows(0.5), "ceiling": _rows(0.9)} for topic in TOPICS}
    pairs = [
        {"style": a, "subject": b, "rows": {n: _rows(0.5) for n in ("none", a, b, "both", "ceiling")}}
        for a, b in PAIRS
    ]
    measured = MakdResults(bounds, {}, done, pairs)
    write(measured, TINY, tmp_path, edge_bytes=10_000_000)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["gka_gain_percent"]["value"] == pytest.approx(60, abs=0.1)
    assert figures["gka_ceiling_share"]["value"] == pytest.approx(75, abs=0.1)
    assert figures["gka_probe_heldout_accuracy"]["value"] == pytest.approx(80, abs=0.1)
    assert figures["gka_lead_over_best_baseline_percent"]["value"] == pytest.approx(100 / 9, abs=0.1)
    assert figures["update_bytes"]["value"] == 32_000
    assert figures["update_model_share"]["value"] == pytest.approx(0.32)
    low, high = figures["gka_gain_percent"]["ci95"]
    assert low <= figures["gka_gain_percent"]["value"] <= high
    least = smallest(tmp_path)
    assert (least["rank"], least["bits"], least["bytes"]) == (1, 8, 8000)
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert "| **MAKD, full form** | 32,000 | 32,000 |" in page.read_text()
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "results-knowledge-updates-methods.svg", "results-knowledge-updates-settings.svg",
    }  # fmt: skip
    assert set(STUDY_TOPICS) <= set(TOPICS)


def test_bootstrap_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for i in range(60):
        _, (low, high) = bootstrap_ci95(lambda v: float(v.mean()), rng.normal(1.0, 1.0, 40).tolist(), seed=i)
        inside += low <= 1.0 <= high
    assert 50 <= inside <= 60


def test_bytes_of_a_model_are_those_of_its_weights_wherever_they_come_from(dummy_profile: Path) -> None:
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
    parts = ("unet", "text_encoder", "vae")
    weights = [
        load_file(path) for part in parts for path in (dummy_profile / "edge" / part).glob("*.safetensors")
    ]
    assert model_bytes(edge) == 2 * sum(tensor.numel() for file in weights for tensor in file.values())
