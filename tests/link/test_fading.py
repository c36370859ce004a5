"""What every kind of fading has to keep, and what is Rician's own."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dekag.errors import InvalidInputError
from dekag.link.channel import Reception, transmit
from dekag.link.conditions import BLOCKS, LinkConditions

DRAWS = 1000
KINDS: dict[str, dict[str, Any]] = {
    "awgn": {"fading": "awgn"},
    "rayleigh": {"fading": "rayleigh", "tau_rms_s": 1e-7},
    "rician": {"fading": "rician", "tau_rms_s": 1e-7, "rician_k_db": 3},
    **{f"tdl-{p}": {"fading": f"tdl-{p}", "tau_rms_s": 1e-7, "speed_m_s": 30} for p in "abcde"},
    "trace": {"fading": "trace", "trace": "walk"},
}
CSI = ["perfect", "pilots", "none"]


def conditions(kind: str, **more: Any) -> LinkConditions:
    return LinkConditions.model_validate(KINDS[kind] | more)


def qpsk(*shape: int, seed: int = 0) -> torch.Tensor:
    bits = torch.randint(0, 2, (*shape, 2), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return torch.view_as_complex(bits / math.sqrt(2))


def gains_of(kind: str, draws: int = DRAWS, **more: Any) -> torch.Tensor:
    """(draws, J) gains, every one drawn as an item of its own."""
    return transmit(qpsk(draws, 64), [conditions(kind, **more)] * draws, range(draws)).gains


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("awgn", "trace")])
def test_mean_fading_power_is_one(kind: str) -> None:
    # Gains of one transmission are correlated: the mean over a transmission is one sample (4 sigma).
    power = gains_of(kind).abs().square().mean(dim=1)
    assert abs(power.mean() - 1) < 4 * power.std() / math.sqrt(DRAWS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "awgn"])
@pytest.mark.parametrize("snr_db", [0.0, 30.0])
def test_measured_snr_is_the_asked_snr(kind: str, snr_db: float) -> None:
    """Noise belongs to signal power 1: neither what was sent nor the fade scales it."""
    symbols = qpsk(4, 30_000)
    reception = transmit(symbols, [conditions(kind, snr_db=snr_db)] * 4, range(4))
    noise = reception.symbols - reception.symbol_gains * symbols
    assert abs(-10 * torch.log10(noise.abs().square().mean()).item() - snr_db) < 0.1


@pytest.mark.parametrize("kind", ["rayleigh", "rician", "tdl-a", "tdl-c"])
def test_a_batch_of_one_keeps_its_deep_fades(kind: str) -> None:
    """A fade below -13 dB comes as often as theory says: nothing scales a single item back to power 1."""
    threshold = 0.05
    gains = torch.cat(
        [
            transmit(qpsk(1, 64), [conditions(kind, tau_rms_s=0.0, rician_k_db=0)], [seed]).gains[:, :1]
            for seed in range(DRAWS)
        ]
    )
    # Rician with k = 1: |h|^2 is half a noncentral chi-square; its density near 0 is 2 exp(-1).
    expected = 1 - math.exp(-threshold)
    if kind == "rician":
        expected = 1 - _marcum_q(math.sqrt(2), math.sqrt(4 * threshold))
    faded = (gains.abs().square() < threshold).float().mean().item()
    assert abs(faded - expected) < 4 * math.sqrt(expected / DRAWS)


def _marcum_q(a: float, b: float) -> float:
    """Q_1(a, b) by the midpoint rule over 0..b of x exp(-(x^2 + a^2) / 2) I_0(a x)."""
    x = (torch.arange(10_000, dtype=torch.float64) + 0.5) * b / 10_000
    density = x * torch.exp(-(x.square() + a * a) / 2) * torch.special.i0(a * x)
    return 1 - (density.sum() * b / 10_000).item()


@pytest.mark.parametrize("k_db", [-10.0, 0.0, 6.0, 15.0])
def test_rician_k_is_the_direct_power_over_the_scattered(k_db: float) -> None:
    # In one transmission the direct path has one phase: what blocks share when scattering is independent.
    gains = gains_of("rician", rician_k_db=k_db, tau_rms_s=1e-4)
    shared = (gains[:, :4].mean(dim=1) * gains[:, 4:].mean(dim=1).conj()).real
    direct = 10 ** (k_db / 10) / (1 + 10 ** (k_db / 10))
    assert abs(shared.mean() - direct) < 4.5 * shared.std() / math.sqrt(DRAWS)
    assert gains.mean(dim=0).abs().max() < 4.5 / math.sqrt(DRAWS), "the direct path's phase is uniform"


def test_rician_correlation_is_direct_plus_scattered() -> None:
    gains = gains_of("rician", rician_k_db=0)
    measured = torch.einsum("ni,nj->ij", gains, gains.conj()) / DRAWS
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            scattered = 1 / (1 + 2j * math.pi * (i - j) * 10e6 / BLOCKS * 1e-7)
            assert abs(measured[i, j].item() - (0.5 + 0.5 * scattered)) < 4.5 / math.sqrt(DRAWS)


def test_limits_of_rician_are_rayleigh_and_awgn() -> None:
    rayleigh, none = gains_of("rayleigh", 20), gains_of("rician", 20, rician_k_db=-20)
    torch.testing.assert_close(none, rayleigh, rtol=0, atol=0.12)
    strong = gains_of("rician", 20, rician_k_db=40)
    torch.testing.assert_close(strong.abs(), torch.ones(20, BLOCKS), rtol=0, atol=0.05)


def same(a: Reception, i: int, b: Reception, j: int, count: int) -> bool:
    """Whether item i of `a` and item j of `b` are the same in their first `count` symbols, bit for bit."""
    assert a.gain_errors is not None
    assert b.gain_errors is not None
    return (
        torch.equal(a.symbols[i, :count], b.symbols[j, :count])
        and torch.equal(a.symbol_gains[i, :count], b.symbol_gains[j, :count])
        and torch.equal(a.symbol_no.expand_as(a.symbols)[i, :count], b.symbol_no[j, :count])
        and a.pilot_uses[i] == b.pilot_uses[j]
    )


@pytest.mark.parametrize("csi", CSI)
def test_items_of_mixed_kinds_do_not_depend_on_their_batch(csi: str) -> None:
    mixed = [conditions(kind, csi=csi, snr_db=snr) for kind in KINDS for snr in (0, 20)]
    symbols, seeds = qpsk(len(mixed), 131), list(range(len(mixed)))
    whole = transmit(symbols, mixed, seeds)
    for i in range(len(mixed)):
        alone = transmit(symbols[i : i + 1], mixed[i : i + 1], seeds[i : i + 1])
        assert same(whole, i, alone, 0, 131)


def test_items_of_mixed_rates_are_as_if_they_were_alone() -> None:
    mixed = [conditions(kind, csi="pilots") for kind in KINDS]
    symbols, seeds = qpsk(len(mixed), 128), list(range(len(mixed)))
    uses = [128 if i % 3 == 0 else 5 + 13 * i for i in range(len(mixed))]
    whole = transmit(symbols, mixed, seeds, channel_uses=uses)
    for i, sent in enumerate(uses):
        alone = transmit(symbols[i : i + 1, :sent], mixed[i : i + 1], seeds[i : i + 1])
        assert same(whole, i, alone, 0, sent)
        assert (whole.symbols[i, sent:] == 0).all()
        assert (whole.symbol_gains[i, sent:] == 1).all()
    for wrong in ([128] * 8, [0] + [128] * 8, [129] + [128] * 8):
        with pytest.raises(InvalidInputError) as caught:
            transmit(symbols, mixed, seeds, channel_uses=wrong)
        assert caught.value.field == "channel_uses"


def test_concurrent_requests_do_not_share_their_draws() -> None:
    asked = [conditions(kind, csi="pilots") for kind in ("tdl-a", "tdl-d", "rician")]
    symbols, seeds = qpsk(3, 64), [1, 2, 3]
    alone = transmit(symbols, asked, seeds)
    with ThreadPoolExecutor(4) as threads:
        for together in threads.map(lambda _: transmit(symbols, asked, seeds), range(12)):
            assert all(same(alone, i, together, i, 64) for i in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_leave_the_global_generators_alone(kind: str) -> None:
    from sionna.phy import config

    transmit(qpsk(1, 8), [conditions(kind, csi="pilots")], [3])  # pays for the imports
    states = torch.get_rng_state(), config.torch_rng("cpu").get_state()
    transmit(qpsk(1, 8), [conditions(kind, csi="pilots")], [3])
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], config.torch_rng("cpu").get_state())


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_receiver_knows_changes_nothing_in_the_air(kind: str) -> None:
    symbols = qpsk(1, 100)
    perfect, *others = (transmit(symbols, [conditions(kind, csi=csi)], [3]) for csi in CSI)
    for other in others:
        assert torch.equal(other.symbols, perfect.symbols)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("awgn", "trace")])
def test_hops_and_seeds_fade_apart(kind: str) -> None:
    first, again, other, hop = (
        transmit(qpsk(1, 64), [conditions(kind)], [seed], hop=hop).gains
        for seed, hop in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, hop)
