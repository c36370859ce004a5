"""Pages are what committed results fill: each is checked by its name, and so is each plot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dekag.cala.methods import cala_config
from dekag.codec import JsccCodec
from dekag.codec.jscc import BITS_PER_SYMBOL, modulation_for
from dekag.evaluation.pages import Report, fill, read_rows, table
from dekag.evaluation.registry import (
    EDITION,
    FIGURES,
    LASTING,
    MISSING,
    Figure,
    figure_cells,
    read_figures,
    record,
    verdict,
)
from dekag.evaluation.reports import claims, makd, robustness, training
from dekag.evaluation.studies.cala_training import FRACTION
from dekag.link.conditions import BANDWIDTH_HZ, BLOCKS
from dekag.makd.config import DistillConfig
from dekag.profile import load_profile
from dekag.training.cala import COMMITMENT, GRID_CBRS, RICIAN_K_RANGE_DB, SNR_RANGE_DB, TAU_RANGE_S
from services.cli.book import REPORTS
from services.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
OPEN = "the interval contains the target"
STALE = "run `dekag results book` and commit what it writes"
PAGES = {report.page: (report, ROOT / "docs") for report in REPORTS} | {"README.md": (claims.README, ROOT)}


@pytest.mark.parametrize("page", PAGES)
def test_a_committed_page_is_what_committed_results_fill(page: str) -> None:
    report, folder = PAGES[page]
    text = (folder / page).read_text()
    assert report.render(text, ROOT / "results") == text, f"{page} is stale: {STALE}"


def test_where_a_digital_sender_is_ahead_stands_beside_the_gain_of_cala() -> None:
    shown = 0
    for page, (_, folder) in PAGES.items():
        opening = (folder / page).read_text().split("\n## ")[0]
        if "=tka_gain_db" in opening:
            shown += 1
            assert "=digital_ahead_from_db" in opening, page
    assert shown


def as_seen(svg: str) -> str:
    """Without what nobody sees: last digits, which another processor may round otherwise, ids of glyphs."""
    svg = re.sub(r"(DejaVu\w+)-[0-9a-f]+", r"\1", svg)
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", svg)


@pytest.mark.parametrize("report", [report for report in REPORTS if report.plots], ids=lambda each: each.page)
def test_committed_plots_are_what_committed_results_draw(report: Report) -> None:
    drawn = report.draw(ROOT / "results")
    # a plot of figures that have not been measured on the present models stays as it was
    assert {name.removeprefix(f"{Path(report.page).stem}-") for name in drawn} <= {
        f"{name}.svg" for name in report.plots
    }
    for name, svg in drawn.items():
        committed = (ROOT / "docs/plots" / name).read_text()
        assert as_seen(svg) == as_seen(committed), f"{name} is stale: {STALE}"


def test_every_plot_and_table_of_a_report_stands_on_its_page() -> None:
    shown = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for path in (ROOT / "docs/plots").iterdir():
        assert f"](plots/{path.name})" in shown, path.name
    for page, (_, folder) in PAGES.items():
        # a line that starts with a comment is a block of HTML, which would break its paragraph
        assert not re.search(r"^ *(- )?<!-- =", (folder / page).read_text(), re.MULTILINE), page


def test_images_that_cannot_be_drawn_again_say_what_made_them() -> None:
    for folder in ("gka", "tka", "first-image"):
        shown = (".png", ".svg", ".webp")
        images = {path.name for path in (ROOT / "results" / folder).iterdir() if path.suffix in shown}
        made = json.loads((ROOT / "results" / folder / "images.json").read_text())
        assert set(made) == images
        assert all(each["command"].startswith("dekag experiment") for each in made.values())


def test_a_page_without_results_says_what_measures_them(tmp_path: Path) -> None:
    for page, (report, folder) in PAGES.items():
        text = report.render((folder / page).read_text(), tmp_path)
        if page not in ("claims.md", "README.md", "city.md"):  # which show more than results
            assert f"`: {MISSING}." in text or MISSING in text, page
        assert report.draw(tmp_path) == {}


def test_the_training_page_shows_the_measured_autoencoder(tmp_path: Path) -> None:
    quality = {
        "pictures": 3, "psnr_db": 33.333, "ssim": 0.9584, "worst_psnr_db": 25.12, "best_psnr_db": 40.7,
        "styles": {"comic": {"psnr_db": 27.93, "ssim": 0.9311}, "pastel": {"psnr_db": 39.1, "ssim": 0.98}},
        "encode_ms": 56.2, "decode_ms": 143.9,
    }  # fmt: skip
    measured = {"commit": "abc1234", "date": "2026-01-02", "size": 256, "threads": 1, "quality": quality}
    page = (ROOT / "docs" / training.REPORT.page).read_text()
    assert "| mean PSNR | 33.33 dB |" not in page
    (tmp_path / "training").mkdir()
    (tmp_path / training.VAE).write_text(json.dumps(measured))
    filled = training.REPORT.render(page, tmp_path)
    assert "| mean PSNR | 33.33 dB |" in filled
    assert "| images | 3, 256x256 pixels |" in filled
    assert filled.index("| pastel | 39.1 | 0.980 |") < filled.index("| comic | 27.9 | 0.931 |")
    assert MISSING in training.REPORT.render(page, tmp_path / "nothing")


def test_what_a_page_names_must_exist() -> None:
    report = Report("page.md", "measure", values=lambda _: {"one": "1"}, tables={"t": lambda _: ["x"]})
    marked = "a <!-- =one -->?<!-- / --> b\n<!-- t -->\n<!-- /t -->\n"
    assert report.render(marked, ROOT) == "a <!-- =one -->1<!-- / --> b\n<!-- t -->\n\nx\n\n<!-- /t -->\n"
    with pytest.raises(ValueError, match=r"page.md names the value two"):
        report.render(marked.replace("=one", "=two"), ROOT)
    with pytest.raises(ValueError, match=r"page.md has 0 parts t"):
        report.render("nothing", ROOT)
    with pytest.raises(ValueError, match="has 2 parts t"):
        fill(marked + marked, "t", [])


def test_values_are_rounded_as_the_page_asks(tmp_path: Path) -> None:
    record("tka_gain_db", 5.987, "dB", command="c", count=1, results=tmp_path)
    report = Report("page.md", "measure")
    text = (
        "x <!-- =tka_gain_db -->?<!-- / --> <!-- =tka_gain_db:1 -->?<!-- / --> <!-- =rss_gib -->?<!-- / -->"
    )
    assert re.sub(r"<!--.*?-->", "", report.render(text, tmp_path)) == f"x 5.99 dB 6.0 dB {MISSING}"


@pytest.mark.parametrize("run", ["attacks", "faults"])
def test_a_low_load_average_is_not_shown_as_none(tmp_path: Path, run: str) -> None:
    found = json.loads((ROOT / "results" / "trust" / f"{run}.json").read_text())
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / f"{run}.json").write_text(json.dumps({**found, "load_average": 0.46}))
    assert "0.5" in {
        shown for name, shown in robustness.values(tmp_path).items() if name.endswith(("_load", "_average"))
    }


def test_a_table_sets_numbers_right() -> None:
    assert table(["a", "b"], [["x", "1"]]) == ["| a | b |", "|---|---:|", "| x | 1 |"]


def figure(value: float, unit: str, ci95: list[float] | None = None) -> dict[str, Any]:
    origin = {"edition": EDITION, "command": "c", "commit": "f", "date": "d"}
    return {"value": value, "unit": unit, "ci95": ci95, "n": 9, **origin}


def test_figures_of_replaced_models_are_marked_and_count_as_not_measured() -> None:
    earlier = {**figure(9, "dB"), "edition": EDITION - 1}
    of_the_first = {key: value for key, value in figure(9, "dB").items() if key != "edition"}
    for measured in (earlier, of_the_first):
        figures = {"tka_gain_db": measured, "fuzz_5xx": {**measured, "value": 0, "unit": "inputs"}}
        assert figure_cells("tka_gain_db", figures)[0] == "9.00 dB (edition 1)"
        assert verdict(FIGURES["tka_gain_db"], figures) == MISSING
        assert figure_cells("fuzz_5xx", figures)[0] == "0 inputs"  # depends on the code alone
        assert verdict(FIGURES["fuzz_5xx"], figures) == "met"
    assert set(FIGURES) >= LASTING


def test_the_summary_says_what_is_missed_and_what_is_missing() -> None:
    lines = "\n".join(claims.summary_table({"gka_gain_percent": figure(50, "%", [40, 70])}))
    assert "| at least 60 %; paper: 44 % | 50.00 % | 40.00 .. 70.00 | 9 | missed by 10 points |" in lines
    assert f"| at most 60 images | {MISSING} |  |  | {MISSING} |" in lines


UNMEASURED = {
    "install_demo_seconds", "install_demo_mib",  # takes an index of packages that is quick enough
    "digital_low_rate_consistency_lead",  # of senders that maximise consistency; an hour or more
}  # fmt: skip


def test_every_measured_figure_has_a_name_and_stands_on_the_page_of_claims() -> None:
    figures = read_figures(ROOT / "results")
    assert set(figures) | UNMEASURED == set(FIGURES), "measured and named"
    assert len({each.name for each in FIGURES.values()}) == len(FIGURES)
    page = (ROOT / "docs/claims.md").read_text()
    for key, each in FIGURES.items():
        if key in figures:
            assert page.count(f"| {each.name} |") >= 2, key
            assert figures[key]["unit"] == each.unit


@pytest.mark.parametrize(
    ("promised", "measured", "said"),
    [
        (Figure("k", "", "dB", 8), figure(8.0, "dB"), "met"),
        (Figure("k", "", "dB", 8), figure(7.996, "dB"), "missed by 0.004 dB"),
        (Figure("k", "", "%", 90), figure(85.56, "%", [80, 91]), f"missed by 4.4 points; {OPEN}"),
        (Figure("k", "", "dB", 1, "most"), figure(0.85, "dB", [0.5, 1.2]), f"met; {OPEN}"),
        (Figure("k", "", "ratio", 1.3, "most"), figure(1.55, "ratio", [1.5, 1.6]), "missed by 0.25"),
        (Figure("k", "", "B", 200_000, "most"), figure(212_345, "B"), "missed by 12,345 B"),
    ],
)  # fmt: skip
def test_a_verdict_says_by_how_much(promised: Figure, measured: dict[str, Any], said: str) -> None:
    assert verdict(promised, {"k": measured}) == said


def test_a_command_that_measures_fills_the_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(**_: object) -> None:
        record("distill_seconds", 12.3, "s", command="dekag bench distill", count=2)

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/claims.md").write_text((ROOT / "docs/claims.md").read_text())
    (tmp_path / "README.md").write_text(
        "# Mine\n<!-- install -->\n<!-- /install -->\n<!-- results -->\nold\n<!-- /results -->\nstays\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.bench.distill.run_distill_bench", measure)
    done = CliRunner().invoke(app, ["bench", "distill"])
    assert done.exit_code == 0, done.output
    assert "| 12.3 s |" in (tmp_path / "docs/claims.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("# Mine\n")
    assert "| 12.3 s |" in readme
    assert "old" not in readme
    assert readme.endswith("<!-- /results -->\nstays\n")


def test_figures_that_nobody_promised_are_shown_as_well() -> None:
    figures = {"a_new_one": figure(1.5, "ratio", [1.4, 1.6])}
    assert claims.others_table(figures)[2] == "| `a_new_one` | 1.50 | 1.40 .. 1.60 | 9 |"
    assert claims.values(Path("nowhere"))["targets_unknown"] == str(len(claims.TARGETS))


def test_the_figures_of_makd_follow_from_the_committed_rows() -> None:
    figures, found = read_figures(ROOT / "results"), makd.scores(ROOT / "results")
    means = {method: sum(row["consistency"] for row in rows) / len(rows) for method, rows in found.items()}
    gain = 100 * (means[makd.main_method(found)] / means["none"] - 1)
    assert gain == pytest.approx(figures["gka_gain_percent"]["value"], abs=1e-3)
    sizes = makd.update_sizes(ROOT / "results", makd.main_method(found))
    assert max(sizes) == figures["update_bytes"]["value"]
    assert len(sizes) == figures["update_bytes"]["n"]


def test_the_lead_over_digital_follows_from_the_committed_rows() -> None:
    leads = read_rows(ROOT / "results/digital/leads.jsonl")
    lead = sum(row["lead_db"] for row in leads) / len(leads)
    assert lead == pytest.approx(read_figures(ROOT / "results")["digital_lead_db"]["value"], abs=1e-3)


def test_choices_on_the_page_of_the_paper_are_those_of_the_code() -> None:
    page = " ".join((ROOT / "docs/paper.md").read_text().split())
    profile = load_profile("stickers")
    distill = DistillConfig(**profile.distill.given())
    model = JsccCodec.load(profile.codec)
    codec, cala = model.config, cala_config(model, 1)
    low, high = SNR_RANGE_DB
    assert codec.adaptive_modulation
    finest = [2 ** BITS_PER_SYMBOL[modulation_for(snr_db)] for snr_db in (10.0, 0.0, -0.1)]
    for said in (
        f"{BLOCKS} blocks in {BANDWIDTH_HZ / 1e6:g} MHz",
        "{2}-QAM below a reported SNR of 0 dB, {1}-QAM below 10 dB, otherwise {0}-QAM".format(*finest),
        f"weight {COMMITMENT}",
        f"{codec.blocks} residual blocks of {codec.width} channels on each side",
        f"{distill.tokens} vectors",
        f"rank {distill.rank}, {distill.bits} bits a number",
        f"{distill.images} cloud images",
        f"{distill.steps} steps of {distill.batch} images",
        f"guidance {distill.guidance_scale:g}",
        f"{100 * FRACTION:g} % of the codec's parameters",
        f"trunk of {cala.gate_width} units",
        f"{cala.kernel} kernels",
        ", ".join(f"1/{1 / cbr:.0f}" for cbr in GRID_CBRS),
        f"{low:g} to {high:g} dB",
        f"{TAU_RANGE_S[0] * 1e9:g} ns to {TAU_RANGE_S[1] * 1e6:g} us",
        f"K {RICIAN_K_RANGE_DB[0]:g} to {RICIAN_K_RANGE_DB[1]:g} dB",
        f"{profile.cloud.steps} steps at the cloud, {profile.edge.steps} at the edge",
    ):
        assert said in page, said


def test_plots_need_no_fonts_of_the_machine_nor_of_an_old_list() -> None:
    """matplotlib keeps a list of fonts for each user; one that lacks its own fonts changes no plot."""
    code = (
        "from matplotlib import font_manager; font_manager.fontManager.ttflist = [];"
        "from dekag.evaluation import plots; figure, axes = plots.panels();"
        "axes[0, 0].loglog([1, 10], [1, 10]);"
        "print(plots.as_svg(figure))"
    )
    empty, usual = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120)
        for text in (code, code.partition(";")[2].partition(";")[2])
    )
    assert empty.stderr == usual.stderr == ""
    assert empty.stdout == usual.stdout
