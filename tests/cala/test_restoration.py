"""The table of timesteps: read, interpolated, fitted."""

from __future__ import annotations

import pytest
import torch

from dekag.cala.aligned_codec import AlignedCodec
from dekag.cala.rate import QualityModel
from dekag.cala.restoration import RestorationTable
from dekag.codec import JsccCodec
from dekag.errors import InvalidInputError, MismatchError
from dekag.link import LinkConditions
from dekag.pipeline import SemanticLink, apply_channel


def test_timesteps_are_interpolated_and_constant_outside() -> None:
    table = RestorationTable((16.0, 20.0, 30.0), (600, 300, 0))
    assert [table.timestep(psnr) for psnr in (5.0, 16.0, 18.0, 25.0, 30.0, 60.0)] == [
        600,
        600,
        450,
        150,
        0,
        0,
    ]
    assert RestorationTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"psnrs_db": [], "timesteps": []},
        {"psnrs_db": [16, 20], "timesteps": [300]},
        {"psnrs_db": [20, 16], "timesteps": [300, 600]},
        {"psnrs_db": [16, float("nan")], "timesteps": [300, 100]},
        {"psnrs_db": [16, 20], "timesteps": [300, -1]},
        {"psnrs_db": [16, 20], "timesteps": [1000, 1]},
        {"psnrs_db": ["x", 20], "timesteps": [300, 1]},
        {"psnrs_db": 5, "timesteps": 3},
    ],
)
def test_nonsense_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(MismatchError):
        RestorationTable.from_json(raw)


def test_a_fit_never_rises_with_the_psnr() -> None:
    table = RestorationTable.fitted([20.0, 14.0, 16.0, 18.0, 22.0], [100, 600, 300, 500, 100])
    assert table == RestorationTable((14.0, 17.0, 20.0, 22.0), (600, 400, 100, 100))
    assert RestorationTable.fitted([1.0, 2.0], [5, 50]) == RestorationTable((1.5,), (28,))


def test_what_is_expected_of_a_reception_follows_its_own_blocks() -> None:
    axes = {"cbrs": (1 / 96,), "snrs_db": (0.0, 20.0), "directs": (0.0, 1.0), "taus_s": (1e-6,)}
    flat = [[[[10.0], [30.0]]], [[[10.0], [30.0]]]]
    codec = AlignedCodec(JsccCodec(width=8, blocks=1), "base")
    receiver = SemanticLink(codec).receiver
    symbols = torch.ones(1, 512, dtype=torch.complex64)
    steady = apply_channel(symbols, LinkConditions(snr_db=10, fading="awgn"), seed=1)
    with pytest.raises(InvalidInputError, match="says what quality to expect"):
        receiver.expected_psnr_db(steady, source_values=96 * 512)
    codec.quality = QualityModel.from_json({**axes, "mean_db": flat, "spread_db": flat})
    assert receiver.expected_psnr_db(steady, source_values=96 * 512) == pytest.approx(20.0, abs=1e-3)
    faded = [apply_channel(symbols, LinkConditions(snr_db=10), seed) for seed in range(200)]
    known = torch.tensor([receiver.expected_psnr_db(each, source_values=96 * 512) for each in faded])
    power = torch.stack([each.gains.abs().square().mean() for each in faded])
    assert float(torch.corrcoef(torch.stack([known, power.log()]))[0, 1]) > 0.8
    assert known.mean() < 20.0, "fading costs capacity"
    with pytest.raises(InvalidInputError, match=r"link\.restoration must be none"):
        receiver.timestep(steady, LinkConditions(), source_values=96 * 512)
    codec.restoration = RestorationTable((10.0, 30.0), (400, 0))
    assert receiver.timestep(steady, LinkConditions(), source_values=96 * 512) == 200
    with pytest.raises(InvalidInputError, match="none with csi none"):
        receiver.timestep(steady, LinkConditions(csi="none"), source_values=96 * 512)
