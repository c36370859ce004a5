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
from dekag.codec import JsccCodec
from dekag.evaluation.models import ModelBank
from dekag.evaluation.pages import read_rows
from dekag.evaluation.prompts import edge_prompts
from dekag.evaluation.reports import cala as cala_report
from dekag.evaluation.reports.cala import REPORT, gains, losing_conditions
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies import cala as tka
from dekag.evaluation.studies import cala_training as tka_training
from dekag.evaluation.studies.cala import (
    COSTS,
    GRID_SNRS_DB,
    MISMATCH_CHANNELS,
    OFFSETS_DB,
    PROMPT_CHANNELS,
    PROMPTS,
    UNSEEN,
    CalaResults,
    CalaStudy,
    ChannelEvaluation,
    Request,
    as_channel,
    compared,
    figures,
    gate_cost,
    main_evaluation,
    method_rows,
    per_image,
    prompt_evaluations,
    rate_control,
    run_costs,
    run_tka,
    told_prompts,
    unseen_evaluations,
    write,
)
from dekag.evaluation.studies.cala_training import (
    EQUAL,
    FRACTION_METHODS,
    STRONG,
    Plan,
    Training,
    Trainings,
    one_condition,
)
from dekag.evaluation.studies.digital import CHANNELS, RATES, SNRS_DB
from dekag.profile import load_profile
from dekag.training.cala import RICIAN_K_RANGE_DB, SNR_RANGE_DB, TAU_RANGE_S
from dekag.training.examples import Examples, examples_hash
from dekag.training.latent_sets import LatentSet, latents_of_prompts
from tests.chain import with_reading_codec, with_unaligned_codec
from tests.encoders import save_encoders

