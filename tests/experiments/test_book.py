"""The pages that code writes are those that are committed, and their figures are those of headline.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dekag.cala.methods import cala_config
from dekag.cli import app
from dekag.codec import JsccCodec
from dekag.experiments.book import (
    MISSING,
    PAPER,
    TARGETS,
    Claim,
    claims_text,
    summary_lines,
    verdict,
    write_claims_page,
    write_summary,
)
from dekag.experiments.headline import record
from dekag.experiments.tka_training import SHARE
from dekag.experiments.trust_report import write_trust_page
from dekag.generation.profile import load_profile
from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS
from dekag.makd.config import DistillConfig
from dekag.training.cala import COMMITMENT, GRID_CBRS, RICIAN_K_RANGE_DB, SNR_RANGE_DB, TAU_RANGE_S

ROOT = Path(__file__).resolve().parents[2]
OPEN = "the interval holds the target"
STALE = "run `dekag results book` and commit what it writes"


def headline() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((ROOT / "results/headline.json").read_text())
    return figures


def figure(value: float, unit: str, ci95: list[float] | None = None) -> dict[str, Any]:
    return {"value": value, "unit": unit, "ci95": ci95, "n": 9, "command": "c", "commit": "f", "date": "d"}


def test_committed_claims_are_what_the_figures_say(tmp_path: Path) -> None:
    write_claims_page(tmp_path / "claims.md", ROOT / "results")
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs/claims.md").read_text(), STALE


def test_the_page_of_trust_is_what_the_results_say(tmp_path: Path) -> None:
    write_trust_page(tmp_path / "trust.md", ROOT / "results")
    assert (tmp_path / "trust.md").read_text() == (ROOT / "docs/results-trust.md").read_text(), STALE


def test_the_table_of_the_readme_is_what_the_figures_say(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme)
    write_summary(tmp_path / "README.md", ROOT / "results")
    assert (tmp_path / "README.md").read_text() == readme, STALE


def test_the_table_of_the_readme_says_what_is_missed_and_what_is_missing() -> None:
    lines = "\n".join(summary_lines({"gka_gain_percent": figure(50, "%", [40, 70])}))
    assert "| at least 60 %; paper: 44 % | 50.00 % | 40.00 .. 70.00 | 9 | missed by 10 points |" in lines
    assert f"| at most 60 images | {MISSING} |  |  | {MISSING} |" in lines
    assert f"0 are met, 1 missed, {len(TARGETS) - 1} {MISSING}" in lines


def test_every_key_shown_was_measured_or_is_said_to_be_missing() -> None:
    figures = headline()
    shown = set()
    for line in (ROOT / "docs/claims.md").read_text().splitlines():
        if found := re.search(r"`([a-z0-9_]+)` \|$|^\| `([a-z0-9_]+)` \|", line):
            key = found[1] or found[2]
            shown.add(key)
            assert (key in figures) != (MISSING in line), line
    assert shown == figures.keys() | {claim.key for claim in (*PAPER, *TARGETS)}


@pytest.mark.parametrize(
    ("claim", "measured", "said"),
    [
        (Claim("", 8, "dB", "k"), figure(8.0, "dB"), "met"),
        (Claim("", 8, "dB", "k"), figure(7.996, "dB"), "missed by 0.004 dB"),
        (Claim("", 90, "%", "k"), figure(85.56, "%", [80, 91]), f"missed by 4.4 points; {OPEN}"),
        (Claim("", 1, "dB", "k", "most"), figure(0.85, "dB", [0.5, 1.2]), f"met; {OPEN}"),
        (Claim("", 1.3, "ratio", "k", "most"), figure(1.55, "ratio", [1.5, 1.6]), "missed by 0.25"),
        (Claim("", 200_000, "B", "k", "most"), figure(212_345, "B"), "missed by 12,345 B"),
    ],
)  # fmt: skip
def test_a_verdict_says_by_how_much(claim: Claim, measured: dict[str, Any], said: str) -> None:
    assert verdict(claim, {"k": measured}) == said


def test_a_command_that_measures_keeps_the_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(**_: object) -> None:
        record("distill_seconds", 12.3, "s", command="dekag bench distill", count=2)

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/claims.md").touch()
    (tmp_path / "README.md").write_text("# Mine\n<!-- results -->\nold\n<!-- /results -->\nstays\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.launcher.bench.distill.run_distill_bench", measure)
    assert CliRunner().invoke(app, ["bench", "distill"]).exit_code == 0
    assert "| 12.3 s |" in (tmp_path / "docs/claims.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# Mine\n")
    assert "| 12.3 s |" in readme
    assert "old" not in readme
    assert readme.endswith("<!-- /results -->\nstays\n")


def test_figures_that_nobody_promised_are_shown_as_well() -> None:
    text = claims_text({"a_new_one": figure(1.5, "ratio", [1.4, 1.6])})
    assert "|  | 1.50 | 1.40 .. 1.60 | 9 | `a_new_one` |" in text
    assert f"0 met, 0 missed, {len(TARGETS)} {MISSING}" in text


def test_choices_on_the_page_of_the_paper_are_those_of_the_code() -> None:
    page = " ".join((ROOT / "docs/paper.md").read_text().split())
    distill, cala, profile = DistillConfig(), cala_config(1), load_profile("embedded")
    codec = JsccCodec.load(profile.codec).config
    low, high = SNR_RANGE_DB
    for said in (
        f"{BLOCKS} blocks in {BANDWIDTH_HZ / 1e6:g} MHz",
        f"{2**codec.bits_per_symbol}-QAM",
        f"weight {COMMITMENT}",
        f"{codec.blocks} residual blocks of {codec.width} channels on each side",
        f"{distill.tokens} vectors",
        f"rank {distill.rank}, {distill.bits} bits a number",
        f"{distill.images} cloud images",
        f"{distill.steps} steps of {distill.batch} images",
        f"guidance {distill.guidance_scale:g}",
        f"{100 * SHARE:g} % of the codec's parameters",
        f"trunk of {cala.gate_width} units",
        f"{cala.kernel} kernels",
        ", ".join(f"1/{1 / cbr:.0f}" for cbr in GRID_CBRS),
        f"{low:g} to {high:g} dB",
        f"{TAU_RANGE_S[0] * 1e9:g} ns to {TAU_RANGE_S[1] * 1e6:g} us",
        f"K {RICIAN_K_RANGE_DB[0]:g} to {RICIAN_K_RANGE_DB[1]:g} dB",
        f"{profile.cloud.steps} steps at the cloud, {profile.edge.steps} at the edge",
    ):
        assert said in page, said
