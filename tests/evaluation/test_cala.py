"""The experiment on transmission knowledge: trainings and blocks that resume, and figures that follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dekag.cala.methods import METHODS
from dekag.evaluation.models import ModelBank
from dekag.evaluation.reports.cala import REPORT, losing_conditions
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies import cala as tka
from dekag.evaluation.studies import cala_training as tka_training
from dekag.evaluation.studies.cala import (
    COSTS,
    GRID_SNRS_DB,
    MISMATCH_CHANNELS,
    OFFSETS_DB,
    UNSEEN,
    CalaResults,
    CalaStudy,
    ChannelEvaluation,
    Request,
    as_channel,
    figures,
    gate_cost,
    main_evaluation,
    method_rows,
    per_image,
    rate_control,
    unseen_evaluations,
    write,
)
from dekag.evaluation.studies.cala_training import (
    FRACTION,
    FRACTION_METHODS,
    FRACTIONS,
    Plan,
    Training,
    Trainings,
    one_condition,
)
from dekag.evaluation.studies.digital import CHANNELS, RATES, SNRS_DB
from dekag.generation.models import Generator
from dekag.profile import load_profile
from dekag.training.cala import RICIAN_K_RANGE_DB, SNR_RANGE_DB, TAU_RANGE_S

CALM = as_channel(CHANNELS["awgn"])


@pytest.fixture(scope="module")
def study(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> CalaStudy:
    """The shipped codec and adapters, an untrained edge, and trainings of one step on noise."""
    bank = ModelBank("stickers")
    edge = Generator.from_profile(load_profile(dummy_profile), "edge")
    bank.__dict__.update(edge=edge, autoencoder=edge.pipeline.vae)  # else loaded when first read
    plan = Plan(steps=1, fraction_steps=1, oracle_steps=1)
    trainings = Trainings(bank, plan, ResultStore(tmp_path_factory.mktemp("tka")))
    latents = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    trainings.__dict__.update(latents=latents, metric=torch.eye(4))
    pixels = edge.decoder.decode(latents[:8])
    return CalaStudy(trainings, latents[:8], pixels, list(range(8)), "tiny", ["a red boat"] * 8)


def test_a_finished_training_is_read(study: CalaStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training("lora", FRACTION, 1, 1)
    first = study.trainings.train(training, show=False).state_dict()
    monkeypatch.setattr("dekag.training.cala.send", None)  # a step would fail
    again = study.trainings.train(training, show=False).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_ceiling_goes_on_from_the_shared_fine_tune_in_its_one_condition(
    study: CalaStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = study.trainings.train(Training("fine-tune", FRACTION, 1, 1), show=False)
    seen = []
    original = tka_training.train_method

    def spy(*arguments: Any, **options: Any) -> Any:
        if options["only"] is not None:
            started = options["adapted"].state_dict()
            assert all(torch.equal(value, started[name]) for name, value in shared.state_dict().items())
            assert all(p.requires_grad for p in options["adapted"].codec.parameters())
            seen.append(options["only"])
        return original(*arguments, **options)

    monkeypatch.setattr(tka_training, "train_method", spy)
    key = ("rayleigh-1us", 1 / 384, 5.0)
    study.trainings.train(Training("fine-tune", FRACTION, 1, 1, key, 1), show=False)
    (only,) = seen
    assert (float(only.snr_db), float(only.los_fraction), float(only.tau_rms_s)) == pytest.approx(
        (5.0, 0.0, 1e-6)
    )
    assert float(one_condition(("awgn", 1 / 96, 0.0)).tau_rms_s) == 0


def test_unseen_conditions_are_not_drawn_in_training() -> None:
    for name, (there, beside) in UNSEEN.items():
        low, high = TAU_RANGE_S
        assert there["fading"].startswith("tdl-") or not low <= there["tau_rms_s"] <= high, name
        assert beside["fading"] in ("rayleigh", "rician"), name
        assert low <= beside["tau_rms_s"] <= high, name
        assert beside.get("rician_k_db", 0.0) <= RICIAN_K_RANGE_DB[1]
    low, high = SNR_RANGE_DB
    beyond = [pair for name, pair in unseen_evaluations().items() if " dB, " in name]
    assert len(beyond) == len(tka.BEYOND_DB) * len(MISMATCH_CHANNELS)
    for there, beside in beyond:
        assert not low <= there.snrs_db[0] <= high
        assert beside.snrs_db[0] in (low, high)


def test_a_block_is_measured_once_and_holds_what_it_was_asked_for(study: CalaStudy) -> None:
    evaluation = ChannelEvaluation("cala", CALM, (1 / 96, 1 / 384), (0.0, 20.0), structure=True)
    found = study.run(evaluation)
    assert found.shape == (2, 2, 8, 5)
    assert np.isfinite(found[..., :3]).all()
    assert np.isnan(found[..., 3:]).all()
    assert (found[..., 0].mean(axis=2)[:, 1] > found[..., 0].mean(axis=2)[:, 0]).all(), "more SNR, more PSNR"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalaStudy, "cell", None)  # measuring again would fail
        assert np.array_equal(study.run(evaluation), found, equal_nan=True)
    judged = study.run(dataclasses.replace(evaluation, structure=False, features=True))
    assert np.isfinite(judged[..., 3:]).all()
    assert np.isnan(judged[..., 1:3]).all()
    assert np.array_equal(judged[..., 0], found[..., 0])


def test_wrong_reports_mislead_only_methods_that_use_them(study: CalaStudy) -> None:
    for method, changes in (("none", False), ("cala", True)):
        right = ChannelEvaluation(method, CALM, (1 / 96,), (10.0,))
        wrong = dataclasses.replace(right, offset_db=-10.0)
        assert right.conditions(10.0).sender_snr_db == 10
        assert wrong.conditions(10.0).sender_snr_db == 0
        assert (not np.array_equal(study.run(right), study.run(wrong), equal_nan=True)) == changes


def test_rate_control_promises_what_the_table_holds(
    study: CalaStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    easy, hard = [], []
    for target, found in ((5.0, easy), (60.0, hard)):
        monkeypatch.setattr(tka, "TARGETS_DB", (target,))
        found += rate_control(study, 4)
    assert all(each.promised and each.channel_uses < 512 for each in easy)
    assert not any(each.promised for each in hard)
    told = rate_control(study, 4, offset_db=3.0)
    assert [each.told_db - each.snr_db for each in told] == pytest.approx([3.0] * 4)
    assert [each.snr_db for each in told] == [each.snr_db for each in hard]


def test_costs_are_of_equally_many_rounds(study: CalaStudy) -> None:
    costs = gate_cost(study, 3)
    assert {len(seconds) for seconds in costs.values()} == {3}
    assert min(min(seconds) for seconds in costs.values()) > 0


def fabricated(study: CalaStudy) -> CalaResults:
    """20 dB unaligned, CALA 5 dB more, others 3 dB more, but SNR attention ahead on AWGN."""
    level = dict.fromkeys(METHODS, 23.0) | {"none": 20.0, "cala": 25.0}
    noise = np.linspace(-0.5, 0.5, 8)[:, None]
    main = {}
    for method, psnr in level.items():
        for channel in CHANNELS:
            snrs = SNRS_DB if method == "cala" else GRID_SNRS_DB
            here = 26.0 if (method, channel) == ("snr-attention", "awgn") else psnr
            main[(method, channel)] = here + noise + np.zeros((len(RATES), len(snrs), 8, 5))
    flat = np.zeros((12, 8))
    unseen = {"a": (flat, flat + 0.5), "b": (flat, flat + 0.25), "-7.5 dB, awgn": (flat, flat + 9)}
    requests = [
        Request("awgn", 10, 10, 20, promised, 100, psnr)
        for promised, psnr in ((True, 21.0), (True, 22.0), (True, 19.0), (True, 20.0), (False, 1.0))
    ]
    return CalaResults(
        study,
        main,
        {
            (method, fraction): flat + 20 + fraction
            for method in FRACTION_METHODS
            for fraction in FRACTIONS[1:]
        },
        flat + 25.5,
        dict.fromkeys(("none", "cala", "fine-tune"), flat + 25),
        unseen,
        {(c, offset): np.zeros((2, 4, 8)) - abs(offset) for c in MISMATCH_CHANNELS for offset in OFFSETS_DB},
        {0.0: requests, 3.0: requests},
        {name: [1.2 if name == "a new condition" else 1.0] * 5 for pair in COSTS.items() for name in pair},
    )


def test_figures_follow_from_what_was_measured(study: CalaStudy, tmp_path: Path) -> None:
    measured = fabricated(study)
    figures(measured, tmp_path)
    found = {
        name: each["value"] for name, each in json.loads((tmp_path / "headline.json").read_text()).items()
    }
    assert found == pytest.approx(
        {
            "tka_gain_db": 5.0,
            "tka_lead_over_best_baseline_db": 1.25,  # snr-attention: 23 + 3 on one trained channel of four
            "tka_oracle_gap_db": 0.5,
            "tka_adapter_share": 4.952,
            "tka_unseen_gap_db": 0.5,
            "gate_cost_ratio": 1.2,
            "auto_rate_hit_share": 75.0,
        },
        abs=1e-3,
    )
    assert per_image(measured, "cala") == pytest.approx(np.linspace(24.5, 25.5, 8))
    write(measured, tmp_path)
    lines = losing_conditions(tmp_path)
    assert "- awgn: SNR attention 26.00, CALA 25.00" in lines
    assert "| SNR attention | 24 | 144 |" in lines
    assert "| one shared LoRA | 0 | 144 |" in lines
    leads = {row["method"]: row.get("cala_lead_db") for row in method_rows(measured)}
    assert leads["none"] == pytest.approx(5.0)
    assert leads["cala"] is None


def test_rows_fill_the_page(study: CalaStudy, tmp_path: Path) -> None:
    write(fabricated(study), tmp_path)
    assert {path.stem for path in (tmp_path / "tka").iterdir()} == {
        "setup", "grid", "methods", "ceilings", "shares", "unseen", "mismatch", "requests", "costs",
    }  # fmt: skip
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert "| **CALA** | 5.0 % | 25.00 |" in page.read_text()
    assert "| +0 dB | 5 | 4 | 75 % |" in page.read_text()
    assert len(list((tmp_path / "plots").iterdir())) == len(REPORT.plots)


def test_pictures_of_live_models_are_drawn(study: CalaStudy) -> None:
    rows = tka.image_grid(study)
    assert [len(row) for row in rows] == [1 + len(GRID_SNRS_DB)] * 4
    assert len(tka.gates_plot(study.bank.cala()).axes) == 5
    assert len(tka.constellations_plot(study).axes) == 6


def test_a_share_too_small_for_a_method_is_no_point_of_its_curve(study: CalaStudy) -> None:
    found = {(each.method, each.fraction) for each in study.trainings.fractions()}
    assert ("cala", 0.01) in found
    assert ("lora", 0.01) not in found
    assert {("lora", 0.03), ("lora", 0.05), ("lora", 0.1)} <= found


def test_methods_compared_with_digital_use_the_finer_snr_grid() -> None:
    assert main_evaluation("cala", "awgn").snrs_db == SNRS_DB
    assert main_evaluation("lora", "awgn", Training("lora", FRACTION, 1, 1)).snrs_db == GRID_SNRS_DB
