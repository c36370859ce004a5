"""Sweeps: what a grid may say, what is measured once, what fails alone, and what is made of the rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from dekag import plugins
from dekag.errors import DekagError, FileError, InvalidInputError, MismatchError, NotFoundError
from dekag.evaluation import plots
from dekag.evaluation.models import ModelBank
from dekag.evaluation.registry import read_figures, record
from dekag.evaluation.reports.end_to_end import FILES, REPORT
from dekag.evaluation.store import ResultStore
from dekag.evaluation.studies import digital, end_to_end, quick
from dekag.evaluation.studies.digital import Ladder, image_ladders, mean_image
from dekag.evaluation.sweeps import command
from dekag.evaluation.sweeps.checks import check_points
from dekag.evaluation.sweeps.command import run
from dekag.evaluation.sweeps.evaluator import Evaluator, Measurement, as_one, channel_seed, identity
from dekag.evaluation.sweeps.grid import DELIVERIES, Sweep, grouped, read_sweep
from dekag.evaluation.sweeps.table import link_name, metric_plot, table
from dekag.generation.images import to_png
from dekag.generation.side_information import SideInformation
from dekag.inventory import latent_shape
from dekag.link import LinkConditions, image_coding
from dekag.metrics import Metric
from dekag.metrics.features import ImageScorer
from dekag.metrics.perceptual import Lpips
from dekag.pictures import find_pictures
from dekag.pipeline import PixelLink, SemanticLink
from dekag.profile import load_profile
from dekag.stickers import TOPICS
from services.cli.main import app
from tests.chain import with_evaluators, with_reading_codec, with_topics, without_pixel_codec
from tests.encoders import save_encoders
from tests.fetched import EXAMPLE, fetch


@pytest.fixture(scope="module")
def profile(dummy_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Untrained models with the shipped evaluators, and the adapters' place left empty."""
    return str(with_evaluators(dummy_profile, tmp_path_factory.mktemp("sweeps") / "profile"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures, one of them smaller than the window of SSIM."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, width, height in (("a", 200, 60), ("b", 64, 64), ("c", 5, 4)):
        rows = rng.integers(0, 256, (1, width, 3), np.uint8)
        (folder / f"{name}.png").write_bytes(to_png(np.repeat(rows, height, axis=0)))
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "stripes"}')
    return folder


def grid(profile: str, **changes: Any) -> Sweep:
    fields = {
        "name": "tiny",
        "profile": profile,
        "deliveries": ["unaligned"],
        "prompts": 2,
        "snr_db": [0, 20],
    }
    return Sweep.model_validate({**fields, **changes})


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def test_the_shipped_grids_are_valid(pictures: Path) -> None:
    for path in Path("sweeps").glob("*.yaml"):
        sweep = read_sweep(path)
        assert sweep.name == path.stem
        if sweep.pictures is not None:
            sweep = read_sweep(path, pictures=pictures)
        assert len(set(sweep.points())) == len(sweep.points())
    assert read_sweep(Path("sweeps/overall.yaml")).topics == list(TOPICS)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    text = (
        "{name: a, deliveries: [cala, digital], topics: [neon, world], cbr: [1/96, 0.005], seeds: [0, 1, 2]}"
    )
    points = read_sweep(written(tmp_path, text)).points()
    assert len(points) == 2 * 2 * 2 * 3
    assert {point.cbr for point in points} == {1 / 96, 0.005}
    assert len({point.key("x") for point in points}) == len(points)
    assert not {point.key("x") for point in points} & {point.key("y") for point in points}
    assert [len(group) for group in grouped(points)] == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "mapping"),
        ("{name: [", "line 1: expected the node content"),
        ("{name: a}", "deliveries"),
        ("{name: A B, deliveries: [cala]}", "name"),
        ("{name: a, deliveries: [magic]}", "unaligned, unaligned-strong, makd, cala"),
        ("{name: a, deliveries: [cala], topics: [dragons]}", "dragons"),
        ("{name: a, deliveries: [cala], cbr: [1/0]}", "fraction such as 1/96"),
        ("{name: a, deliveries: [cala], cbr: [0.5]}", "cbr.0"),
        ("{name: a, deliveries: [cala], links: [{fading: none}]}", "fading"),
        ("{name: a, deliveries: [cala], links: [{snr_db: 3}]}", "axis of its own"),
        ("{name: a, deliveries: [cala], seeds: [-1]}", "seeds.0"),
        ("{name: a, deliveries: [cala], prompts: 0}", "prompts"),
        ("{name: a, deliveries: [cala], metrics: [beauty]}", "beauty.*psnr_db, ssim"),
        ("{name: a, deliveries: [cala], cbr: ['1e400']}", "fraction such as 1/96"),
        ("{name: a, deliveries: [cala, cala]}", "cala: must be there once"),
        ("{name: a, deliveries: [cala], snr_db: [10, 10.0]}", "must be there once"),
        ("{name: a, deliveries: [{name: b, codec: adaptors}]}", "base.*adapters"),
        ("{name: a, deliveries: [{name: b, codec: digital, knowledge: true}]}", "digital delivery"),
        (
            "{name: a, deliveries: [cala], traces: mine}",
            "traces must be left out unless a link plays a trace",
        ),
        ("{name: a, deliveries: [cala], typo: 1}", "typo"),
        (
            "{name: a, deliveries: [cala], links: [{fading: rayleigh, speed_m_s: 3}]}",
            r"links must be valid \(speed_m_s: must be left out unless fading is tdl-a, tdl-b, .* or tdl-e\)",
        ),
        ("{name: a, deliveries: [cala], links: [{trace_start_s: 3}]}", "trace_start_s: must be left out"),
        ("{name: a, deliveries: [cala], links: [{rician_k_db: 99}]}", r"\(rician_k_db: .* less than"),
    ],
)
def test_a_bad_grid_is_refused_by_its_field(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=told):
        read_sweep(written(tmp_path, text))


def test_an_snr_out_of_range_is_refused(profile: str) -> None:
    with pytest.raises(InvalidInputError, match="snr_db"):
        grid(profile, snr_db=[99]).points()


