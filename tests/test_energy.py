"""The energy meter, on counters as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dekag.energy import EnergyMeter

WRAPS_AT = 262_143_328_850


NAMES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:1": "package-1",
    "intel-rapl:0:0": "core",
    "intel-rapl:2": "psys",
}


def put(powercap: Path, name: str, microjoules: int) -> None:
    folder = powercap / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{NAMES[name]}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{WRAPS_AT}\n")


def put_counter(powercap: Path, microjoules: int) -> None:
    """One processor package whose counter stands at so many microjoules."""
    put(powercap, "intel-rapl:0", microjoules)


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    for name in NAMES:
        put(tmp_path, name, 1_000_000)
    meter = EnergyMeter(tmp_path)
    put(tmp_path, "intel-rapl:0", 3_500_000)
    put(tmp_path, "intel-rapl:1", 1_500_000)
    put(tmp_path, "intel-rapl:0:0", 9_000_000)
    put(tmp_path, "intel-rapl:2", 9_000_000)
    assert meter.joules() == pytest.approx(3.0)
    assert meter.joules() == 0


def test_a_counter_that_wrapped_around_is_counted_on(tmp_path: Path) -> None:
    put(tmp_path, "intel-rapl:0", WRAPS_AT - 2_000_000)
    meter = EnergyMeter(tmp_path)
    put(tmp_path, "intel-rapl:0", 1_000_000)
    assert meter.joules() == pytest.approx(3.0)


def test_an_interval_in_which_a_counter_may_have_come_round_unseen_has_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("dekag.energy.monotonic", lambda: now_s)
    put(tmp_path, "intel-rapl:0", 0)
    meter = EnergyMeter(tmp_path)
    put(tmp_path, "intel-rapl:0", 1_000_000)
    now_s += 300
    assert meter.joules() is None, "262 kJ at 1000 W take 262 s"
    put(tmp_path, "intel-rapl:0", 3_000_000)
    now_s += 200
    assert meter.joules() == pytest.approx(2.0), "since the last reading"


def test_a_machine_without_counters_has_no_energy(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "name").write_text("package-0\n")
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text(str(WRAPS_AT))
    assert EnergyMeter(tmp_path).joules() is None, "no counter that can be read"
