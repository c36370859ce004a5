"""The condition vector: bounded, physical, and different at the two ends of the link."""

from __future__ import annotations

import pytest
import torch

from dekag.cala.conditions import CONDITION_FEATURES, block_snr_db, condition_vector
from dekag.link.conditions import LinkConditions


def _vector(cbr: float = 1 / 96, at: str = "sender", **channel: object) -> torch.Tensor:
    return condition_vector(cbr, LinkConditions(**channel), at=at)  # type: ignore[arg-type]


@pytest.mark.parametrize("fading", ["awgn", "rayleigh", "rician", "tdl-a", "tdl-d"])
@pytest.mark.parametrize("snr_db", [-20.0, 3.0, 40.0])
@pytest.mark.parametrize("cbr", [1e-6, 1 / 300, 1 / 48])
def test_vectors_are_bounded_whatever_the_condition(cbr: float, snr_db: float, fading: str) -> None:
    vector = _vector(cbr, snr_db=snr_db, fading=fading)
    assert vector.shape == (CONDITION_FEATURES,)
    assert vector.abs().max() <= 2


def test_conditions_are_told_apart() -> None:
    vectors = [
        _vector(),
        _vector(1 / 768),
        _vector(snr_db=3),
        _vector(fading="awgn"),
        _vector(fading="rician"),
        _vector(tau_rms_s=1e-7),
        _vector(csi="pilots"),
        _vector(csi="none"),
        _vector(equalizer="zf"),
    ]
    for i, one in enumerate(vectors):
        assert all((one - other).abs().max() > 1e-3 for other in vectors[:i])


def test_sender_uses_reported_conditions_and_receiver_true_ones() -> None:
    stale = {"snr_db": 0.0, "reported_snr_db": 15.0}
    assert torch.equal(_vector(**stale), _vector(snr_db=15.0))
    assert torch.equal(_vector(at="receiver", **stale), _vector(snr_db=0.0))


def test_a_strong_direct_path_is_like_no_fading() -> None:
    flat, strong, weak = _vector(fading="awgn"), _vector(fading="rician", rician_k_db=40.0, tau_rms_s=0), None
    weak = _vector(fading="rician", rician_k_db=-20.0, tau_rms_s=0)
    torch.testing.assert_close(strong, flat, atol=1e-3, rtol=0)
    torch.testing.assert_close(weak, _vector(fading="rayleigh", tau_rms_s=0), atol=0.02, rtol=0)


@pytest.mark.parametrize("at", ["sender", "receiver"])
def test_a_magnitude_without_csi_is_no_phase_that_is_turned(at: str) -> None:
    """What codecs learned of Rayleigh fading without CSI is wrong here: the phase is intact, as on AWGN."""
    blind = _vector(at=at, fading="rayleigh-magnitude", csi="none")
    assert torch.equal(blind, _vector(at=at, fading="awgn", csi="none"))
    assert not torch.equal(blind, _vector(at=at, fading="rayleigh", csi="none"))
    known = _vector(at=at, fading="rayleigh-magnitude")
    assert torch.equal(known, _vector(at=at, fading="rayleigh", tau_rms_s=1e-4))


def test_block_snrs_are_those_of_the_gains() -> None:
    gains = torch.tensor([[1.0, 0.1j] * 4]).to(torch.complex64)
    found = block_snr_db(gains, torch.tensor([0.1]))
    torch.testing.assert_close(found, torch.tensor([[10.0, -10.0] * 4]), atol=1e-4, rtol=0)
    fine = block_snr_db(gains.repeat_interleave(4, dim=1), torch.tensor([0.1]))
    torch.testing.assert_close(fine, found, atol=1e-4, rtol=0)
    assert torch.isfinite(block_snr_db(0 * gains, torch.tensor([0.0]))).all()


def test_only_the_receiver_knows_its_blocks() -> None:
    conditions, blocks = LinkConditions(), torch.linspace(-10, 20, 8)
    plain = condition_vector(1 / 96, conditions, at="sender")
    assert torch.equal(condition_vector(1 / 96, conditions, at="sender", block_snr_db=blocks), plain)
    assert not torch.equal(condition_vector(1 / 96, conditions, at="receiver", block_snr_db=blocks), plain)