def test_a_finished_cell_is_read_and_another_model_is_another_cell(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(grid(profile), runs=tmp_path)
    assert (first.measured, first.failed) == (2, [])
    assert all(set(row["metrics"]) == set(METRICS) for row in first.rows)
    assert all(len(values) == 2 for row in first.rows for values in row["metrics"].values())
    assert first.rows[0]["channel_uses"] == 512
    assert first.rows[0]["hashes"] == identity(profile)
    more = run(grid(profile, snr_db=[0, 10, 20], name="more"), runs=tmp_path)
    assert more.measured == 1
    assert [row["sweep"] for row in more.rows] == ["more"] * 3
    assert more.rows[0]["metrics"] == first.rows[0]["metrics"]
    monkeypatch.setattr(command, "identity", lambda _: {"edge": "another"})
    monkeypatch.setattr(Evaluator, "measure", lambda *_: Measurement({"clip": [1.0]}, 1.0, 0.0, 0, 0.0))
    assert run(grid(profile), runs=tmp_path).measured == 2


def changed(profile: str, folder: Path, **changes: Any) -> ModelBank:
    """The models of a copy of the profile in which something else is said."""
    shutil.copytree(profile, folder)
    described = json.loads((folder / "profile.json").read_text())
    for name, value in changes.items():
        described[name] = {**described[name], **value} if isinstance(value, dict) else value
    (folder / "profile.json").write_text(json.dumps(described))
    return ModelBank(str(folder))


def test_images_follow_the_profiles_size_and_are_kept_by_what_made_them(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digital, "_MEAN_IMAGES", 2)
    store = ResultStore(tmp_path / "store")
    evaluator = Evaluator(ModelBank(profile), store)
    first = evaluator.references("neon", 2)
    mean = mean_image(evaluator.bank.edge, store)
    assert (first.shape, mean.shape) == ((2, 128, 128, 3), (128, 128, 3))

    small = Evaluator(changed(profile, tmp_path / "small", size=96), store)
    assert small.references("neon", 2).shape == (2, 96, 96, 3)
    assert mean_image(small.bank.edge, store).shape == (96, 96, 3)
    assert small.latents("neon", 2, knowledge=False).shape == (2, 4, 12, 12)
    fields = {"deliveries": ["unaligned", "digital-webp"], "topics": ["neon"], "snr_db": [20]}
    points = grid(small.bank.profile_name, **fields, cbr=[1 / 96]).points()
    uses = {point.delivery.name: small.measure(point).channel_uses for point in points}
    assert uses["unaligned"] == round(3 * 96 * 96 / 96)
    assert uses["digital-webp"] <= uses["unaligned"]

    for number, cloud in enumerate(({"steps": 3}, {"vae_dtype": "bfloat16"})):
        other = Evaluator(changed(profile, tmp_path / str(number), cloud=cloud), store)
        assert not np.array_equal(other.references("neon", 2), first)
    coarse = changed(profile, tmp_path / "coarse", edge={"dtype": "bfloat16"})
    assert not np.array_equal(mean_image(coarse.edge, store), mean)
    assert np.array_equal(evaluator.references("neon", 2), first)


def test_files_are_scored_again_by_other_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_coding, "QUALITIES", (30,))
    monkeypatch.setattr(image_coding, "SCALES", (100,))
    for seed, name in enumerate(("one", "other")):
        save_encoders(tmp_path / name, seed)
    one, other = (
        ImageScorer.load(tmp_path / name / "clip", tmp_path / name / "dino") for name in ("one", "other")
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    store = ResultStore(tmp_path)
    scores = [image_ladders(image, each, store)["webp", False].values for each in (one, other, one)]
    assert np.array_equal(scores[0][:, 0], scores[1][:, 0]), "the same PSNR"
    assert not np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


class Fussy(Metric):
    """Fails on the second image that it gets."""

    name = "fussy"
    calls = 0

    def score(self, images: Any, references: Any) -> Any:
        Fussy.calls += 1
        if Fussy.calls == 2 or Fussy.calls == 3:
            raise ValueError("out of film")
        return np.ones(len(images))


@pytest.mark.usefixtures("plugging")
def test_a_failed_cell_is_reported_sinks_nothing_and_is_tried_again(profile: str, tmp_path: Path) -> None:
    plugins.register(Fussy)
    sweep = grid(profile, metrics=["fussy"], prompts=1)
    for _ in range(2):
        outcome = run(sweep, runs=tmp_path)
        ((point, why),) = outcome.failed
        assert point.link.snr_db == 20
        assert "out of film" in why
        assert [row["cell"]["link"]["snr_db"] for row in outcome.rows] == [0]
    assert not run(sweep, runs=tmp_path).failed
    assert not run(sweep, runs=tmp_path).measured


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"cbr": [1 / 96, 1 / 6]},
            r"cbr must be at most 0\.0\d+ \(1/[0-9.]+\) for the delivery unal",
        ),
        ({"deliveries": ["unaligned", "cala"]}, "deliveries must be deliveries without adapters"),
        (
            {"deliveries": ["unaligned", "makd"], "topics": ["neon"]},
            "topics must be of world, as the profile has no other updates",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(InvalidInputError, match=told):
        run(grid(profile, **changes), runs=tmp_path)


def test_restoration_that_cannot_be_is_refused_before_anything_is_measured(
    profile: str, tmp_path: Path
) -> None:
    width = SideInformation.load(load_profile(profile).edge).width
    reading = str(with_reading_codec(Path(profile), tmp_path / "reading", text_width=width))
    sweep = grid(reading, deliveries=["cala-restored"], links=[{"csi": "none"}])
    with pytest.raises(InvalidInputError, match=r"links\.csi must be perfect or pilots"):
        run(sweep, runs=tmp_path / "runs")
    with_table = {"deliveries": ["cala-restored"]}
    record = tmp_path / "reading" / "cala" / "knowledge.json"
    described = json.loads(record.read_text())
    assert "restoration" in described
    check_points(grid(reading, **with_table).points())


def test_a_profile_without_evaluators_is_told_before_anything_is_measured(
    dummy_profile: Path, tmp_path: Path
) -> None:
    for changes in ({}, {"deliveries": ["digital"], "metrics": ["psnr_db"]}):
        with pytest.raises(NotFoundError, match="names no scorer"):
            run(grid(str(dummy_profile), **changes), runs=tmp_path)
    assert run(grid(str(dummy_profile), metrics=["psnr_db"], snr_db=[0]), runs=tmp_path).measured == 1


def test_the_probe_is_refused_where_there_is_none_but_as_one_of_the_usual_metrics(
    profile: str, dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = changed(profile, tmp_path / "without", scorer={"probe": None}).profile_name
    monkeypatch.setattr(Evaluator, "measure", lambda *_: Measurement({"probe": [None]}, 1.0, 0.0, 0, 0.0))
    for name in (str(dummy_profile), without):
        with pytest.raises(InvalidInputError, match=r"metrics must be without probe.*names no scorer\.probe"):
            run(grid(name, metrics=["psnr_db", "probe"]), runs=tmp_path)
    assert run(grid(without), runs=tmp_path).measured == 2
    assert run(grid(profile, metrics=["probe"]), runs=tmp_path).measured == 2


def test_rates_and_pictures_are_checked_before_anything_is_sent(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(InvalidInputError, match=r"cbr must be at most .* for the delivery unaligned"):
        run(picture_grid(profile, pictures, deliveries=["unaligned"], cbr=["1/6"]), runs=tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(pictures, damaged)
    (damaged / "b.png").write_bytes((damaged / "b.png").read_bytes()[:90])
    with pytest.raises(FileError, match=r"b\.png"):
        run(picture_grid(profile, damaged), runs=tmp_path)
    (damaged / "a.png").write_bytes((damaged / "a.png").read_bytes()[:90])
    with pytest.raises(FileError, match=r"2 of \d pictures .* repair or remove.*: \S*a\.png .*; \S*b\.png"):
        run(picture_grid(profile, damaged), runs=tmp_path)


def test_files_that_are_no_pictures_are_named(profile: str, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, own := tmp_path / "own")
    (own / "empty.jpg").touch()
    text = f"{{name: a, profile: {profile}, pictures: {own}, deliveries: [unaligned], cbr: [1/6]}}"
    done = CliRunner().invoke(app, ["sweep", str(written(tmp_path, text)), "--results", str(tmp_path / "r")])
    assert done.exit_code == 2, "the rate is refused before anything is measured"
    assert "(1): empty.jpg" in " ".join(done.output.split())


def test_the_highest_rate_that_is_allowed_is_measured(profile: str, pictures: Path, tmp_path: Path) -> None:
    """What is refused and what is sent agree on the limit."""
    bank = ModelBank(profile)
    most = bank.codecs["unaligned"].max_channel_uses(latent_shape(bank.profile, *[bank.profile.size] * 2))
    cbr = most / (3 * bank.profile.size**2)
    fields = {"snr_db": [10], "metrics": ["psnr_db"]}
    assert not run(grid(profile, cbr=[cbr], **fields), runs=tmp_path).failed
    with pytest.raises(InvalidInputError, match="cbr"):
        run(grid(profile, cbr=[cbr * 1.001], **fields), runs=tmp_path)
    square = tmp_path / "square"
    square.mkdir()
    shutil.copy(pictures / "b.png", square)  # without padding
    own = {"deliveries": ["unaligned"], "snr_db": [10], "cbr": [cbr]}
    assert not run(picture_grid(profile, square, **own), runs=tmp_path).failed


@pytest.mark.usefixtures("plugging")
def test_a_codec_of_pixels_of_ones_own_is_measured_as_the_link_sends_it(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.load(f"{EXAMPLE}:AdJscc")
    own = str(fetch("AdJscc", Path(profile), tmp_path, monkeypatch))
    fields = {"deliveries": ["pixels"], "snr_db": [10]}
    with pytest.raises(InvalidInputError, match=r"cbr must be at least 0\.0833333 .* a picture of 200x60"):
        run(picture_grid(own, pictures, cbr=["1/7", "1/24"], **fields), runs=tmp_path)
    with pytest.raises(InvalidInputError, match="a picture of 5x4"):  # which is padded to 8x4
        run(picture_grid(own, pictures, cbr=["1/12"], **fields), runs=tmp_path)
    sweep = picture_grid(own, pictures, cbr=["1/7"], **fields)
    (row,) = run(sweep, runs=tmp_path).rows
    (point,) = sweep.points()
    link = PixelLink.load(own)
    for number, file in enumerate(find_pictures(pictures).pictures):
        alone = link.picture(file.read(), point.link, seed=channel_seed(point, number), cbr=1 / 7)
        assert row["metrics"]["psnr_db"][number] == pytest.approx(alone.psnr_db, abs=0.01)
    assert run(sweep, runs=tmp_path).measured == 0
    weights = Path(own) / "own" / "weights.pt"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert sweep.points()[0].key("x") != point.key("x")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """A trace, half of which is a deep fade, and a recording with the same gains."""
    pytest.importorskip("sigmf")
    from dekag.link.recordings import write_sigmf, write_trace

    folder = tmp_path / "traces"
    folder.mkdir()
    gains = torch.tensor([1, 1, 1e-3j, 1e-3], dtype=torch.complex64)
    write_trace(folder / "street.csv", gains.numpy(), step_s=0.5)
    write_sigmf(folder / "carrier", gains, sample_rate_hz=2.0)
    return folder


def played(trace: str, start_s: float) -> dict[str, Any]:
    return {"fading": "trace", "trace": trace, "trace_start_s": start_s}


def test_traces_of_ones_own_are_played_in_sweeps(
    profile: str, pictures: Path, tmp_path: Path, traces: Path
) -> None:
    links = [played(name, start_s) for name in ("street", "carrier") for start_s in (0.0, 1.0)]
    fields = {"links": links, "snr_db": [25], "traces": str(traces), "metrics": ["psnr_db"]}
    deliveries = ["unaligned", "pixels", "digital-jpeg"]
    sweep = picture_grid(profile, pictures, deliveries=deliveries, cbr=["1/96"], **fields)
    rows = run(sweep, runs=tmp_path / "runs").rows
    found = {
        (row["cell"]["delivery"]["name"], row["cell"]["link"]["trace"], row["cell"]["link"]["trace_start_s"]):
        row["metrics"]["psnr_db"][0]
        for row in rows
    }  # fmt: skip
    for name in deliveries:
        # untrained codecs deliver little with or without the fade, but not the same
        assert found[name, "street", 0.0] != found[name, "street", 1.0], name
        assert found[name, "carrier", 1.0] == pytest.approx(found[name, "street", 1.0], abs=1.5)
    assert found["digital-jpeg", "street", 0.0] > found["digital-jpeg", "street", 1.0]
    generated = grid(
        profile, prompts=1, **{**fields, "links": links[:2]}, deliveries=["unaligned", "digital"]
    )
    good, faded, file, lost = (row["metrics"]["psnr_db"][0] for row in run(generated, runs=tmp_path).rows)
    assert good != faded
    assert file > lost


def test_points_over_a_trace_depend_on_its_contents_and_no_others_do(
    profile: str, tmp_path: Path, traces: Path
) -> None:
    links = [played("street", 0.0), {"fading": "awgn"}, played("walk", 0.0)]
    with pytest.raises(InvalidInputError, match=r"links\.trace must be one of carrier, street"):
        grid(profile, links=links, traces=str(traces)).points()
    with pytest.raises(InvalidInputError, match=r"links\.trace must be one of .*walk"):
        grid(profile, links=links).points()
    with pytest.raises(FileError, match="nowhere"):
        grid(profile, links=links, traces=str(tmp_path / "nowhere")).points()
    own = grid(profile, links=links[:2], traces=str(traces), snr_db=[0])
    plain = grid(profile, links=links[1:], snr_db=[0])
    first, awgn = (point.key("x") for point in own.points())
    assert plain.points()[0].key("x") == awgn
    assert "traces" not in plain.points()[1].model_dump(mode="json"), "one that ships"
    shutil.move(traces, tmp_path / "elsewhere")
    moved = own.model_copy(update={"traces": str(tmp_path / "elsewhere")})
    assert moved.points()[0].key("x") == first
    with (tmp_path / "elsewhere" / "street.csv").open("a") as file:
        file.write("2.0,1.0,0.0\n")
    assert moved.points()[0].key("x") != first


def test_a_trace_that_changed_is_not_stored_as_the_one_before(
    profile: str, tmp_path: Path, traces: Path
) -> None:
    sweep = grid(profile, links=[played("street", 0.0)], traces=str(traces), snr_db=[0], metrics=["psnr_db"])
    (point,) = sweep.points()
    with (traces / "street.csv").open("a") as file:
        file.write("2.0,1.0,0.0\n")
    with pytest.raises(MismatchError, match=f"traces: street in {traces} is not"):
        Evaluator(command.model_bank(profile), ResultStore(tmp_path)).measure(point)


def test_the_folder_of_traces_is_an_option(
    profile: str, tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command.run, "__kwdefaults__", {"runs": tmp_path / "runs", "ray": None, "workers": None}
    )
    text = (
        f"{{name: mine, profile: {profile}, deliveries: [unaligned], prompts: 1, metrics: [psnr_db], "
        "links: [{fading: trace, trace: street}]}"
    )
    words = ["sweep", str(written(tmp_path, text)), "--results", str(tmp_path / "results")]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "links.trace must be one of" in refused.output
    done = CliRunner().invoke(app, [*words, "--traces", str(traces)])
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in (tmp_path / "results/mine/cells.jsonl").read_text().splitlines()]
    assert row["cell"]["traces"]["path"] == str(traces)
    text = f"{{name: mine, profile: {profile}, deliveries: [unaligned]}}"
    unplayed = CliRunner().invoke(app, ["sweep", str(written(tmp_path, text)), "--traces", str(traces)])
    assert unplayed.exit_code == 2
    assert unplayed.output.startswith("--traces must be valid (traces must be left out unless a link plays")
    words = ["sweep", str(written(tmp_path, text)), "--metric", "beauty"]
    assert CliRunner().invoke(app, words).output.startswith("--metric must be valid (beauty: must be of")
    assert "traces must be left out" in " ".join(unplayed.output.split())


@pytest.mark.usefixtures("plugging")
def test_a_metric_whose_extra_is_missing_is_refused_before_anything_is_measured(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.register(Lpips)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("a point was measured"))
    sent = {"pictures": str(pictures), "deliveries": ["pixels"], "metrics": ["lpips"]}
    sweep = Sweep.model_validate({"name": "own", "profile": profile, "snr_db": [20], **sent})
    with pytest.raises(NotFoundError, match=r"lpips needs torchvision: pip install 'dekag\[perceptual\]'"):
        run(sweep, runs=tmp_path)


@pytest.mark.usefixtures("plugging")
def test_a_network_that_cannot_be_downloaded_is_said_before_anything_is_measured(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distances(*_: Any) -> Any:  # as torchvision does without a network
        raise URLError("Name or service not known")

    plugins.register(Lpips)
    monkeypatch.setattr(Lpips, "_distances", distances)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("a point was measured"))
    sent = {"pictures": str(pictures), "deliveries": ["pixels"], "metrics": ["psnr_db", "lpips"]}
    sweep = Sweep.model_validate({"name": "own", "profile": profile, "snr_db": [20], **sent})
    with pytest.raises(NotFoundError, match=r"lpips needs the weights .* cannot be downloaded: .*not known"):
        run(sweep, runs=tmp_path)


def test_a_metric_that_ships_as_a_plug_in_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_sweep(written(tmp_path, "{name: own, deliveries: [pixels]}"), metrics=["lpips", "dists"])
    told = "dekag --plugin dekag.metrics.perceptual:Lpips --plugin dekag.metrics.perceptual:Dists sweep ..."
    assert told in str(error.value)


@pytest.mark.usefixtures("plugging")
def test_from_a_folder_to_curves_of_psnr_and_lpips_in_one_sweep(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page on pictures of one's own says. What LPIPS downloads is stood in for; the grid is small."""
    shown: list[int] = []

    def distances(_: Lpips, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        shown.append(len(images))
        return (images - references).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(Lpips, "_distances", distances)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv(plugins.ENVIRONMENT, "")
    monkeypatch.setattr(
        command.run, "__kwdefaults__", {"runs": tmp_path / "runs", "ray": None, "workers": None}
    )
    text = f"{{name: own, profile: {profile}, pictures: x, deliveries: [pixels], snr_db: [20]}}"
    words = ["--plugin", "dekag.metrics.perceptual:Lpips", "sweep", str(written(tmp_path, text))]
    words += ["--pictures", str(pictures)]
    words += ["--metric", "psnr_db", "--metric", "lpips", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert shown
    folder = tmp_path / "results" / "own"
    assert {path.name for path in folder.glob("*.svg")} == {"psnr_db.svg", "lpips.svg"}
    refused = CliRunner().invoke(app, [*words, "--metric", "beauty"])
    assert refused.exit_code == 2
    assert "beauty" in refused.output


def test_an_interrupted_sweep_keeps_what_it_had(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def measure(_: Evaluator, point: Any) -> Measurement:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return Measurement({"clip": [point.link.snr_db]}, 1.0, 0.0, 0, 0.0)

    monkeypatch.setattr(Evaluator, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run(grid(profile), runs=tmp_path)
    outcome = run(grid(profile), runs=tmp_path)
    assert outcome.measured == 1
    assert [row["metrics"]["clip"] for row in outcome.rows] == [[0.0], [20.0]]


def test_digital_expects_more_of_more_snr(profile: str, tmp_path: Path) -> None:
    outcome = run(
        grid(profile, deliveries=["digital-webp"], prompts=1, snr_db=[-10, 30], cbr=["1/48"]), runs=tmp_path
    )
    low, high = outcome.rows
    assert np.mean(high["metrics"]["psnr_db"]) > np.mean(low["metrics"]["psnr_db"])
    assert high["backhaul_bytes"] > 0
    assert 0 < high["channel_uses"] <= 1024


def test_a_misled_digital_sender_loses_files_by_the_true_snr(
    profile: str, pictures: Path, tmp_path: Path
) -> None:
    def sent(**link: Any) -> list[list[float]]:
        links = [{"fading": "awgn", **link}]
        fields = {"deliveries": ["digital-jpeg"], "links": links, "cbr": ["1/48"], "metrics": ["psnr_db"]}
        generated = grid(profile, prompts=1, **fields)
        own = picture_grid(profile, pictures, snr_db=[0, 20], **fields)
        rows = [*run(generated, runs=tmp_path).rows, *run(own, runs=tmp_path).rows]
        return [row["metrics"]["psnr_db"] for row in rows]

    told, misled, modest = sent(), sent(reported_snr_db=20.0), sent(reported_snr_db=0.0)
    for low, high in ((0, 1), (2, 3)):  # of generated images, and of pictures
        assert misled[high] == told[high], "what was reported is true"
        assert misled[low][0] < told[low][0], "files for 20 dB do not arrive at 0 dB"
        assert modest[high][0] == pytest.approx(told[low][0], abs=0.5), "files for 0 dB arrive at 20 dB"
        assert modest[high][0] < told[high][0]


class FirstCall(Metric):
    """Has a value for the images that it sees first: those that arrive, before those that are lost."""

    name = "first-call"
    calls = 0

    def score(self, images: Any, references: Any) -> Any:
        self.calls += 1
        return np.full(len(images), 1.0 if self.calls == 1 else np.nan)


def test_an_image_that_surely_arrives_has_the_metrics_of_what_is_shown(
    profile: str, tmp_path: Path, plugging: None
) -> None:
    plugins.register(FirstCall)
    fields = {"snr_db": [40], "links": [{"fading": "awgn"}], "cbr": ["1/6"], "metrics": ["first-call"]}
    (row,) = run(grid(profile, deliveries=["digital-webp"], prompts=1, **fields), runs=tmp_path).rows
    assert row["metrics"]["first-call"] == [1.0], "what is never shown has no value"


def test_what_the_user_draws_meets_no_channel(profile: str, tmp_path: Path) -> None:
    sweep = grid(profile, deliveries=["prompt-only"], metrics=["psnr_db", "clip"])
    low, high = run(sweep, runs=tmp_path).rows
    assert low["metrics"] == high["metrics"]
    assert low["channel_uses"] == low["backhaul_bytes"] == 0
    assert low["metrics"]["psnr_db"] == [None, None], "nothing was sent that it could be compared with"
    reference = run(grid(profile, snr_db=[40], metrics=["clip"]), runs=tmp_path).rows[0]
    assert np.mean(low["metrics"]["clip"]) >= np.mean(reference["metrics"]["clip"]) - 0.1


def test_restoration_changes_what_is_received_and_needs_adapters(profile: str, tmp_path: Path) -> None:
    width = SideInformation.load(load_profile(profile).edge).width
    reading = with_reading_codec(Path(profile), tmp_path / "reading", text_width=width)
    sweep = grid(str(reading), deliveries=["cala", "cala-restored"], snr_db=[5], metrics=["psnr_db"])
    plain, restored = run(sweep, runs=tmp_path / "runs").rows
    assert plain["metrics"] != restored["metrics"]
    assert plain["channel_uses"] == restored["channel_uses"]
    with pytest.raises(InvalidInputError, match="restoration needs the codec adapters, and no knowledge"):
        read_sweep(written(tmp_path, "{name: a, deliveries: [{name: b, restoration: true}], topics: [neon]}"))


@pytest.mark.usefixtures("plugging")
def test_plug_ins_are_channels_and_metrics_of_a_sweep(profile: str, tmp_path: Path) -> None:
    plugins.load("examples/my_channel.py:Nakagami")
    plugins.load("examples/my_metric.py:Outlines")
    sweep = grid(profile, links=[{"fading": "nakagami"}], metrics=["outlines", "ssim", "clip"])
    outcome = run(sweep, runs=tmp_path)
    assert outcome.failed == []
    assert [list(row["metrics"]) for row in outcome.rows] == [["outlines", "ssim", "clip"]] * 2
    assert "metric outlines" in outcome.rows[0]["hashes"], "another code is another cell"


def test_every_cell_has_fades_of_its_own_and_deliveries_share_them(profile: str) -> None:
    sweep = grid(profile, deliveries=["unaligned", "deka-g"], topics=["neon", "rocket"], seeds=[0, 1])
    seeds = [channel_seed(point, 7) for point in sweep.points()]
    assert len(set(seeds)) == len(seeds) / 2
    assert len({channel_seed(sweep.points()[0], prompt) for prompt in range(99)}) == 99


def test_channels_that_differ_are_not_one_line() -> None:
    links = [{"fading": "awgn"}, {"fading": "awgn", "reported_snr_db": 0.0}, {"fading": "rician"}]
    names = [link_name(LinkConditions.model_validate(link).model_dump(mode="json")) for link in links]
    assert names == ["awgn", "awgn, reported_snr_db 0.0", "rician, 1000 ns"]


def test_a_metric_without_a_value_is_null_and_left_out_of_means() -> None:
    rows = [_row("cala", "neon", 0.0, [0.5, None])]
    assert table(rows)[2].startswith("| cala | awgn | 0 | 1/96 | 0.500 |")


def test_energy_that_an_earlier_run_stored_is_no_column() -> None:
    """It held the loading of models, and whatever other workers did."""
    rows = [{**_row("cala", "neon", 0.0, [0.5, 0.6]), "joules": 4.0}]
    assert table(rows) == table([_row("cala", "neon", 0.0, [0.5, 0.6])])


def test_ray_measures_the_same(profile: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    sweep = grid(profile, deliveries=["unaligned", "prompt-only"], topics=["neon"])
    serial, parallel = (
        run(sweep, runs=tmp_path / "a"),
        run(sweep, runs=tmp_path / "b", ray="local", workers=2),
    )
    assert [row["metrics"] for row in serial.rows] == [row["metrics"] for row in parallel.rows]
    assert [why for _, why in serial.failed] == [why for _, why in parallel.failed]


def test_no_ray_and_no_cluster_are_told(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("ray://127.0.0.1:1", "127.0.0.1:1", "nowhere", "127.0.0.1:99999", ""):
        with pytest.raises(InvalidInputError, match="running cluster"):
            run(grid(profile), runs=tmp_path, ray=address)
    monkeypatch.setattr("importlib.import_module", _missing)
    with pytest.raises(InvalidInputError, match=r"dekag\[ray\]"):
        run(grid(profile), runs=tmp_path, ray="local")


@pytest.mark.usefixtures("plugging")
def test_a_worker_that_dies_costs_its_cell_and_no_other(profile: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    fatal = tmp_path / "fatal.py"
    fatal.write_text(FATAL)
    plugins.load(f"{fatal}:Fatal")
    sweep = grid(profile, metrics=["fatal"], snr_db=[0, 10, 20, 30])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.ENVIRONMENT, f"{fatal}:Fatal")
        outcome = run(sweep, runs=tmp_path, ray="local", workers=1)
    assert len(outcome.rows) == 3, outcome.failed
    ((_, why),) = outcome.failed
    assert "the worker died" in why


FATAL = """
import os
from pathlib import Path

import numpy as np

from dekag.metrics import Metric


class Fatal(Metric):
    name = "fatal"

    def score(self, images, references):
        count = Path(__file__).with_name("count")
        count.write_text(str(int(count.read_text()) + 1) if count.exists() else "1")
        if count.read_text() == "2":
            os._exit(1)
        return np.full(len(images), np.nan)
"""


def _missing(name: str) -> Any:
    if name.startswith("ray"):
        raise ModuleNotFoundError(name)
    return __import__(name, fromlist=["_"])


def test_identity_is_of_all_models(profile: str) -> None:
    assert as_one(identity(profile)) != as_one(identity("stickers"))
    assert {"knowledge", "adapters"} <= set(identity("stickers"))
    with pytest.raises(NotFoundError):
        identity("nowhere")


def _row(delivery: str, topic: str, snr_db: float, values: list[Any]) -> dict[str, Any]:
    point = {
        "delivery": DELIVERIES[delivery].model_dump(),
        "topic": topic,
        "link": LinkConditions(fading="awgn", snr_db=snr_db).model_dump(mode="json"),
        "cbr": 1 / 96,
        "prompts": 2,
    }  # fmt: skip
    row = {"channel_uses": 512.0, "backhaul_bytes": 0.0, "update_bytes": 1000}
    return {"cell": point, "metrics": dict.fromkeys(METRICS, values), **row}


METRICS = ("psnr_db", "clip", "dino", "consistency", "probe")
ROWS = [
    _row(delivery, topic, snr_db, [level, level + 0.1])
    for delivery, level in (("unaligned", 0.4), ("makd", 0.6), ("cala", 0.5), ("deka-g", 0.75))
    for topic in ("neon", "rocket")
    for snr_db in (0.0, 20.0)
]


def test_overall_figures_follow_from_the_rows(tmp_path: Path) -> None:
    even = [
        {"topic": topic, "kind": "style", "update_bytes": 1000, "consistency": 0.8}
        | {f"{name}_{what}": value for name in FILES for what, value in sizes.items()}
        for topic, sizes in (
            ("neon", {"bytes": 100.0, "images": 10}),
            ("rocket", {"bytes": 50.0, "images": 20}),
            ("snail", {"bytes": 10.0, "images": 100}),
        )
    ]
    end_to_end.write(ROWS, even, tmp_path)
    figures = json.loads((tmp_path / "headline.json").read_text())
    assert figures["overall_gain_percent"]["value"] == pytest.approx(100 * (0.8 / 0.45 - 1), abs=1e-3)
    assert figures["break_even_images"]["value"] == 20, "the median of the topics"
    assert figures["break_even_q75_images"]["value"] == 20
    page = REPORT.write(results=tmp_path, into=tmp_path)
    assert page is not None
    assert "| **DeKA-g** | 0.800 | +77.8 % |" in page.read_text()
    assert "| neon | 1,000 | 0.800 | 100 | 100 | 100 | 100 | 10 | 10 | 10 | 10 |" in page.read_text()
    assert {path.name for path in (tmp_path / "overall").iterdir()} == {"cells.jsonl", "break-even.jsonl"}


def test_files_of_equal_quality_grow_with_the_quality() -> None:
    ladder = Ladder([10, 20, 40], [(0, 1)] * 3, np.array([[10, 0.2, 0.2], [15, 0.5, 0.5], [20, 0.9, 0.9]]))
    wide = Ladder([30, 60], [(0, 1)] * 2, np.array([[10, 0.4, 0.4], [20, 1.0, 1.0]]))
    assert end_to_end.file_bytes([ladder], 0.5) == 20
    assert end_to_end.file_bytes([ladder], 0.51) == 40
    assert end_to_end.file_bytes([ladder], 2.0) == 40
    assert end_to_end.file_bytes([ladder, wide], 0.6) == (40 + 30) / 2  # 0.65 in the mean


def test_overall_refuses_to_conclude_from_half_a_grid(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "measure", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(InvalidInputError, match="unaligned and deka-g"):
        end_to_end.run_overall(
            sweep=written(tmp_path, "{name: a, deliveries: [cala]}"), runs=tmp_path / "runs"
        )
    text = f"{{name: a, profile: {profile}, deliveries: [unaligned, deka-g], topics: [neon], prompts: 1}}"
    with pytest.raises(NotFoundError, match="names no adapters"):
        end_to_end.run_overall(sweep=written(tmp_path, text), results=tmp_path, runs=tmp_path / "runs")
    monkeypatch.setattr(end_to_end, "check_complete", lambda *_: None)
    monkeypatch.setattr(command, "check_points", lambda *_: None)  # that there are no adapters
    with pytest.raises(DekagError, match="2 of 2 points failed"):
        end_to_end.run_overall(sweep=written(tmp_path, text), results=tmp_path, runs=tmp_path / "runs")


def test_lines_of_a_plot_are_told_apart(profile: str) -> None:
    """One name for each line that has points; the intervals at one SNR stand side by side."""
    points = grid(profile, deliveries=["unaligned", "digital", "prompt-only"], snr_db=[0, 10]).points()
    values = {"unaligned": [1.0, 2.0], "digital": [1.0, 2.0], "prompt-only": [None, None]}
    rows = [
        {"cell": point.model_dump(mode="json"), "metrics": {"psnr_db": values[point.delivery.name]}}
        for point in points
    ]
    figure = metric_plot(rows, "psnr_db")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["unaligned", "digital"]
    first, second = (container.lines[0] for container in figure.axes[0].containers)
    assert (first.get_xdata() < second.get_xdata()).all()
    assert first.get_marker() != second.get_marker()
    assert figure.axes[0].get_ylabel() == "PSNR, dB"
    plots.as_svg(figure)


def test_tables_and_plots_of_any_sweep(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(
        command.run, "__kwdefaults__", {"runs": tmp_path / "runs", "ray": None, "workers": None}
    )
    text = f"{{name: mine, profile: {profile}, deliveries: [unaligned], prompts: 2, metrics: [psnr_db]}}"
    command.run_sweep(written(tmp_path, text), ray=None, workers=None, results=tmp_path / "results")
    names = {path.name for path in (tmp_path / "results" / "mine").iterdir()}
    assert names == {"cells.jsonl", "table.md", "psnr_db.svg"}
    row = json.loads((tmp_path / "results" / "mine" / "cells.jsonl").read_text())
    assert {"schema", "commit", "machine", "hashes", "key", "seconds"} <= set(row)
    assert link_name(row["cell"]["link"]) == "rayleigh, 1000 ns"
    assert table(ROWS)[2].startswith("| unaligned | awgn | 0 | 1/96 | 0.450 |")
    assert command.bench_grid(200).points().__len__() == 200

    options = ["--results", str(tmp_path / "results"), "--json"]
    again = CliRunner().invoke(app, ["sweep", str(written(tmp_path, text)), *options])
    assert again.exit_code == 0, again.stderr
    told = {"measured": 0, "read": 1, "failed": [], "folder": str(tmp_path / "results" / "mine")}
    assert json.loads(again.stdout) == told


def test_the_duration_of_a_sweep_is_measured_with_any_profile(
    profile: str, dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is left out: the points are measured in this process, whatever the number of workers."""

    def in_this_process(
        sweep: Sweep, *, runs: Path, ray: str | None = None, workers: int | None = None
    ) -> Any:
        return run(sweep, runs=runs)

    monkeypatch.setattr(command, "run", in_this_process)
    seconds = command.bench_sweep(4, profile=profile, results=tmp_path)
    assert list(seconds) == ["serial", "1 worker", "2 workers"]
    assert read_figures(tmp_path)["ray_speedup_2_workers"]["n"] == 4

    bare, shipped = command.bench_grid(40, str(dummy_profile)), command.bench_grid(40)
    assert [each.name for each in bare.deliveries] == ["unaligned"], "the profile has no adapters"
    assert bare.metrics == ["psnr_db"], "and nothing to score with"
    assert [each.name for each in shipped.deliveries] == ["unaligned", "cala"]
    assert len(bare.points()) == len(shipped.points()) == 40
    with pytest.raises(NotFoundError, match="no profile 'nowhere'"):
        command.bench_sweep(4, profile="nowhere", results=tmp_path)


def test_a_grid_that_is_not_valid_is_the_callers_to_mend(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", str(written(tmp_path, "{name: a}")), "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "deliveries" in done.stderr


def test_a_summary_of_a_sweep_names_what_failed(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        command.run, "__kwdefaults__", {"runs": tmp_path / "runs", "ray": None, "workers": None}
    )
    monkeypatch.setattr(Evaluator, "measure", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
    text = f"{{name: mine, profile: {profile}, deliveries: [unaligned], prompts: 2}}"
    done = CliRunner().invoke(app, ["sweep", str(written(tmp_path, text)), "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["measured"], told["read"], len(told["failed"])) == (0, 0, 1)
    assert "broken" in told["failed"][0]["error"]


def test_quick_results_stand_beside_the_committed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("results/headline.json").read_text()
    monkeypatch.setattr(
        quick.baseline_models, "run", lambda count, *, parts, results: record_as(results, count)
    )
    monkeypatch.setattr(quick, "run_overall", lambda **options: record_as(options["results"], 5))
    quick.run_quick(folder=tmp_path / "quick", runs=tmp_path / "runs")
    shown = capsys.readouterr().out
    assert "Autoencoder" in shown
    assert " s -> " in shown
    assert Path("results/headline.json").read_text() == before


def record_as(results: Path, value: float) -> None:
    record("vae_psnr_db", value, "dB", command="test", count=1, ci95=[value, value], results=results)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nprompts: 4\nname: b\n", "line 3: the key 'name' stands there twice"),
        ("links:\n  - {snr_db: 1}\n  - fading: awgn\n    fading: rician\n", "line 4: the key 'fading'"),
        ("a: " + "[" * 10_000, "more than 64 levels"),
        ("cbr: [.nan]", "no finite number"),
    ],
)
def test_a_grid_that_would_lose_something_is_refused_with_its_line(
    text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=told) as caught:
        read_sweep(path)
    assert str(path) in str(caught.value)


def picture_grid(profile: str, folder: Path, **changes: Any) -> Sweep:
    fields = {
        "name": "own", "profile": profile, "pictures": str(folder),
        "deliveries": ["unaligned", "autoencoder"], "snr_db": [0, 30],
    }  # fmt: skip
    return Sweep.model_validate({**fields, **changes})


def test_pictures_are_a_source_beside_prompts(profile: str, pictures: Path, tmp_path: Path) -> None:
    outcome = run(picture_grid(profile, pictures), runs=tmp_path)
    assert not outcome.failed
    assert [row["cell"]["prompts"] for row in outcome.rows] == [3] * 4
    found = {(row["cell"]["delivery"]["name"], row["cell"]["link"]["snr_db"]): row for row in outcome.rows}
    limit, noisy = found["autoencoder", 0]["metrics"], found["unaligned", 0]["metrics"]
    assert limit == found["autoencoder", 30]["metrics"]
    assert noisy["psnr_db"] != found["unaligned", 30]["metrics"]["psnr_db"]
    assert [value is None for value in limit["ssim"]] == [False, False, True]  # 5x4 pixels
    assert found["autoencoder", 0]["channel_uses"] == 0
    values = 3 * np.array([200 * 60, 64 * 64, 5 * 4])
    assert found["unaligned", 0]["channel_uses"] == pytest.approx(np.maximum(np.round(values / 96), 1).mean())
    assert run(picture_grid(profile, pictures), runs=tmp_path).measured == 0


def test_a_sweep_measures_what_the_link_sends(profile: str, pictures: Path) -> None:
    (point, *_) = picture_grid(profile, pictures, deliveries=["unaligned"]).points()
    bank = command.model_bank(profile)
    measured = Evaluator(bank, command.ResultStore(Path("unused"))).measure(point)
    assert point.pictures is not None
    link = SemanticLink.load(profile, aligned=False)
    for number, file in enumerate(point.pictures.found().pictures):
        alone = link.picture(
            file.read(), point.link, prompt=file.prompt, seed=channel_seed(point, number), cbr=point.cbr
        )
        assert measured.metrics["psnr_db"][number] == pytest.approx(alone.psnr_db, abs=0.01)


def test_pixels_are_sent_as_by_the_link_and_at_its_rates(
    profile: str, pictures: Path, tmp_path: Path
) -> None:
    sweep = picture_grid(profile, pictures, deliveries=["pixels"], cbr=["1/6"])
    (row, *_) = run(sweep, runs=tmp_path).rows
    (point, *_) = sweep.points()
    link = PixelLink.load(profile)
    for number, file in enumerate(find_pictures(pictures).pictures):
        seed = channel_seed(point, number)
        alone = link.picture(file.read(), point.link, seed=seed, cbr=1 / 6)
        assert row["metrics"]["psnr_db"][number] == pytest.approx(alone.psnr_db, abs=0.01)
    assert row["channel_uses"] == pytest.approx(np.mean([200 * 60, 64 * 64, 5 * 4]) / 2)
    assert run(sweep, runs=tmp_path).measured == 0


def test_a_rate_that_the_codec_of_pixels_never_saw_is_told(
    profile: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Evaluator, "measure", lambda *_: Measurement({"psnr_db": [1.0]}, 1.0, 0.0, 0, 0.0))
    told = "pixels: the codec of pixels was trained at rates from 1/96 to 1/6"
    for cbr, times in (("1/200", 1), ("1/96", 0)):
        run(picture_grid(profile, pictures, deliveries=["pixels"], cbr=[cbr]), runs=tmp_path)
        assert capsys.readouterr().err.count(told) == times


def test_points_of_pixels_depend_on_their_codec_and_no_others_do(
    profile: str, pictures: Path, tmp_path: Path
) -> None:
    other = changed(profile, tmp_path / "other").profile_name
    (weights,) = Path(load_profile(other).pixel_codec or "").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    fields = {"deliveries": ["pixels", "unaligned"], "snr_db": [0]}
    here, there = (picture_grid(name, pictures, **fields).points() for name in (profile, other))
    assert here[0].pixel_codec != there[0].pixel_codec
    assert "pixel_codec" not in here[1].model_dump(mode="json")
    evaluator = Evaluator(ModelBank(profile), ResultStore(tmp_path))
    with pytest.raises(MismatchError, match="another codec of pixels"):
        evaluator.measure(here[0].model_copy(update={"pixel_codec": "x"}))


def test_a_profile_without_a_codec_of_pixels_is_named(profile: str, pictures: Path, tmp_path: Path) -> None:
    without = str(without_pixel_codec(Path(profile), tmp_path / "without"))
    with pytest.raises(NotFoundError, match="without names no pixel_codec"):
        picture_grid(without, pictures, deliveries=["pixels"]).points()


def test_a_picture_as_a_file_is_an_expectation(profile: str, pictures: Path, tmp_path: Path) -> None:
    sweep = picture_grid(
        profile, pictures, deliveries=["digital-jpeg"], snr_db=[-20, 30], links=[{"fading": "awgn"}]
    )
    lost, sent = run(sweep, runs=tmp_path).rows
    assert lost["channel_uses"] == 0
    assert sent["metrics"]["psnr_db"][0] > lost["metrics"]["psnr_db"][0]
    assert 0 < sent["channel_uses"] <= 200 * 60 * 3 / 96


class Careless(Metric):
    """The contrast that is left; has no value without any. It writes to what it scores."""

    name = "careless"

    def score(self, images: Any, references: Any) -> Any:
        with np.errstate(invalid="ignore"):
            shares = images.std(axis=(1, 2, 3)) / np.where(np.ptp(images, axis=(1, 2, 3)), 1, np.nan)
        images[:], references[:] = 0, 0
        return shares


def test_a_picture_that_surely_arrives_has_the_metrics_of_what_is_shown(
    profile: str, pictures: Path, tmp_path: Path, plugging: None
) -> None:
    plugins.register(Careless)
    fields = {"deliveries": ["digital-jpeg"], "snr_db": [40], "links": [{"fading": "awgn"}], "cbr": ["1/6"]}
    alone = run(picture_grid(profile, pictures, **fields, metrics=["psnr_db"]), runs=tmp_path)
    both = run(picture_grid(profile, pictures, **fields, metrics=["careless", "psnr_db"]), runs=tmp_path)
    (row,) = both.rows
    assert row["metrics"]["psnr_db"] == alone.rows[0]["metrics"]["psnr_db"], "nothing was written to"
    assert all(row["metrics"]["careless"][:2]), "grey, which has no value, is never shown"


def test_keys_of_pictures_follow_their_contents_and_others_stay(
    profile: str, pictures: Path, tmp_path: Path
) -> None:
    first = [point.key("x") for point in picture_grid(profile, pictures).points()]
    copy = tmp_path / pictures.name
    shutil.copytree(pictures, copy)
    assert [point.key("x") for point in picture_grid(profile, copy).points()] == first
    fewer = {"path": str(copy), "count": 2}
    assert not {point.key("x") for point in picture_grid(profile, copy, pictures=fewer).points()} & {*first}
    assert "pictures" not in grid(profile).points()[0].model_dump(mode="json")


def test_pictures_that_change_are_not_stored_as_those_before(
    profile: str, pictures: Path, tmp_path: Path, plugging: None
) -> None:
    own = tmp_path / "own"
    shutil.copytree(pictures, own)

    class Meddling(Metric):
        """Replaces a picture while the first of them is scored."""

        name = "meddling"

        def score(self, images: Any, references: Any) -> Any:
            shutil.copy(own / "a.png", own / "b.png")
            return np.ones(len(images))

    plugins.register(Meddling)
    fields = {"deliveries": ["digital-jpeg"], "snr_db": [20], "metrics": ["meddling"]}
    sweep = picture_grid(profile, own, **fields)
    (point,) = sweep.points()
    outcome = run(sweep, runs=tmp_path / "runs")
    assert (outcome.rows, outcome.measured) == ([], 0)
    assert "pictures: those at" in outcome.failed[0][1]
    with pytest.raises(MismatchError, match="pictures: those at"):
        Evaluator(command.model_bank(profile), ResultStore(tmp_path)).measure(point)
    assert run(sweep, runs=tmp_path / "runs").measured == 1, "as the pictures are now"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"deliveries": ["makd"]}, "no model generates"),
        ({"deliveries": ["prompt-only"]}, "no model generates"),
        ({"topics": ["neon"]}, "topics must be left out"),
        ({"prompts": 3}, "prompts must be left out"),
        ({"metrics": ["probe"]}, "generated images only"),
        ({"pictures": {"path": "x", "count": 0}}, "greater than or equal to 1"),
        ({"pictures": None}, "autoencoder: is for pictures only"),
        ({"pictures": None, "deliveries": ["pixels"]}, "pixels: is for pictures only"),
    ],
)
def test_pictures_and_prompts_do_not_mix(
    profile: str, pictures: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        picture_grid(profile, pictures, **changes)


def test_a_folder_without_pictures_is_named(profile: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no pictures"):
        run(picture_grid(profile, tmp_path), runs=tmp_path / "runs")


def test_points_are_known_by_the_formats_of_the_machine(
    dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = identity(str(dummy_profile))
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "float32")
    assert identity(str(dummy_profile)) == usual
    monkeypatch.setenv("DEKAG_VAE_DTYPE", "bfloat16")
    assert identity(str(dummy_profile)) != usual
    monkeypatch.delenv("DEKAG_VAE_DTYPE")
    monkeypatch.setattr("dekag.generation.placement._device", lambda _, name: torch.device(name))
    monkeypatch.setenv("DEKAG_DEVICE", "cuda")
    assert identity(str(dummy_profile)) == {**usual, "devices": "cuda/cuda"}
    monkeypatch.setenv("DEKAG_TEXT_DEVICE", "cpu")
    there = {"devices": "cuda/cuda", "text devices": "cpu/cpu"}
    assert identity(str(dummy_profile)) == {**usual, **there}


def test_points_of_other_test_prompts_are_other_points(dummy_profile: Path, tmp_path: Path) -> None:
    """Which of a topic's prompts are left to test on, the defaults of the profile's distillations say."""
    folder = with_topics(dummy_profile, tmp_path / "own")
    described, found = json.loads((folder / "profile.json").read_text()), {}
    for held_out in (2, 4):
        settings = {"images": 4, "held_out": held_out}
        (folder / "profile.json").write_text(json.dumps({**described, "distill": settings}))
        prompts = [text for _, text, _ in ModelBank(str(folder)).topic_prompts("glow", 4)]
        found[as_one(identity(str(folder)))] = prompts
    assert len(found) == 2
    assert len({str(prompts) for prompts in found.values()}) == 2
