"""Photographs: how they are read, what is sent of them, and the arithmetic that HEVC is compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dekag import plugins
from dekag.errors import FileError
from dekag.evaluation.models import model_bank
from dekag.evaluation.pages import write_rows
from dekag.evaluation.photographs import MAX_FILE_SIDE, Photograph, photographs_in
from dekag.evaluation.registry import RESULTS
from dekag.evaluation.reports import photos as report
from dekag.evaluation.studies import photos
from dekag.evaluation.studies.digital import Ladder, conditions_of
from dekag.evaluation.studies.photos import (
    CHANNELS,
    FOLDER,
    PIXELS,
    RATES,
    SEMANTIC,
    SNRS_OF,
    PhotoSet,
    arithmetic_psnr_db,
    capacity_values,
    enlarged_size,
    hevc_gap,
    measure,
    measure_ladder,
    send_pixels,
    send_semantic,
)
from dekag.generation.images import FILE_FORMATS, MAX_SIDE, Pixels
from dekag.link import LinkConditions
from dekag.link.capacity import outage_capacity
from dekag.link.image_coding import SCALES
from dekag.metrics.image import psnr_db
from dekag.pictures import Picture, find_pictures
from dekag.pipeline import PixelLink, SemanticLink
from tests.fetched import EXAMPLE, fetch


def picture(width: int = 120, height: int = 100) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8)


def test_a_folder_is_read_by_name_upright_and_reduced(tmp_path: Path) -> None:
    Image.fromarray(picture(300, 200)).save(tmp_path / "b.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture(300, 200)).save(tmp_path / "a.jpg", exif=turned)
    (tmp_path / "notes.txt").write_text("no photograph")
    folder = find_pictures(tmp_path)
    first, second = photographs_in(folder, 150)
    assert (first.name, first.pixels.shape, first.original) == ("a.jpg", (150, 100, 3), (200, 300))
    assert (second.name, second.pixels.shape, second.original) == ("b.png", (100, 150, 3), (300, 200))
    assert first.notes == ("turned as its EXIF orientation says",)
    assert not second.notes
    assert "notes.txt" in folder.skipped_note


def test_what_is_larger_than_can_be_sent_is_read_too(tmp_path: Path) -> None:
    Image.new("L", (MAX_SIDE + 2, 20), 200).save(tmp_path / "wide.png")
    (wide,) = photographs_in(find_pictures(tmp_path), 100)
    assert wide.original == (MAX_SIDE + 2, 20)
    assert max(wide.pixels.shape) == 100
    Image.new("L", (MAX_FILE_SIDE + 1, 1)).save(tmp_path / "wide.png")
    with pytest.raises(FileError, match=rf"wide\.png.* at most {MAX_FILE_SIDE} pixels a side"):
        photographs_in(find_pictures(tmp_path))


def test_a_damaged_photograph_is_named(tmp_path: Path) -> None:
    Image.fromarray(picture(300, 200)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:200])
    with pytest.raises(FileError, match=r"x\.png"):
        photographs_in(find_pictures(tmp_path))


def test_the_enlarged_photograph_fills_the_rate() -> None:
    assert enlarged_size(256, 192, 1 / 96) == (256, 192)
    assert enlarged_size(272, 181, 1 / 96) == (272, 181)
    assert enlarged_size(256, 192, 1 / 24) == (512, 384)
    assert enlarged_size(256, 192, 1 / 6) == (1024, 768)
    wide, high = enlarged_size(272, 181, 1 / 48)
    assert wide * high == pytest.approx(2 * 272 * 181, rel=0.01)


def test_the_semantic_link_is_that_of_a_users_pictures() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (25, 30, 3))
    photo = blocks.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    conditions = [LinkConditions(snr_db=snr_db, fading="awgn") for snr_db in (0.0, 20.0)]
    worse, better = send_semantic(model_bank("stickers"), photo, conditions, 1 / 96, seed=3)
    sent = SemanticLink.load("stickers").picture(Picture(photo, "PNG"), conditions[1], seed=3, cbr=1 / 96)
    # the adapted codec and the services' exact one round differently
    assert np.abs(better.astype(int) - sent.pixels).max() <= 1
    assert psnr_db(worse, photo) < psnr_db(better, photo)
    (enlarged,) = send_semantic(model_bank("stickers"), photo, conditions[1:], 1 / 24, seed=3)
    assert enlarged.shape == photo.shape
    assert psnr_db(enlarged, photo) > psnr_db(better, photo)


def test_the_codec_of_pixels_is_that_of_a_users_pictures() -> None:
    photo = picture(100, 60)
    conditions = [LinkConditions(snr_db=snr_db, fading="awgn") for snr_db in (0.0, 20.0)]
    worse, better = send_pixels(model_bank("stickers"), photo, conditions, 1 / 24, seed=3)
    sent = PixelLink.load("stickers").picture(Picture(photo, "PNG"), conditions[1], seed=3, cbr=1 / 24)
    assert np.array_equal(better, sent.pixels)
    assert psnr_db(worse, photo) < psnr_db(better, photo)


def test_links_have_rows_where_they_were_measured() -> None:
    photo = Photograph("made", "test", picture(), (120, 100))
    ladder = Ladder([100, 400], [(0, 1), (9, 1)], np.array([[20.0], [30.0]]))
    known = PhotoSet([photo], {(name, True): [ladder] for name in FILE_FORMATS}, np.array([[12.0]]))
    links = {
        link: {cbr: np.full((1, len(CHANNELS), len(SNRS_OF[link])), 25.0) for cbr in RATES}
        for link in (PIXELS, SEMANTIC)
    }
    rows = measure(known, links, checks=0).rows
    for link, snrs_db in SNRS_OF.items():
        own = [row for row in rows if row["sender"] == link]
        assert {row["snr_db"] for row in own} == set(snrs_db)
        assert len(own) == len(CHANNELS) * len(RATES) * len(snrs_db)
        assert {row["psnr_db"] for row in own} == {25.0}
        assert not [row for row in own if "sent_cbr" in row]
    assert not [row for row in measure(known, {}, checks=0).rows if row["sender"] in SNRS_OF]


def test_rows_say_what_a_codec_of_fixed_rate_really_sends() -> None:
    photo = Photograph("made", "test", picture(), (120, 100))
    ladder = Ladder([100, 400], [(0, 1), (9, 1)], np.array([[20.0], [30.0]]))
    known = PhotoSet([photo], {(name, True): [ladder] for name in FILE_FORMATS}, np.array([[12.0]]))
    values = np.full((1, len(CHANNELS), len(SNRS_OF[PIXELS])), 25.0)
    rows = measure(known, {PIXELS: {1 / 6: values}}, checks=0, sent={1 / 6: 0.08}).rows
    own = [row for row in rows if row["sender"] == PIXELS]
    assert {(row["cbr"], row["sent_cbr"]) for row in own} == {(round(1 / 6, 6), 0.08)}
    assert not [row for row in rows if row["sender"] != PIXELS and "sent_cbr" in row]
    (curve,) = [each for each in photos.link_curves(own) if "awgn" in each.name]
    assert list(curve.results["cbr"]) == [0.08]


def test_the_gap_is_what_calibrated_ldpc_and_qam_have() -> None:
    gap = hevc_gap()
    assert 0.5 < gap.code_db < 3.5
    assert 0 < gap.steps_db < 1.5
    assert gap.bits_per_use(10) == pytest.approx(math.log2(1 + 10 ** ((10 - gap.total_db) / 10)))


@pytest.mark.parametrize(("size", "expected"), [(99, 12.0), (101, 20.0), (399, 20.0), (401, 30.0)])
def test_arithmetic_takes_the_best_file_within_its_bytes(size: int, expected: float) -> None:
    ladder = Ladder([100, 400], [(0, 1), (9, 1)], np.array([[20.0], [30.0]]))
    uses = math.ceil(size * 8 / hevc_gap().bits_per_use(10))
    assert arithmetic_psnr_db(ladder, 12.0, uses, 10) == expected


def test_a_ladder_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "SETTINGS", ((20, 1), (60, 1), (20, 2)))
    photo = Photograph("made", "test", picture(), (120, 100))
    first = measure_ladder((photo, "webp"), runs=tmp_path)
    monkeypatch.setattr(photos, "ladders", None)
    again = measure_ladder((photo, "webp"), runs=tmp_path)
    assert first.sizes == again.sizes == sorted(first.sizes)
    assert (np.diff(first.values[:, 0]) > 0).all()


def test_a_photograph_may_be_reduced_as_far_as_files_can_be(tmp_path: Path) -> None:
    assert {scale for _, scale in photos.SETTINGS} == set(SCALES)
    pixels = np.array(Image.fromarray(picture()).resize((272, 184)))
    ladder = measure_ladder((Photograph("made", "test", pixels, (272, 184)), "webp"), runs=tmp_path)
    assert ladder.settings[0][1] == SCALES[-1], "the smallest file"


def test_capacity_sends_more_than_nothing_and_fading_costs() -> None:
    photo = Photograph("made", "test", picture(), (120, 100))
    values = np.array([[25.0], [30.0], [35.0]])
    grey = psnr_db(np.full_like(photo.pixels, 128), photo.pixels)
    sizes = [100, 1000, 3000]
    known = PhotoSet([photo], {("hevc", True): [Ladder(sizes, [(0, 1)] * 3, values)]}, np.array([[grey]]))
    names = [("hevc", True)]
    # K = 1/6 of 36,000 values; at 10 dB log2(11) bits a channel use are 2,594 bytes
    assert capacity_values(known, names, 1 / 6, conditions_of("awgn", 10.0)).tolist() == [30.0]
    faded = capacity_values(known, names, 1 / 6, conditions_of("rayleigh-1us", 10.0))[0]
    assert grey < faded < 30
    assert capacity_values(known, names, 1 / 96, conditions_of("awgn", -20.0)).tolist() == [grey]


def test_the_report_says_which_rates_a_codec_of_ones_own_lacks(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    rows = [
        json.loads(line) for line in (RESULTS / FOLDER / "senders.jsonl").read_text().splitlines() if line
    ]
    kept = [row for row in rows if row["sender"] != PIXELS or row["cbr"] in (0.166667, 0.083333)]
    for row in kept:
        if row["sender"] == PIXELS:
            row["sent_cbr"] = 0.08
    write_rows(tmp_path / FOLDER / "senders.jsonl", kept)
    left_out = "The codec of pixels was left out where it needs more symbols: at 1/24, 1/48, 1/96."
    sent = "Rates of the codec of pixels, with what it sends on average: 1/6 (0.08), 1/12 (0.08)."
    crossing = report.crossover(tmp_path, PIXELS)
    assert len([line for line in crossing if line.startswith("| awgn")]) == 2
    for lines in (crossing, report.psnr_tables(tmp_path)):
        assert lines[-3:] == [left_out, "", sent]
    report.rate_plot(tmp_path)
    report.snr_plot(tmp_path)
    assert not report.departures(report.cells(RESULTS)), "the built-in codec has every rate"


@pytest.mark.usefixtures("plugging")
def test_a_codec_of_pixels_of_ones_own_is_measured_at_the_rates_it_has(
    dummy_profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.load(f"{EXAMPLE}:AdJscc")
    profile = str(fetch("AdJscc", dummy_profile, tmp_path, monkeypatch))
    photo = Photograph("a", "here", picture(), (120, 100))
    assert photos.rates_of(PIXELS, model_bank(profile), [photo]) == [1 / 6, 1 / 12]
    assert photos.rates_of(PIXELS, model_bank(str(dummy_profile)), [photo]) == list(RATES)
    work = (PIXELS, photo, 1 / 12, 3)
    found = photos.measure_link(work, profile=profile, runs=tmp_path)
    assert found.shape == (len(CHANNELS), len(SNRS_OF[PIXELS]))
    assert photos.sent_cbr(model_bank(profile), [photo], 1 / 6) == pytest.approx(1 / 12)
    assert photos.sent_cbr(model_bank(str(dummy_profile)), [photo], 1 / 6) is None
    alone = send_pixels(model_bank(profile), photo.pixels, [conditions_of(CHANNELS[0], 20.0)], 1 / 12, 3)
    assert found[0, -1] == pytest.approx(psnr_db(alone[0], photo.pixels))
    photographs = PhotoSet([photo], {}, np.zeros((1, 1)))
    monkeypatch.setattr(photos, "STRIP_CELLS", ((1 / 96, 0.0),))
    monkeypatch.setattr(photos, "choose", lambda *_: photos.Choice(np.zeros(1), 0.0))
    (row,) = photos.strip(photographs, model_bank(profile), [PIXELS])
    assert np.unique(row[-1][10:90]).tolist() == [128], "nothing is shown at a rate that it does not have"


def test_capacity_is_of_slots_as_long_as_a_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each symbol has its own gain, short slots would be charged with fades that long ones average."""
    asked = []

    def outage(conditions: LinkConditions, share: float, *, channel_uses: int) -> float:
        asked.append(channel_uses)
        return outage_capacity(conditions, share, channel_uses=channel_uses)

    monkeypatch.setattr(photos, "outage_capacity", outage)
    photo = Photograph("a", "here", picture(), (120, 100))
    ladder = Ladder([10, 1000], [(1, 1), (2, 1)], np.array([[10.0], [20.0]]))
    found = PhotoSet([photo], {("hevc", True): [ladder]}, np.array([[5.0]]))
    conditions = LinkConditions(fading="rayleigh-magnitude", snr_db=10)
    capacity_values(found, [("hevc", True)], 1 / 96, conditions)
    assert set(asked) == {375}
    short, long = (outage_capacity(conditions, 0.01, channel_uses=uses) for uses in (64, 375))
    assert long > short + 0.2
