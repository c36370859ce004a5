"""Rate control: the table is interpolated, and the smallest rate that is enough is taken."""

from __future__ import annotations

import math

import pytest

from dekag.cala.rate import QualityModel
from dekag.errors import MismatchError
from dekag.link.conditions import LinkConditions

# 2 dB better for each doubling of the rate, 1 dB for each dB of SNR, 3 dB from Rayleigh to AWGN
CBRS, SNRS, DIRECTS, TAUS = (1 / 768, 1 / 384, 1 / 192, 1 / 96), (0.0, 10.0), (0.0, 1.0), (1e-8, 1e-6)
MEAN = [[[[10 + 3 * d + s + 2 * i for i in range(4)] for s in SNRS] for _ in TAUS] for d in DIRECTS]
SPREAD = [[[[1.0] * 4 for _ in SNRS] for _ in TAUS] for _ in DIRECTS]


@pytest.fixture
def model() -> QualityModel:
    return QualityModel(CBRS, SNRS, DIRECTS, TAUS, MEAN, SPREAD)


def test_expected_quality_is_interpolated(model: QualityModel) -> None:
    awgn = LinkConditions(snr_db=5, fading="awgn")
    assert model.expected_psnr_db(1 / 96, awgn) == pytest.approx(24)
    assert model.expected_psnr_db(1 / (96 * math.sqrt(2)), awgn) == pytest.approx(23)
    half = LinkConditions(snr_db=5, fading="rician", rician_k_db=0)
    assert model.expected_psnr_db(1 / 96, half) == pytest.approx(22.5)
    assert model.expected_psnr_db(1 / 96, LinkConditions(snr_db=40, fading="awgn")) == pytest.approx(29)


def test_the_smallest_rate_that_is_enough(model: QualityModel) -> None:
    awgn = LinkConditions(snr_db=5, fading="awgn")
    chosen = model.smallest_cbr(20, awgn, confidence=0.5)
    assert chosen == pytest.approx(1 / 384, rel=0.03)
    assert model.expected_psnr_db(chosen, awgn) >= 20
    safer = model.smallest_cbr(20, awgn, confidence=0.9)
    assert safer > chosen
    assert model.smallest_cbr(0, awgn) == pytest.approx(1 / 768)
    assert model.smallest_cbr(90, awgn) == pytest.approx(1 / 96)


def test_better_channels_need_less(model: QualityModel) -> None:
    rates = [model.smallest_cbr(19, LinkConditions(snr_db=s, fading="rayleigh")) for s in (4, 6, 8)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 3


def test_the_sender_chooses_by_what_it_was_told(model: QualityModel) -> None:
    stale = LinkConditions(snr_db=0, reported_snr_db=8, fading="awgn")
    fresh = LinkConditions(snr_db=8, fading="awgn")
    assert model.smallest_cbr(20, stale) == model.smallest_cbr(20, fresh)


def test_json_round_trip_and_refusals(model: QualityModel) -> None:
    raw = model.to_json()
    assert QualityModel.from_json(raw) == model
    for name, value in [
        ("mean_db", [[1]]),
        ("cbrs", [1, 0]),
        ("snrs_db", []),
        ("taus_s", "x"),
        ("mean_db", None),
    ]:
        with pytest.raises(MismatchError):
            QualityModel.from_json({**raw, name: value})