CALM = as_channel(CHANNELS["awgn"])
WIDTH = 16
PLAN = Plan(
    seeds=2, steps=1, fraction=0.5, fractions=(0.1, 0.5), fraction_steps=2, lengths=(2, 3),
    oracle_steps=1, seed=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile: adapters that read prompts, another codec unaligned, and untrained encoders."""
    made = tmp_path_factory.mktemp("profile")
    reading = with_reading_codec(dummy_profile, made / "reading", text_width=WIDTH)
    folder = with_unaligned_codec(reading, made / "both")
    save_encoders(folder)
    described = json.loads((folder / "profile.json").read_text())
    Path(load_profile(str(folder)).codec, "training.json").write_text(json.dumps({"steps": 4}))
    scorer = {"clip": "clip", "dino": "dino"}
    (folder / "profile.json").write_text(json.dumps({**described, "scorer": scorer}))
    return folder


def trainings_of(profile: Path, folder: Path, plan: Plan = PLAN) -> Trainings:
    """Trainings on noise, with prompts of noise; the shipped adapters were trained on the same."""
    draw = torch.Generator().manual_seed(0)
    sets = [
        Examples(torch.randn(16, 4, 16, 16, generator=draw), torch.randn(16, 3, WIDTH, generator=draw))
        for _ in range(2)
    ]
    made = Trainings(ModelBank(str(profile)), plan, ResultStore(folder))
    made.__dict__.update(examples=sets, metric=torch.eye(4))  # else made when first read
    shipped_with(made, bf16=plan.bf16, examples_hash=examples_hash(sets))
    return made


def shipped_with(trainings: Trainings, **changes: Any) -> None:
    """Change what the record of the shipped adapters says."""
    adapters = trainings.bank.adapters
    trainings.bank.__dict__["adapters"] = adapters.with_info(config={**adapters.info["config"], **changes})


@pytest.fixture(scope="module")
def study(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> CalaStudy:
    """Tiny models, and trainings of one step on noise."""
    trainings = trainings_of(profile, tmp_path_factory.mktemp("tka"))
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels = trainings.bank.edge.decoder.decode(latents)
    return CalaStudy(trainings, latents, pixels, list(range(8)), "tiny", told_prompts(edge_prompts(8)))


def test_a_finished_training_is_read(study: CalaStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training("lora", 0.5, 1, 1)
    first = study.trainings.train(training, show=False).state_dict()
    monkeypatch.setattr("dekag.training.cala.send", None)  # a step would fail
    again = study.trainings.train(training, show=False).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_ceiling_goes_on_from_the_shared_fine_tune_in_its_one_condition(
    study: CalaStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = study.trainings.train(Training("fine-tune", 0.5, 1, 1), show=False)
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
    study.trainings.train(Training("fine-tune", 0.5, 1, 1, key, 1), show=False)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalaStudy, "cell", None)  # measuring again would fail
        assert np.array_equal(study.run(evaluation), found, equal_nan=True)
    judged = study.run(dataclasses.replace(evaluation, structure=False, features=True))
    assert np.isfinite(judged[..., 3:]).all()
    assert np.isnan(judged[..., 1:3]).all()
    assert np.array_equal(judged[..., 0], found[..., 0])


def test_wrong_reports_mislead_only_methods_that_use_them(study: CalaStudy) -> None:
    for method, changes in (("none", False), ("cala", True)):
        # at both SNRs the constellation is the same, which also codecs without adapters choose by the report
        right = ChannelEvaluation(method, CALM, (1 / 96,), (20.0,))
        wrong = dataclasses.replace(right, offset_db=-5.0)
        assert right.conditions(20.0).sender_snr_db == 20
        assert wrong.conditions(20.0).sender_snr_db == 15
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


def test_costs_alone_leave_other_rows_and_figures(study: CalaStudy, tmp_path: Path) -> None:
    write(fabricated(study), tmp_path)
    before = {path.stem: path.read_bytes() for path in (tmp_path / "tka").iterdir()}
    told = json.loads((tmp_path / "headline.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tka, "_study", lambda *_: study)
        plan = study.trainings.plan
        run_costs(plan=plan, count=8, rounds=5, profile=study.bank.profile_name, results=tmp_path)
    after = {path.stem: path.read_bytes() for path in (tmp_path / "tka").iterdir()}
    assert {name for name in ROWS if after[name] != before[name]} == {"costs"}
    now = json.loads((tmp_path / "headline.json").read_text())
    changed = {key for key in now if now[key]["value"] != told[key]["value"]}
    assert now.keys() == told.keys()
    assert changed == {"gate_cost_ratio", "tka_codec_ms"}


def fabricated(study: CalaStudy) -> CalaResults:
    """20 dB unaligned, CALA 5 dB more, others 3 dB more, but SNR attention ahead on AWGN.

    The strong unaligned codec is ahead of CALA at 20 dB alone. CALA's second training is 1 dB better than its
    first, and so is the best baseline's.
    """
    level = dict.fromkeys(compared(study.trainings), 23.0) | {"none": 20.0, "cala": 25.0}
    noise = np.linspace(-0.5, 0.5, 8)[:, None]
    main = {}
    for method, psnr in level.items():
        for number in range(2 if method in ("cala", "snr-attention") else 1):
            for channel in CHANNELS:
                snrs = SNRS_DB if (method, number) == ("cala", 0) else GRID_SNRS_DB
                here = 26.0 if (method, channel) == ("snr-attention", "awgn") else psnr
                values = here + number + noise + np.zeros((len(RATES), len(snrs), 8, 5))
                if method == STRONG:
                    values[:, -1] += 3
                main[method, number, channel] = values
    flat = np.zeros((12, 8))
    unseen = {"a": (flat, flat + 0.5), "b": (flat, flat + 0.25), "-7.5 dB, awgn": (flat, flat + 9)}
    requests = [
        Request(number % 2, "awgn", 10, 10, 20, promised, 100, psnr)
        for number, (promised, psnr) in enumerate(
            ((True, 21.0), (True, 22.0), (True, 19.0), (True, 20.0), (False, 1.0))
        )
    ]
    own = np.stack([flat + 25, flat + 26])
    told = dict(zip(PROMPTS, (25.0, 24.5, 24.0, 24.75), strict=True))
    cell = np.zeros((len(RATES), len(GRID_SNRS_DB), 8))
    return CalaResults(
        study=study,
        main=main,
        best="snr-attention",
        fractions={
            (method, fraction): flat + 20 + fraction
            for method in FRACTION_METHODS
            for fraction in study.trainings.plan.fractions
            if study.trainings.fits(method, fraction)
        },
        lengths={2: flat + 20, 3: flat + 22},
        oracles=flat + 26,
        subset={**dict.fromkeys(("none", STRONG, "fine-tune"), own[:1]), "cala": own},
        unseen=unseen,
        mismatch={
            (c, offset): np.zeros((2, 4, 8)) - abs(offset) for c in MISMATCH_CHANNELS for offset in OFFSETS_DB
        },
        prompts={(prompt, c): cell + psnr for prompt, psnr in told.items() for c in PROMPT_CHANNELS},
        requests={0.0: requests, 3.0: requests},
        costs={
            name: [0.012 if name == "a new condition" else 0.01] * 5
            for pair in COSTS.items()
            for name in pair
        },
    )


def test_figures_follow_from_what_was_measured(study: CalaStudy, tmp_path: Path) -> None:
    measured = fabricated(study)
    figures(measured, tmp_path)
    recorded = json.loads((tmp_path / "headline.json").read_text())
    bank = study.bank
    parameters = sum(p.numel() for p in bank.cala().peft.parameters() if p.ndim)
    parameters -= sum(p.numel() for p in bank.codec.parameters())
    share = 100 * parameters / sum(p.numel() for p in bank.codec.parameters())
    assert {name: each["value"] for name, each in recorded.items()} == pytest.approx(
        {
            "tka_mean_psnr_db": 25.5,
            "tka_10db_psnr_db": 25.5,
            "tka_gain_db": 5.5,
            "tka_gain_strong_db": 2.0,  # 2.5 with both trainings, less 3 at one SNR of six
            "tka_lead_over_best_baseline_db": 1.25,  # snr-attention: 23 + 3 on one trained channel of four
            "tka_oracle_gap_db": 0.5,
            "tka_adapter_share": share,
            "tka_unseen_gap_db": 0.5,
            "gate_cost_ratio": 1.2,
            "tka_codec_ms": 12.0,
            "auto_rate_hit_share": 75.0,
        },
        abs=1e-3,
    )
    assert recorded["tka_gain_db"]["n"] == 2 * 8
    assert recorded["tka_gain_db"]["ci95"] == [5.0, 6.0], "the two trainings differ, the images' gains do not"
    assert per_image(measured, "cala") == pytest.approx(np.add.outer([0, 1], np.linspace(24.5, 25.5, 8)))
    write(measured, tmp_path)
    lines = losing_conditions(tmp_path)
    assert "- awgn: SNR attention 26.00, CALA 25.00" in lines
    assert "| SNR attention | 24 | 144 |" in lines
    assert "| one shared LoRA | 0 | 144 |" in lines
    assert "| unaligned, strong | 24 | 144 |" in lines
    leads = {row["method"]: row.get("cala_lead_db") for row in method_rows(measured)}
    assert leads["none"] == pytest.approx(5.5)
    assert leads["cala"] is None


def test_gains_over_both_definitions_stand_side_by_side(study: CalaStudy, tmp_path: Path) -> None:
    write(fabricated(study), tmp_path)
    rows = read_rows(tmp_path / "tka" / "gains.jsonl")
    assert len(rows) == 2 * (1 + len(RATES)) * (1 + len(GRID_SNRS_DB))
    assert all(row["gain_db"] == 5.5 for row in rows if row["over"] == "none")
    assert all((row["gain_db"] > 0) == (row["snr_db"] != 20) for row in rows if row["over"] == STRONG)
    lines = gains(tmp_path)
    assert "| 1/96 | unaligned | +5.50 | +5.50 | +5.50 | +5.50 | +5.50 | +5.50 | +5.50 |" in lines
    assert "| 1/96 | unaligned, strong | +2.50 | +2.50 | +2.50 | +2.50 | +2.50 | -0.50 | +2.00 |" in lines
    said = REPORT.values(tmp_path)
    assert (said["strong_columns"], said["strong_cells"]) == ("5 of 6", "20 of 24")
    assert (said["strong_least"], said["strong_least_at"]) == ("-0.50 dB", "CBR 1/96 and 20 dB")


ROWS = {
    "setup", "grid", "methods", "trainings", "gains", "ceilings", "shares", "lengths", "unseen", "mismatch",
    "prompts", "requests", "costs",
}  # fmt: skip


def test_rows_fill_the_page(study: CalaStudy, tmp_path: Path) -> None:
    write(fabricated(study), tmp_path)
    assert {path.stem for path in (tmp_path / "tka").iterdir()} == ROWS
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    text = page.read_text()
    assert "| 2 | 25.50 |" in next(line for line in text.splitlines() if line.startswith("| **CALA**"))
    assert "| CALA | 2 | 26.00 |" in text
    assert "| all | 25.00 | -0.50 | -1.00 | -0.25 |" in text
    assert "| 3 | 22.00 | 22.00 .. 22.00 |" in text
    assert "| one shared LoRA | 20.10 (8.9 %) | 20.50 (44.7 %) |" in text
    assert "| CALA | - | 20.50 (49.4 %) |" in text
    assert "| +0 dB | 5 | 4 | 75 % |" in text
    assert len(list((tmp_path / "plots").iterdir())) == len(REPORT.plots)


def test_a_few_baselines_and_fewer_steps_fill_what_they_can(study: CalaStudy, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, methods=("lora",), curves=False, steps=2, seeds=1)
    trainings = trainings_of(Path(study.bank.profile_name), tmp_path / "runs", plan)
    assert compared(trainings) == ["none", STRONG, "cala", EQUAL, "lora"]
    assert trainings.baselines()[EQUAL] == Training("cala", 0.5, 2, 1)
    assert trainings.fractions() == trainings.lengths() == trainings.oracles() == []
    level = {"none": 20.0, STRONG: 22.0, "cala": 25.0, EQUAL: 24.0, "lora": 23.0}
    measured = dataclasses.replace(
        fabricated(study),
        study=dataclasses.replace(study, trainings=trainings),
        main={
            (method, 0, channel): np.full((len(RATES), len(GRID_SNRS_DB), 8, 5), psnr)
            for method, psnr in level.items()
            for channel in CHANNELS
        },
        best="lora", fractions={}, lengths={}, oracles=np.empty((0, 8)), subset={},
    )  # fmt: skip
    write(fabricated(study), tmp_path)  # an earlier run measured everything
    write(measured, tmp_path)
    assert {path.stem for path in (tmp_path / "tka").iterdir()} == ROWS - {"ceilings", "shares", "lengths"}
    leads = {row["method"]: row.get("cala_lead_db") for row in method_rows(measured)}
    expected = {"none": 5.0, STRONG: 3.0, "cala": None, EQUAL: None, "lora": 1.0}
    assert leads == expected, "of the shipped over what ships, of the other over what was trained as it was"
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    text = page.read_text()
    assert "| CALA, trained as the baselines |" in text
    assert "not measured yet" in text


@pytest.mark.parametrize(
    ("said", "named", "on"),
    [
        ({}, "cala", "the same examples"),
        ({"examples_hash": None}, EQUAL, "examples that its record does not name"),
        ({"examples_hash": "0" * 64}, EQUAL, "other examples"),
        ({"bf16": True}, EQUAL, "the same examples"),
        ({"seed": 2}, EQUAL, "the same examples"),
        ({"steps": 5}, EQUAL, "the same examples"),
    ],
)
def test_baselines_are_compared_with_the_shipped_cala_only_if_it_was_trained_as_they_were(
    study: CalaStudy, tmp_path: Path, said: dict[str, Any], named: str, on: str
) -> None:
    trainings = trainings_of(Path(study.bank.profile_name), tmp_path)
    shipped_with(trainings, **said)
    assert trainings.compared == named
    assert (EQUAL in trainings.baselines()) == (EQUAL in compared(trainings)) == (named == EQUAL)
    own = fabricated(study)
    measured = dataclasses.replace(
        own,
        study=dataclasses.replace(study, trainings=trainings),
        main=own.main | {(EQUAL, *key[1:]): each - 1 for key, each in own.main.items() if key[0] == "cala"},
        subset=own.subset | {EQUAL: own.subset["cala"] - 1},
    )
    write(measured, tmp_path)
    lead = next(row["cala_lead_db"] for row in method_rows(measured) if row["method"] == "lora")
    assert lead == pytest.approx(1.5 if named == EQUAL else 2.5)
    last = read_rows(tmp_path / "tka" / "lengths.jsonl")[-1]
    alone = named == EQUAL and "steps" not in said
    assert last["psnr_db"] == pytest.approx(24.0 if alone else 25.0)
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert f"-->{on}<!--" in page.read_text()


def test_pictures_of_live_models_are_drawn(study: CalaStudy) -> None:
    rows = tka.image_grid(study)
    assert [len(row) for row in rows] == [1 + len(GRID_SNRS_DB)] * 5
    assert len(tka.gates_plot(study.bank.cala()).axes) == 5
    assert len(tka.constellations_plot(study).axes) == 6


def test_a_share_too_small_for_a_method_is_no_point_of_its_curve(study: CalaStudy) -> None:
    found = {(each.method, each.fraction) for each in study.trainings.fractions()}
    assert found == {("cala", 0.5), ("lora", 0.1), ("lora", 0.5)}


def test_only_the_shipped_cala_uses_the_finer_snr_grid() -> None:
    assert main_evaluation("cala", "awgn").snrs_db == SNRS_DB
    for method in ("lora", "cala"):
        assert main_evaluation(method, "awgn", Training(method, 0.5, 1, 1)).snrs_db == GRID_SNRS_DB


def test_the_two_definitions_of_no_alignment_are_two_codecs(study: CalaStudy, profile: Path) -> None:
    weak, strong = study.adapted("none", None), study.adapted(STRONG, None)
    folder = load_profile(str(profile)).unaligned_codec
    assert folder is not None
    for adapted, codec in ((weak, JsccCodec.load(folder)), (strong, study.bank.codec)):
        own = adapted.codec.state_dict()
        assert all(torch.equal(own[name], each) for name, each in codec.state_dict().items())
        assert study.trainings.parameters(STRONG, 1.0) == adapted.trained_parameters() == 0
    assert strong.codec is not study.bank.codec
    psnrs = [study.run(main_evaluation(each, "awgn"))[..., 0] for each in ("none", STRONG)]
    assert np.isfinite(psnrs).all()
    assert not np.array_equal(*psnrs)


def test_a_profile_with_one_codec_has_one_definition(dummy_profile: Path, tmp_path: Path) -> None:
    folder = with_reading_codec(dummy_profile, tmp_path / "reading", text_width=WIDTH)
    trainings = trainings_of(folder, tmp_path / "tka")
    assert [name for name in compared(trainings) if name in ("none", STRONG)] == ["none"]


def test_trainings_are_found_by_their_examples_prompts_and_precision(
    study: CalaStudy, tmp_path: Path
) -> None:
    training, first = Training("lora", 0.5, 1, 1), study.trainings
    profile = Path(first.bank.profile_name)
    keys = {first.key(training), trainings_of(profile, tmp_path).key(training)}
    assert len(keys) == 1
    rendered, drawn = first.examples
    changed = (
        [Examples(rendered.latents + 1, rendered.text), drawn],
        [Examples(rendered.latents), Examples(drawn.latents)],
        [rendered, Examples(drawn.latents, drawn.text[:, :2])],
        [rendered],
    )
    for examples in changed:
        other = trainings_of(profile, tmp_path)
        other.__dict__["examples"] = examples
        keys.add(other.key(training))
    keys.add(trainings_of(profile, tmp_path, dataclasses.replace(PLAN, bf16=True)).key(training))
    keys |= {first.key(dataclasses.replace(training, seed=2)), first.key(Training("cala", 0.5, 1, 1))}
    assert len(keys) == 1 + len(changed) + 1 + 2


def test_steps_are_those_of_what_ships(study: CalaStudy, tmp_path: Path) -> None:
    bank = ModelBank(study.bank.profile_name)
    config = {"config": {"steps": 7, "seed": 3}}
    described = bank.profile.model_copy(update={"codec": str(tmp_path)})
    bank.__dict__.update(adapters=bank.adapters.with_info(**config), profile=described)
    (tmp_path / "training.json").write_text(json.dumps({"steps": 5, "continues": {"steps": 4}}))
    trainings = Trainings(bank, Plan(), ResultStore(tmp_path))
    assert (trainings.steps, trainings.codec_steps, trainings.seed) == (7, 9, 3)
    assert [each.seed for each in trainings.repeats("lora")] == [4, 5]


def test_prompts_are_right_withheld_and_wrong_in_two_ways(study: CalaStudy) -> None:
    own, withheld, foreign, wrong = (study.prompts[name] for name in PROMPTS)
    assert set(withheld) == {None}
    assert list(foreign) == [*own[1:], own[0]]
    assert all(a != b and isinstance(b, str) for a, b in zip(own, wrong, strict=True))
    found = [
        study.run(dataclasses.replace(evaluation, cbrs=(1 / 96,), snrs_db=(10.0,)))[..., 0]
        for (_, channel), evaluation in prompt_evaluations().items()
        if channel == "awgn"
    ]
    assert all(not np.array_equal(found[0], other) for other in found[1:])
    unprompted = Training("cala-unprompted", 0.5, 1, 1)
    for prompt in PROMPTS:
        told = ChannelEvaluation("cala-unprompted", CALM, (1 / 96,), (10.0,), 0.0, unprompted, prompt=prompt)
        assert np.array_equal(
            study.run(told)[..., 0], study.run(dataclasses.replace(told, prompt="right"))[..., 0]
        )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes: Path) -> None:
    """A few rendered and drawn examples."""
    changes = {"CACHE": tmp_path / "cache", "SCENES": 24, "HELD_OUT": 4, "DRAWN": 32}
    for name, value in changes.items():
        monkeypatch.setattr(tka_training, name, value)


def test_examples_are_rendered_and_drawn_with_their_prompts(few: None, profile: Path, tmp_path: Path) -> None:
    bank = ModelBank(str(profile))
    drawn = Trainings(bank, PLAN, ResultStore(tmp_path / "runs"))
    assert [len(each) for each in drawn.examples] == [20, 16]
    assert [each.text_width for each in drawn.examples] == [WIDTH] * 2
    folder = tmp_path / "set"
    latents_of_prompts(folder, load_profile(profile), ["a {red|blue} boat"] * 2, count=32, seed=2, show=False)
    given = Trainings(bank, dataclasses.replace(PLAN, drawn=folder), ResultStore(tmp_path / "runs"))
    assert torch.equal(given.examples[1].latents, LatentSet.load(folder).latents[:16])
    assert torch.equal(given.examples[0].latents, drawn.examples[0].latents)
    assert given.examples_hash != drawn.examples_hash
    assert given.metric.shape == (4, 4)
    again = Trainings(bank, given.plan, given.store)
    assert torch.equal(again.metric, given.metric)


def test_latents_are_drawn_anew_where_the_machine_computes_otherwise(
    few: None, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder() -> Path:
        return Trainings(ModelBank(str(profile)), PLAN, ResultStore(tmp_path / "runs")).drawn.folder

    usual = folder()
    assert folder() == usual
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "float32")
    assert folder() == usual, "as the profile says"
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "bfloat16")
    assert folder() != usual


def test_the_experiment_runs_from_models_to_page_and_resumes(
    few: None, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = {"RATES": RATES[::2], "GRID_SNRS_DB": (-5.0, 5.0, 15.0), "SNRS_DB": (-5.0, 0.0, 5.0, 15.0)}
    smaller["CHANNELS"] = {name: CHANNELS[name] for name in ("awgn", "rayleigh-flat", "rayleigh-1us")}
    for name, value in smaller.items():
        monkeypatch.setattr(tka, name, value)
        monkeypatch.setattr(cala_report, name, value, raising=False)
    results = tmp_path / "results"
    options: dict[str, Any] = {
        "plan": PLAN, "count": 2, "requests": 4, "rounds": 5, "workers": 1, "profile": str(profile),
        "runs": tmp_path / "runs",
    }  # fmt: skip
    run_tka(**options, results=results)
    assert {path.stem for path in (results / "tka").glob("*.jsonl")} == ROWS
    (setup,) = read_rows(results / "tka" / "setup.jsonl")
    assert (setup["rendered"], setup["drawn"], setup["prompts"], setup["bf16"]) == (20, 16, True, False)
    repeated = [row["method"] for row in read_rows(results / "tka" / "trainings.jsonl") if row["seed"] == 2]
    names = compared(Trainings(ModelBank(str(profile)), PLAN, ResultStore(tmp_path)))
    # the tiny adapters do not say on what they were trained
    assert setup["shipped_on_these_examples"] is None
    assert repeated == [name for name in names if name in (EQUAL, setup["best"])]
    methods = {row["method"] for row in read_rows(results / "tka" / "methods.jsonl")}
    assert methods == set(names) == {"none", STRONG, EQUAL, *METHODS}
    recorded = json.loads((results / "headline.json").read_text())
    assert {"tka_gain_db", "tka_gain_strong_db", "tka_mean_psnr_db", "tka_codec_ms"} <= set(recorded)
    page = REPORT.write(results=results, into=tmp_path)
    assert page is not None
    assert "not measured yet." not in page.read_text()

    monkeypatch.setattr("dekag.training.cala.send", None)  # a step would fail
    monkeypatch.setattr(CalaStudy, "cell", None)  # and so would a measurement
    for cached in (tka._trainings, tka._study):
        cached.cache_clear()
    run_tka(**options, results=tmp_path / "again")
    for name in sorted(ROWS - {"costs"}):
        again = (tmp_path / "again" / "tka" / f"{name}.jsonl").read_bytes()
        assert again == (results / "tka" / f"{name}.jsonl").read_bytes(), name
