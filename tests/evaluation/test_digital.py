"""The digital baseline: what it picks, what it can expect, how it fails, and the figures that follow."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dekag.evaluation.reports.digital import REPORT, fails_up_to_db
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies import digital
from dekag.evaluation.studies.digital import (
    BASELINES,
    SENDERS,
    USES,
    DigitalResults,
    Forecast,
    ImageSet,
    Semantic,
    ahead_from_db,
    check,
    choose,
    conditions_of,
    crossovers_db,
    least_consistency_lead,
    load_image_set,
    measure,
    needed_uses,
    shannon,
    write,
)
from dekag.generation.models import Generator
from dekag.link import image_coding
from dekag.link.conditions import LinkConditions
from dekag.link.mcs import CodewordLayout
from dekag.metrics.features import ImageScorer
from dekag.profile import load_profile

RATE = 1 / 96
SENDER_NAMES = {name for name, *_ in SENDERS}


@pytest.fixture(scope="module")
def edge(dummy_profile: Path) -> Generator:
    return Generator.from_profile(load_profile(dummy_profile), "edge")


@pytest.fixture(scope="module")
def scorer() -> ImageScorer:
    judges = load_profile("stickers").scorer
    assert judges is not None
    return ImageScorer.load(judges.clip, judges.dino)


@pytest.fixture(scope="module")
def images(edge: Generator, scorer: ImageScorer, tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_coding, "QUALITIES", (0, 30))
        patch.setattr(digital, "_MEAN_IMAGES", 4)
        store = ResultStore(tmp_path_factory.mktemp("digital"))
        first = load_image_set(edge, scorer, 3, store)
        patch.setattr(digital, "ladders", None)  # what was made once is read, not made again
        again = load_image_set(edge, scorer, 3, store)
    assert again.ladders["avif", True][0].sizes == first.ladders["avif", True][0].sizes
    return first


def test_choice_fits_and_is_the_best_that_can_be_expected(images: ImageSet) -> None:
    forecast = Forecast(conditions_of("rayleigh-1us", 10.0))
    for uses in (64, 512, 4096):
        single = [choose(images, 0, names, uses, forecast) for names in list(BASELINES.values())[3:6]]
        best = choose(images, 0, BASELINES["best"], uses, forecast)
        assert best.values[0] == pytest.approx(max(choice.values[0] for choice in single))
        assert best.ladder is not None
        assert best.coding is not None
        size = images.ladders[best.ladder][0].sizes[best.rung]
        assert CodewordLayout.of(size, best.coding).channel_uses == best.uses <= uses
        assert 0 < best.arrives <= 1


def test_nothing_fits_is_the_mean_picture(images: ImageSet) -> None:
    choice = choose(images, 1, BASELINES["webp-file"], 64, Forecast(conditions_of("awgn", -5.0)))
    assert choice.coding is None
    assert choice.arrives == 0
    assert np.array_equal(choice.values, images.fallback_values[1])


def test_baselines_are_ordered_as_theory_says(images: ImageSet) -> None:
    for channel, snr_db in (("awgn", 10.0), ("rayleigh-flat", 10.0)):
        forecast = Forecast(conditions_of(channel, snr_db))

        def mean(
            names: list[tuple[str, bool]], transmissions: int = 1, forecast: Forecast = forecast
        ) -> float:
            found = [choose(images, i, names, 512, forecast, transmissions=transmissions) for i in range(3)]
            assert all(choice.uses <= 512 for choice in found)
            return float(np.mean([choice.values[0] for choice in found]))

        file, bare, harq = mean(BASELINES["best-file"]), mean(BASELINES["best"]), mean(BASELINES["best"], 4)
        assert file <= bare <= harq
        bounds = shannon(images, 512, conditions_of(channel, snr_db))
        assert bounds["outage"][:, 0].mean() >= bare - 0.05


def test_the_forecast_knows_that_combining_helps() -> None:
    forecast = Forecast(conditions_of("rayleigh-flat", 5.0))
    chances = forecast.arrives(digital.TABLE[7], 100)
    assert (np.diff(chances) > 0.05).all()
    awgn = Forecast(conditions_of("awgn", 0.0)).arrives(digital.TABLE[4], 100)
    assert awgn[0] < 0.2
    assert awgn[1] > 0.9


def test_real_gains_carry_files_without_csi() -> None:
    """Sweeps over the channel of SwinJSCC send files: with QPSK, and twice with less power."""
    strong, weak = (
        Forecast(LinkConditions(fading="rayleigh-magnitude", csi="none", snr_db=snr_db), channel_uses=2048)
        for snr_db in (10.0, 2.0)
    )
    assert strong.arrives(digital.TABLE[4], 200)[0] > 0.99
    assert strong.arrives(digital.TABLE[12], 200)[0] < 0.01
    once, twice, *_ = weak.arrives(digital.TABLE[4], 200)
    assert once < 0.1
    assert twice > 0.9


def test_the_crossover_is_where_the_mean_lead_ends() -> None:
    def rows(*leads_db: float) -> list[dict[str, float]]:
        low = [{"cbr": 0.001, "snr_db": snr, "lead": -9.0} for snr in (0.0, 10.0, 20.0)]
        pairs = zip((0.0, 10.0, 20.0), leads_db, strict=True)
        return low + [
            {"cbr": 0.01, "snr_db": snr, "lead": lead + off} for snr, lead in pairs for off in (-1.0, 1.0)
        ]

    assert ahead_from_db(rows(3.0, 1.0, -1.0)) == pytest.approx(15.0)
    assert ahead_from_db(rows(-3.0, 1.0, -3.0)) == pytest.approx(12.5)
    assert ahead_from_db(rows(3.0, -1.0, 1.0)) is None
    assert ahead_from_db(rows(-3.0, -1.0, -1.0)) == 0.0
    assert ahead_from_db(rows(3.0, 1.0, -1.0), 0.001) == 0.0


def test_crossovers_are_told_by_sender_and_channel() -> None:
    def row(channel: str, snr_db: float, psnr_db: float) -> dict[str, Any]:
        return {"channel": channel, "cbr": 0.01, "snr_db": snr_db, "semantic_psnr_db": 25.0,
                "lead_db": 25 - psnr_db}  # fmt: skip

    rows = [row("awgn", 0, 24), row("awgn", 10, 26), row("fading", 0, 20), row("fading", 10, 24)]
    harq = [{**each, "rival": "best-harq", "psnr_db": 25 - each["lead_db"] + 3} for each in rows]
    others = [{**each, "rival": "best", "psnr_db": 99.0} for each in rows]
    found = crossovers_db(rows, harq + others)
    assert found["digital_ahead_from_db"] is None
    assert found["digital_awgn_ahead_from_db"] == pytest.approx(5)
    assert found["digital_harq_ahead_from_db"] == 0
    assert crossovers_db([], []) == dict.fromkeys(found)


def test_a_sender_that_maximises_consistency_is_compared_by_it(images: ImageSet, tmp_path: Path) -> None:
    keys = [("awgn", cbr, snr_db) for cbr in digital.RATES[1:3] for snr_db in (5.0, 15.0)]
    semantic: Semantic = {key: np.array([[14.0, 0.7, 0.5]] * 3) for key in keys}
    grid: dict[str, Any] = {"channels": ["awgn"], "rates": digital.RATES[1:3], "snrs_db": (5.0, 15.0)}
    measured = measure(images, semantic, **grid, checks=0)
    cells: dict[Any, dict[str, Any]] = {}
    for row in measured.rows:
        cells.setdefault(digital.place_of(row), {})[row["rival"]] = row
    assert len(cells) == 4
    for cell in cells.values():
        for most, best in (("consistent", "best"), ("consistent-harq", "best-harq")):
            assert cell[most]["consistency"] >= cell[best]["consistency"]
            assert cell[most]["psnr_db"] <= cell[best]["psnr_db"]
    assert any(cell["consistent"]["consistency"] > cell["best"]["consistency"] for cell in cells.values())
    write(measured, semantic, tmp_path)
    low = cells["awgn", round(1 / 384, 6), 5.0]
    least = json.loads((tmp_path / "headline.json").read_text())["digital_low_rate_consistency_lead"]
    expected = 0.6 - max(low[sender]["consistency"] for sender in ("consistent", "consistent-harq"))
    assert least["value"] == pytest.approx(expected, abs=1e-4), "of one rate and one SNR of two each"
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    text = page.read_text()
    lead = np.mean([0.6 - cell["consistent"]["consistency"] for cell in cells.values()])
    (all_cells,) = (line for line in text.splitlines() if line.startswith("| all cells |"))
    assert f"| {lead:+.3f} |" in all_cells
    (crossing,) = (line for line in text.splitlines() if line.startswith("| consistency |"))
    assert crossing.count("dB") == 2
    assert least_consistency_lead([], measured.rows) is None


def test_results_without_that_sender_say_that_it_was_not_measured(images: ImageSet, tmp_path: Path) -> None:
    key = ("awgn", RATE, 5.0)
    semantic: Semantic = {key: np.array([[14.0, 0.7, 0.5]] * 3)}
    measured = measure(images, semantic, channels=["awgn"], rates=[RATE], snrs_db=[5.0], checks=0)
    old = [row for row in measured.rows if not row["rival"].startswith("consistent")]
    write(dataclasses.replace(measured, rows=old), semantic, tmp_path)
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert "| consistency | not measured yet |" in page.read_text()
    assert "digital_low_rate_consistency_lead" not in json.loads((tmp_path / "headline.json").read_text())


def test_equal_quality_needs_more_uses_the_higher_it_is(images: ImageSet) -> None:
    forecast = Forecast(conditions_of("awgn", 10.0))
    low, high, never = needed_uses(images, forecast, [14.0, 18.0, 99.0])
    assert USES[0] - 1e-9 <= low <= high < math.inf
    assert never == math.inf


def test_measured_written_and_compared(images: ImageSet, tmp_path: Path) -> None:
    key = ("awgn", RATE, 5.0)
    semantic = {key: np.array([[13.0, 0.8, 0.7], [15.0, 0.9, 0.8], [14.0, 0.7, 0.9]])}
    measured: DigitalResults = measure(
        images, semantic, channels=["awgn"], rates=[RATE], snrs_db=[-5.0, 5.0], checks=2
    )
    write(measured, semantic, tmp_path)
    figures = json.loads((tmp_path / "headline.json").read_text())
    lead = float((semantic[key] - measured.best[key])[:, 0].mean())
    assert figures["digital_lead_db"]["value"] == pytest.approx(lead, abs=1e-3)
    assert figures["digital_channel_use_ratio"]["value"] == pytest.approx(measured.uses[key] / 512, abs=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "digital" / "rivals.jsonl").read_text().splitlines()]
    assert {row["rival"] for row in rows} == {*SENDER_NAMES, "shannon-outage", "shannon-ergodic"}
    assert all(0 <= row.get("lost", 0) <= 1 for row in rows)
    assert fails_up_to_db(rows, "awgn", rows[0]["cbr"], "jpeg-file") in (-5.0, 5.0)
    assert len(measured.checks) == 2
    own = semantic[key][:, 0].mean()
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert f"| 5 | {own:.1f} |" in page.read_text()


def test_sample_is_really_decoded(images: ImageSet) -> None:
    key = ("awgn", RATE, 15.0)
    forecast = Forecast(conditions_of("awgn", 15.0))
    chosen = {key: [choose(images, i, BASELINES["best"], 512, forecast) for i in range(3)]}
    rows = check(images, chosen, 3)
    assert len(rows) == 3
    for row in rows:
        assert row["transmissions"] <= row["max_transmissions"]
        if row["arrived"] and row["predicted_arrival"] > 0.999:
            assert row["psnr_db"] == pytest.approx(row["predicted_psnr_db"], abs=0.1)
