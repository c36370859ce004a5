"""The first-image experiment on tiny models: it measures what it says, on prompts that training never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dekag.evaluation.models import ModelBank
from dekag.evaluation.pages import read_rows
from dekag.evaluation.prompts import edge_prompts, topic_prompts
from dekag.evaluation.reports.baseline_models import KEYS, REPORT
from dekag.evaluation.studies import baseline_models
from dekag.evaluation.studies.baseline_models import measure_steps, run, sent_directly
from dekag.profile import load_profile
from dekag.stickers import EDGE_STYLES, EDGE_SUBJECTS, TOPICS
from dekag.training.tiny_models import FOREIGN, save_dummy_models
from services.cli.main import app
from tests.chain import with_evaluators


@pytest.mark.usefixtures("shapes")
def test_every_figure_is_measured_and_lands_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline_models, "STEPS", (1, 2))
    models = with_evaluators(save_dummy_models(tmp_path / "dummy"), tmp_path / "models")
    results = tmp_path / "results"
    run(8, profile=str(models), results=results)
    figures = json.loads((results / "headline.json").read_text())
    assert set(figures) == set(KEYS)
    steps = read_rows(results / "first-image" / "steps.jsonl")
    assert [(row["kind"], row["steps"], row["n"]) for row in steps] == [("known", each, 8) for each in (1, 2)]
    assert [row["steps"] for row in steps if row["own"]] == [load_profile(str(models)).edge.steps]
    judged = read_rows(results / "first-image" / "cloud.jsonl")
    assert all(0 <= row["outline"] <= 1 for row in judged if "outline" in row)
    assert 0 < figures["outline_cloud_agreement"]["n"] <= 8
    rows = (results / "first-image" / "edge_heldout.jsonl").read_text().splitlines()
    topics = {json.loads(row)["topic"] for row in rows}
    assert len(topics) == 8
    assert topics <= set(TOPICS)
    made = json.loads((results / "first-image" / "images.json").read_text())
    assert set(made) == {"samples.webp", "steps.webp", "subjects.webp"}
    page = REPORT.write(results=results, into=tmp_path)
    assert page is not None
    assert f"{figures['vae_psnr_db']['value']:.2f} dB" in page.read_text()
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"results-first-image-attributes.svg"}


@pytest.mark.usefixtures("shapes")
def test_one_part_leaves_the_other_figures_alone(dummy_profile: Path, tmp_path: Path) -> None:
    models = with_evaluators(dummy_profile, tmp_path / "models")
    run(8, parts=["cloud"], profile=str(models), results=tmp_path)
    cloud = {"probe_cloud_accuracy", "outline_cloud_agreement"}
    assert set(json.loads((tmp_path / "headline.json").read_text())) == cloud
    assert (tmp_path / "first-image" / "samples.webp").exists()


@pytest.mark.usefixtures("shapes")
def test_a_profile_without_a_probe_is_measured_as_far_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_dummy_models(tmp_path / "foreign", like=FOREIGN)
    command = ["experiment", "first-image", "--profile", "foreign", "--count", "8"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    figures = json.loads(Path("runs/foreign/results/headline.json").read_text())
    assert set(figures) == {key for key in KEYS if not key.startswith(("probe", "outline"))}
    refused = CliRunner().invoke(app, [*command, "--only", "edge"])
    assert refused.exit_code == 2
    assert "the profile foreign names no scorer.probe" in refused.stderr


def test_images_of_other_numbers_of_steps_have_the_profiles_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be another than that for which the edge's denoiser was made."""
    monkeypatch.setattr(baseline_models, "STEPS", (1,))
    folder = with_evaluators(save_dummy_models(tmp_path / "dummy"), tmp_path / "models")
    said = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**said, "size": 96}))
    bank = ModelBank(str(folder))
    shapes = []
    monkeypatch.setattr(ModelBank, "score_images", noting(ModelBank.score_images, shapes))
    measure_steps(bank, 2, tmp_path)
    assert set(shapes) == {((2, 96, 96, 3), (2, 96, 96, 3))}


def noting(score: Any, shapes: list[Any]) -> Any:
    """`ModelBank.score_images`, which also notes the shapes of what it compares."""

    def scored(bank: ModelBank, images: Any, references: Any, prompts: Any) -> Any:
        shapes.append((images.shape, references.shape))
        return score(bank, images, references, prompts)

    return scored


def test_prompts_are_held_out_and_need_their_topic() -> None:
    known = edge_prompts(50)
    assert all(scene.held_out for scene, _, _ in known)
    assert {scene.style for scene, _, _ in known} == set(EDGE_STYLES)
    assert {scene.subject for scene, _, _ in known} <= set(EDGE_SUBJECTS)
    assert all(scene.style == "neon" for scene, _, _ in topic_prompts(TOPICS["neon"], 5))
    assert all(scene.subject == "snail" for scene, _, _ in topic_prompts(TOPICS["snail"], 5))
    words = TOPICS["jewels"].triggers
    assert all(any(word in prompt for word in words) for _, prompt, _ in topic_prompts(TOPICS["jewels"], 5))
    assert all(scene.accessory == "crown" for scene, _, _ in topic_prompts(TOPICS["crown"], 5))
    assert all(scene.companion for scene, _, _ in topic_prompts(TOPICS["duo"], 5))


def test_sending_without_a_codec_loses_what_a_uniform_quantiser_loses() -> None:
    latents = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    error = (sent_directly(latents, 6) - latents).square().mean()
    # the best uniform quantiser of a Gaussian with 8 levels has a distortion of 0.03744
    assert abs(float(error) - 0.0374) < 0.003
