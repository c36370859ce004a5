"""`dekag link`: pictures of a user's own, in this process, with models of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dekag import LinkConditions, PixelLink, SemanticLink, plugins
from dekag.metrics import Metric
from services.cli.main import app
from tests.chain import without_pixel_codec
from tests.fetched import EXAMPLE, fetch
from tests.test_energy import put_counter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a subfolder, and a text."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    x, y = np.meshgrid(np.arange(200), np.arange(60))
    pixels = np.stack([x, y, x + y], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:, :50]).convert("L").save(folder / "sub" / "b.jpg")
    (folder / "notes.txt").write_text("no picture")
    return folder


def link(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["link", *map(str, words)])


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "link.jsonl").read_text().splitlines()]


def test_a_folder_is_sent_and_reported(folder: Path, tmp_path: Path, dummy_profile: Path) -> None:
    output = tmp_path / "out"
    deliveries = ["semantic", "semantic-unaligned", "conventional"]
    every = [word for name in deliveries for word in ("--delivery", name)]
    done = link(folder, "--profile", dummy_profile, "--output", output, "--snr-db", "20", *every)
    assert done.exit_code == 0, done.output
    assert "notes.txt" in done.output
    assert "a.png: 2 tiles of 128x64, padded from 200x60 to 256x64; a file of" in done.output
    assert "sub/b.jpg: grey; 1 tile of 64x64, padded from 50x60 to 64x64; a file of" in done.output
    assert "mean of 2" in done.output
    found = rows(output)
    assert [(row["picture"], row["delivery"]) for row in found] == [
        (name, delivery) for name in ("a.png", "sub/b.jpg") for delivery in deliveries
    ]
    for row in found:
        with Image.open(row["received"]) as image:
            assert image.size == (row["width"], row["height"])
    alone = SemanticLink.load(dummy_profile).picture(
        folder / "sub" / "b.jpg", LinkConditions(snr_db=20), seed=1
    )
    (row,) = (row for row in found if row["picture"] == "sub/b.jpg" and row["delivery"] == "semantic")
    assert (row["seed"], row["psnr_db"], row["ssim"]) == (1, alone.psnr_db, alone.ssim)


@pytest.mark.parametrize("name", ["holiday [final].jpg", "a[/b].png", "[red]x.png", "a :car: at night.png"])
def test_names_of_pictures_are_shown_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "photos" / name
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(path)
    done = link(tmp_path / "photos", "--output", tmp_path / "out [3]", "--delivery", "conventional")
    assert done.exit_code == 0, done.output
    (row,) = (line for line in done.output.splitlines() if "│ conventional │" in line)
    assert f"│ {name} " in row
    assert str(tmp_path / "out [3]") in done.output


def test_80_columns_show_names_and_deliveries_in_full(
    tmp_path: Path, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "a-rather-long-name-of-a-picture.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    every = [word for name in ("semantic-unaligned", "conventional") for word in ("--delivery", name)]
    done = link(path, "--profile", dummy_profile, "--output", tmp_path / "out", *every)
    assert done.exit_code == 0, done.output
    cells = [line.split("│")[1:3] for line in done.output.splitlines() if line.startswith("│")]
    assert "".join(name.strip() for name, _ in cells) == path.name * 2
    assert "".join(delivery.strip() for _, delivery in cells) == "semantic-unalignedconventional"


def test_received_pictures_never_replace_each_other(tmp_path: Path) -> None:
    names = ("a.jpg", "a.jpg.png", "a.jpg.png.png")
    (tmp_path / "photos").mkdir()
    for side, name in zip((16, 24, 32), names, strict=True):
        Image.new("RGB", (side, side), "teal").save(tmp_path / "photos" / name)
    done = link(tmp_path / "photos", "--output", tmp_path / "out", "--delivery", "conventional")
    assert done.exit_code == 0, done.output
    for row in rows(tmp_path / "out"):
        with Image.open(row["received"]) as image:
            assert image.size == (row["width"], row["height"]), row["picture"]


def test_a_rate_above_one_is_no_fraction(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "teal").save(tmp_path / "a.png")
    done = link(tmp_path / "a.png", "--output", tmp_path / "out", "--delivery", "conventional")
    assert done.exit_code == 0, done.output
    (row,) = rows(tmp_path / "out")
    assert row["cbr"] > 10
    assert f" {row['cbr']:.1f} │" in done.output


def test_pixels_are_sent_without_the_autoencoder(folder: Path, tmp_path: Path, dummy_profile: Path) -> None:
    words = (
        "--profile",
        dummy_profile,
        "--output",
        tmp_path / "out",
        "--delivery",
        "pixels",
        "--cbr",
        "1/60",
    )
    done = link(folder, *words)
    assert done.exit_code == 0, done.output
    assert "a.png: 1 tile of 200x64, padded from 200x60 to 200x64" in done.output
    assert "limit: PSNR of the autoencoder" not in done.output
    found = rows(tmp_path / "out")
    assert [row["autoencoder_psnr_db"] for row in found] == [None, None]
    alone = PixelLink.load(dummy_profile).picture(folder / "a.png", seed=0, cbr=1 / 60)
    assert (found[0]["psnr_db"], found[0]["channel_uses"]) == (alone.psnr_db, 600)


def test_a_profile_without_a_codec_of_pixels_says_so(
    folder: Path, tmp_path: Path, dummy_profile: Path
) -> None:
    profile = without_pixel_codec(dummy_profile, tmp_path / "profile")
    done = link(folder, "--profile", profile, "--output", tmp_path / "out", "--delivery", "pixels")
    assert done.exit_code == 2
    assert "the profile names no pixel_codec" in done.output


class Brightness(Metric):
    """Mean difference of brightness; of pictures of at least 60 pixels a side."""

    name = "brightness"
    smallest_side = 60

    def score(self, images: Any, references: Any) -> Any:
        return (images.astype(float) - references).mean(axis=(1, 2, 3))


def test_plugged_in_metrics_score_what_is_large_enough(folder: Path, tmp_path: Path, plugging: None) -> None:
    plugins.register(Brightness)
    done = link(folder, "--output", tmp_path / "out", "--delivery", "conventional", "--snr-db", "30")
    assert done.exit_code == 0, done.output
    assert "brightness" in done.output
    large, small = rows(tmp_path / "out")
    assert abs(large["scores"]["brightness"]) < 3
    assert small["scores"] == {}, "50 pixels wide"


def test_a_metric_that_fails_is_named(
    folder: Path, tmp_path: Path, plugging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.register(Brightness)
    monkeypatch.setattr(Brightness, "score", lambda *_: 1 / 0)
    done = link(folder, "--output", tmp_path / "out", "--delivery", "conventional")
    assert done.exit_code == 0, done.output
    assert "the metric brightness failed: ZeroDivisionError" in done.output
    assert [row["scores"] for row in rows(tmp_path / "out")] == [{"brightness": None}, {}]


def test_json_is_all_of_the_output(folder: Path, tmp_path: Path, dummy_profile: Path) -> None:
    done = link(folder / "a.png", "--profile", dummy_profile, "--output", tmp_path / "out", "--json")
    assert done.exit_code == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows(tmp_path / "out")


def test_a_damaged_picture_does_not_stop_the_others(
    folder: Path, tmp_path: Path, dummy_profile: Path
) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    done = link(folder, "--profile", dummy_profile, "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert "0.png must be" in done.output
    assert "Not sent: 1 of 3." in done.output
    assert len(rows(tmp_path / "out")) == 4


def test_earlier_results_are_kept_unless_forced(folder: Path, tmp_path: Path, dummy_profile: Path) -> None:
    common = [
        folder / "a.png",
        "--profile",
        dummy_profile,
        "--output",
        tmp_path / "out",
        "--delivery",
        "conventional",
    ]
    assert link(*common).exit_code == 0
    refused = link(*common)
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert link(*common, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--snr-db", "99"], "--snr-db: must be a number from -20 to 40; got 99"),
        (["--snr-db", "nan"], "--snr-db: must be a number from -20 to 40; got nan"),
        (["--csi", "maybe"], "'--csi': 'maybe' is not one of 'perfect', 'pilots', 'none'"),
        (
            ["--fading", "trace", "--trace", "My_Walk"],
            "--trace: must be 1 to 64 lower-case letters, digits and",
        ),
        (["--cbr", "auto"], "--target-psnr-db"),
        (["--cbr", "1/96", "--target-psnr-db", "20"], "--target-psnr-db"),
        (["--cbr", "0"], "--cbr must be above 0"),
        (["--cbr", "1/3"], "--cbr must be above 0 and at most 1/6; got '1/3'"),
        (["--delivery", "radio"], "must be of semantic"),
        (["--delivery", "pixels", "--cbr", "auto", "--target-psnr-db", "20"], "which pixels lacks"),
        (["--cbr", "0.5"], "--cbr must be above 0 and at most 1/6"),
        (["--cbr", "auto", "--target-psnr-db", "99"], "--target-psnr-db must be between 5 and 60 dB"),
        (["--prompt", " "], "--prompt must be"),
        (["--seed", str(2**63 - 1)], "--seed must be between 0 and 2**63 - 1"),  # that of the second picture
        (["--fading", "trace", "--trace", "hike"], "--trace must be one of drive, walk"),
        (["--fading", "trace", "--trace", "a", "--trace-start-s", "-1"], "--trace-start-s"),
        (["--traces", "."], "must be left out unless --fading is trace"),
        (["--fading", "trace", "--trace", "a", "--traces", "nowhere"], "nowhere cannot be read"),
        (["--count", "0"], "--count"),
        (["--delivery", "pixels", "--restoration", "denoiser"], "requires --delivery semantic"),
        (["--delivery", "semantic", "--image-format", "avif"], "requires --delivery conventional"),
        (["--delivery", "conventional", "--prompt", "a fox"], "requires --delivery semantic or"),
        (["--delivery", "pixels", "--restoration", "none"], "requires --delivery semantic"),
        (
            ["--delivery", "conventional", "--cbr", "1/96"],
            "--cbr: requires --delivery semantic, semantic-un",
        ),
        (["--delivery", "conventional", "--equalizer", "zf"], "--equalizer: requires --delivery semantic, "),
        (["--rician-k-db", "3"], "--rician-k-db: must be left out unless --fading is rician"),
        (["--speed-m-s", "0"], "unless --fading is tdl-a, tdl-b, tdl-c, tdl-d or tdl-e"),
        (["--fading", "awgn", "--tau-rms-s", "1e-6"], "--tau-rms-s: must be left out unless --fading is ray"),
        (["--trace-start-s", "1"], "--trace-start-s: must be left out unless --fading is trace"),
        (["--trace", "walk"], "--trace: must be left out unless --fading is trace"),
        (["--fading", "mimo-2x2", "--csi", "pilots"], "--csi: must be perfect when --fading is mimo-2x2"),
    ],
)
def test_options_out_of_range_are_named(
    folder: Path, tmp_path: Path, dummy_profile: Path, words: list[str], said: str
) -> None:
    done = link(folder, "--profile", dummy_profile, "--output", tmp_path / "out", *words)
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert "Not sent" not in done.output


def test_traces_and_recordings_of_ones_own_are_played(
    folder: Path, tmp_path: Path, dummy_profile: Path
) -> None:
    """A trace and a recording of the same gains deliver the same; each delivery meets the gains."""
    pytest.importorskip("sigmf")
    from dekag.link.recordings import write_sigmf, write_trace

    traces = tmp_path / "traces"
    traces.mkdir()
    gains = torch.tensor([1, 1, 1e-3j, 1e-3, 1, 1], dtype=torch.complex64)
    write_trace(traces / "street.csv", gains.numpy(), step_s=0.5)
    write_sigmf(traces / "carrier", gains, sample_rate_hz=2.0)
    every = [word for name in ("semantic", "pixels", "conventional") for word in ("--delivery", name)]

    def sent(trace: str, start_s: str, output: Path) -> list[float | None]:
        told = ["--fading", "trace", "--trace", trace, "--traces", traces, "--trace-start-s", start_s]
        done = link(
            folder / "a.png", "--profile", dummy_profile, "--output", output, "--snr-db", "25", *every, *told
        )
        assert done.exit_code == 0, done.output
        return [row["psnr_db"] for row in rows(output)]

    good = sent("street", "0", tmp_path / "good")
    faded = sent("street", "1", tmp_path / "faded")
    assert sent("carrier", "1", tmp_path / "carrier") == faded
    assert good[-1] is not None
    assert faded[-1] is None, "a file is lost in the fade"
    assert good[:2] != faded[:2]
    refused = link(
        folder, "--profile", dummy_profile, "--fading", "trace", "--trace", "hike", "--traces", traces
    )
    assert refused.exit_code == 2
    assert "--trace must be one of carrier, street" in refused.output


def test_a_codec_of_pixels_of_ones_own_is_sent(
    folder: Path, tmp_path: Path, dummy_profile: Path, plugging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugins.ENVIRONMENT, "")  # which --plugin sets
    profile = fetch("AdJscc", dummy_profile, tmp_path, monkeypatch)
    words = ["link", folder, "--profile", profile, "--delivery", "pixels", "--output", tmp_path / "out"]
    missing = CliRunner().invoke(app, [*map(str, words), "--cbr", "1/11"])
    assert missing.exit_code == 2
    assert "is a AdJscc, not one of PixelCodec; load its plug-in" in " ".join(missing.output.split())
    plugged = ["--plugin", f"{EXAMPLE}:AdJscc", *map(str, words), "--force"]
    done = CliRunner().invoke(app, [*plugged, "--cbr", "1/11"])
    assert done.exit_code == 0, done.output
    first, second = rows(tmp_path / "out")
    assert (first["tiling"], first["channel_uses"]) == ("1 tile of 200x60", 4 * 50 * 15)
    assert second["tiling"] == "1 tile of 52x60, padded from 50x60 to 52x60"
    low = CliRunner().invoke(app, [*plugged, "--cbr", "1/96"])
    assert low.exit_code == 1
    assert "cbr must be at least 0.0833333" in " ".join(low.output.split())


def test_energy_is_a_column_where_the_machine_can_tell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from services.cli import link as command

    options = command.LinkOptions(["conventional"], LinkConditions(fading="awgn"), 1 / 96)
    powercap = tmp_path / "powercap"
    assert command.run_link(folder, options, output=tmp_path / "a", powercap=powercap) == 0
    told = capsys.readouterr()
    assert told.err.count("No energy") == 1
    assert " J" not in told.out
    assert not any("joules" in row for row in rows(tmp_path / "a"))
    put_counter(powercap, 0)
    send, spent = command._sent, 0

    def sent(*arguments: Any) -> Any:
        nonlocal spent
        for each in send(*arguments):
            spent += 2_500_000
            put_counter(powercap, spent)
            yield each

    monkeypatch.setattr(command, "_sent", sent)
    assert command.run_link(folder, options, output=tmp_path / "b", powercap=powercap) == 0
    told = capsys.readouterr()
    assert "No energy" not in told.err
    assert "energy" in told.out
    assert "2.5 J" in told.out
    assert [row["joules"] for row in rows(tmp_path / "b")] == [2.5, 2.5]


def test_the_limit_is_the_autoencoders_and_takes_no_energy_of_a_delivery(
    folder: Path, tmp_path: Path, dummy_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.cli import link as command

    powercap, measure, spent = tmp_path / "powercap", SemanticLink._autoencoder_psnr_db, 0
    put_counter(powercap, 0)

    def measured(*arguments: Any) -> float | None:
        nonlocal spent
        spent += 2_500_000
        put_counter(powercap, spent)
        return measure(*arguments)

    monkeypatch.setattr(SemanticLink, "_autoencoder_psnr_db", measured)
    deliveries = ["semantic", "semantic-unaligned", "conventional"]
    options = command.LinkOptions(deliveries, LinkConditions(), 1 / 96, profile=str(dummy_profile))
    assert command.run_link(folder, options, output=tmp_path / "out", powercap=powercap) == 0
    found = rows(tmp_path / "out")
    assert spent, "it was measured"
    assert [row["joules"] for row in found] == [0.0] * 6
    alone = SemanticLink.load(dummy_profile).picture(folder / "a.png", seed=0)
    assert [row["autoencoder_psnr_db"] for row in found[:3]] == [alone.autoencoder_psnr_db] * 2 + [None]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    done = link(tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "does not exist" in done.output
    done = link(folder, "--profile", tmp_path / "typo", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "no profile" in done.output


def test_a_rate_below_those_of_the_training_is_told(folder: Path, tmp_path: Path) -> None:
    words = [folder / "a.png", "--output", tmp_path / "out", "--delivery", "pixels", "--force"]
    low = link(*words, "--cbr", "1/200")
    assert low.exit_code == 0, low.output
    assert "pixels: the codec of pixels was trained at rates from 1/96 to 1/6; at 1/200," in low.output
    assert "trained" not in link(*words, "--cbr", "1/96").output


def test_a_rate_that_codec_and_size_lack_is_told(tmp_path: Path, dummy_profile: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--profile", dummy_profile, "--output", tmp_path / "out"]
    done = link(*words, "--delivery", "semantic", "--cbr", "1/20000")
    assert done.exit_code == 0, done.output
    told = "a.png, semantic: sent at CBR 1/12288.0 instead of 1/20000.0, which codec and size do not have"
    assert told in " ".join(done.output.split())


def test_a_picture_that_a_rate_is_too_high_for_is_named_with_the_option(
    folder: Path, tmp_path: Path, dummy_profile: Path
) -> None:
    words = [folder, "--profile", dummy_profile, "--output", tmp_path / "out", "--delivery", "semantic"]
    done = link(*words, "--cbr", "1/7")
    assert done.exit_code == 1, done.output
    assert "a.png: --cbr must be above 0 and at most" in " ".join(done.output.split())
