"""Curves in CompressAI's shape: read, refused, and compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dekag.errors import DekagError, InvalidInputError
from dekag.evaluation.curves import Curve, compare, published_names, read_curve

RATES = [0.1, 0.2, 0.4, 0.8, 1.6]


def curve(scale: float = 1.0, gain_db: float = 0.0, axis: str = "bpp") -> Curve:
    """6 dB for each doubling of the rate."""
    psnr = [30 + 6 * math.log2(rate) + gain_db for rate in RATES]
    return Curve("made", "", {axis: [scale * rate for rate in RATES], "psnr": psnr})


def test_half_the_rate_is_minus_fifty_percent_and_six_decibels() -> None:
    found = compare(curve(scale=0.5), curve(), "psnr")
    assert found.rate_percent == pytest.approx(-50, abs=1e-6)
    assert found.quality_db == pytest.approx(6, abs=1e-6)
    assert found.overlap == pytest.approx(1)
    assert compare(curve(), curve(), "psnr").quality_db == pytest.approx(0, abs=1e-9)


def test_over_snrs_the_change_is_in_decibels() -> None:
    snrs = [0.0, 5.0, 10.0, 15.0]
    ours, theirs = (
        Curve("made", "", {"snr_db": [snr + shift for snr in snrs], "psnr": [20 + 0.8 * snr for snr in snrs]})
        for shift in (-2.0, 0.0)
    )
    found = compare(ours, theirs, "psnr")
    assert found.rate_percent is None
    assert found.snr_db == pytest.approx(-2, abs=1e-6)
    assert found.quality_db == pytest.approx(1.6, abs=1e-6)


def test_curves_without_common_qualities_have_no_mean_change() -> None:
    found = compare(curve(), curve(gain_db=100), "psnr")
    assert found.rate_percent is None
    assert found.overlap == 0


def test_points_that_another_one_beats_are_left_out() -> None:
    made = Curve("made", "", {"bpp": [0.4, 0.1, 0.2, 0.8], "psnr": [30.0, 25.0, 24.0, 33.0]})
    rates, values = made.points("psnr")
    assert (rates.tolist(), values.tolist()) == ([0.1, 0.4, 0.8], [25.0, 30.0, 33.0])
    with pytest.raises(InvalidInputError, match="at least 3 points"):
        Curve("flat", "", {"bpp": [1.0, 2.0], "psnr": [30.0, 29.0]}).points("psnr")


def test_a_curve_comes_back_from_its_file(tmp_path: Path) -> None:
    path = curve().write(tmp_path)
    assert read_curve(str(path)) == curve()


def test_published_curves_name_their_source_and_rise() -> None:
    assert "kodak/bpg-444" in published_names()
    for name in published_names():
        published = read_curve(name)
        assert "commit" in published.source
        assert len(published.points("psnr")[0]) == len(published.results["bpp"])
    vtm, bpg = read_curve("kodak/vtm"), read_curve("kodak/bpg-444")
    saved = compare(vtm, bpg, "psnr").rate_percent
    assert saved is not None
    assert -35 < saved < -10, "VVC needs less than BPG"
    assert np.isfinite(compare(vtm, bpg, "ms-ssim").quality_db or np.nan)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({}, 'no object "results"'),
        ([], 'no object "results"'),
        ({"results": {"psnr": [1]}}, "no rate"),
        ({"results": {"bpp": [1, 2], "psnr": [30]}}, '1 values of "psnr" for 2'),
        ({"results": {"bpp": [0, 1], "psnr": [30, 31]}}, "not above 0"),
        ({"results": {"bpp": [1, 2], "psnr": [30, "x"]}}, "something else than numbers"),
        ({"results": {"bpp": [1, 2]}}, "has none of psnr"),
        ({"results": {"bpp": [1], "ms-ssim": [12]}}, "outside 0 to 1"),
        ({"results": {"bpp": [], "psnr": []}}, "0 points"),
    ],
)
def test_what_is_no_curve_is_said(tmp_path: Path, document: object, complaint: str) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DekagError, match="theirs") as caught:
        read_curve(str(path))
    assert complaint in str(caught.value)


def test_unknown_names_and_other_axes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="kodak/vtm"):
        read_curve("kodak/none")
    with pytest.raises(InvalidInputError, match="over bpp"):
        compare(curve(), curve(axis="cbr"), "psnr")
    with pytest.raises(InvalidInputError, match="ms-ssim"):
        compare(curve(), curve(), "ms-ssim")
