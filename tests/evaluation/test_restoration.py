"""The study of restoration on tiny models, and the fit of its timesteps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dekag.errors import InvalidInputError, NotFoundError
from dekag.evaluation.reports.restoration import KEYS, REPORT
from dekag.evaluation.studies import restoration
from dekag.evaluation.studies.restoration import PROMPTS, SHOWN, run_restoration
from dekag.generation.models import Generator
from dekag.generation.restorer import Restorer
from dekag.generation.side_information import SideInformation
from dekag.link import LinkConditions
from dekag.pipeline import SemanticLink
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from dekag.training import restoration as fitting
from dekag.training.restoration import fit_restoration
from tests.chain import with_own_topics, with_reading_codec
from tests.services.cloud.test_publish import make_update


@pytest.fixture(scope="module")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models whose adapters say how to restore, with an update of neon."""
    width = SideInformation.load(load_profile(dummy_profile).edge).width
    folder = with_reading_codec(
        dummy_profile, tmp_path_factory.mktemp("restoration") / "it", text_width=width
    )
    make_update(folder, "neon").save(folder / "knowledge" / "neon")
    described = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps({**described, "knowledge": "knowledge"}))
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One topic and few cells."""
    monkeypatch.setattr("dekag.evaluation.models.TOPICS", {"neon": TOPICS["neon"]})
    monkeypatch.setattr(restoration, "SENT_OVER", ("rayleigh-1us",))
    monkeypatch.setattr(restoration, "GRID_SNRS_DB", (0.0, 15.0))
    monkeypatch.setattr(restoration, "STRIP_SNRS_DB", (0.0,))


@pytest.mark.usefixtures("few")
def test_every_figure_is_measured_and_lands_on_the_page(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"count": 3, "workers": 1, "profile": str(profile), "runs": tmp_path / "runs"}
    run_restoration(**options, results=tmp_path / "results")
    figures = json.loads((tmp_path / "results/headline.json").read_text())
    assert set(figures) == set(KEYS)
    rows = [json.loads(line) for line in (tmp_path / "results/restoration/cells.jsonl").open()]
    assert len(rows) == 2 * 4 * 2 * len(SHOWN)
    known = [row for row in rows if row["images"] == "known"]
    mean = {name: np.mean([r["psnr_db"] for r in known if r["shown"] == name]) for name in SHOWN}
    assert figures["restored_mean_psnr_db"]["value"] == pytest.approx(mean["right"], abs=2e-3)
    gain = mean["right"] - mean["unaligned"]
    assert figures["restored_gain_db"]["value"] == pytest.approx(gain, abs=2e-3)
    assert len({mean[name] for name in PROMPTS}) == len(PROMPTS), "every prompt is read"
    page = REPORT.write(into=tmp_path, results=tmp_path / "results")
    assert page is not None
    assert f"{figures['restored_mean_psnr_db']['value']:.2f} dB" in page.read_text()

    monkeypatch.setattr(restoration.RestorationStudy, "shown", None)  # what was measured is read
    monkeypatch.setattr(restoration, "strip", lambda _: [[np.zeros((8, 8, 3), np.uint8)]])
    run_restoration(**options, results=tmp_path / "again")
    assert (tmp_path / "again/restoration/cells.jsonl").read_text() == (
        tmp_path / "results/restoration/cells.jsonl"
    ).read_text()


@pytest.mark.usefixtures("few")
def test_a_profiles_own_topics_are_taught_instead_of_the_worlds(profile: Path, tmp_path: Path) -> None:
    own = with_own_topics(profile, tmp_path / "own")
    for topic in ("frost", "glow"):
        make_update(own, topic).save(own / "knowledge" / topic)
    options = {"count": 3, "workers": 1, "profile": str(own), "runs": tmp_path / "runs"}
    run_restoration(**options, results=tmp_path / "results")
    rows = [json.loads(line) for line in (tmp_path / "results/restoration/cells.jsonl").open()]
    shown = {kind: {row["shown"] for row in rows if row["images"] == kind} for kind in ("known", "taught")}
    # no other subject can be named for prompts that show no scene of the world
    assert shown == {"known": set(SHOWN), "taught": set(SHOWN) - {"wrong"}}


def test_without_an_update_of_every_topic_nothing_begins(profile: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no knowledge update of"):
        run_restoration(count=2, workers=1, profile=str(profile), runs=tmp_path, results=tmp_path)


def test_the_fit_finds_the_timestep_of_an_error_that_it_knows(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Generator.from_profile(load_profile(profile), "edge")
    link = SemanticLink.load(profile)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    class Oracle(Restorer):
        """Right at 300 alone."""

        def restore(
            self, latents: torch.Tensor, prompt: str = "", *, timestep: int, seeds: object = None
        ) -> torch.Tensor:
            clean = {"a": originals[0:1], "b": originals[1:2]}[prompt]
            return clean + (abs(timestep - 300) + 1) / 300 * (latents - clean)

    originals = latents
    monkeypatch.setattr(fitting, "FIT_CHANNELS", (LinkConditions(fading="awgn"),))
    options = {"snrs_db": (0.0, 10.0), "timesteps": (0, 100, 300, 600), "show": False}
    table = fit_restoration(link, Oracle(edge), latents, ["a", "b"], **options)
    assert set(table.timesteps) == {300}
    assert all(10 <= psnr <= 60 for psnr in table.psnrs_db)
    bare = SemanticLink.load(profile, aligned=False)
    with pytest.raises(InvalidInputError, match="whose quality was measured"):
        fit_restoration(bare, Oracle(edge), latents, ["a", "b"], **options)
