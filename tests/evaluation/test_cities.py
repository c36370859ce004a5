"""`dekag simulate`: runs are resumed, variants change one thing, failures are reported, pages fill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from dekag import plugins
from dekag.documents import read_json
from dekag.errors import DekagError
from dekag.evaluation.cities import command, tables
from dekag.evaluation.cities.command import run_city
from dekag.evaluation.cities.summary import names_of
from dekag.evaluation.pages import read_rows
from dekag.evaluation.reports import city as report
from dekag.simulation import policies
from dekag.simulation.policies import DemandPolicy
from services.cli.main import app

SMALL: dict[str, Any] = {
    "name": "tiny",
    "days": 0.25,
    "seeds": [0, 1],
    "demand": {"users": 20, "requests": 400, "new_topics": 4, "known_topics": 4},
    "radio": {"cells": 3},
    "edges": {"count": 2},
    "strategies": [
        {"name": "files", "delivery": "files"},
        {"name": "never", "distil": "distil-never"},
        {"name": "always", "distil": "distil-always"},
        {"name": "break-even", "distil": "distil-break-even"},
        {"name": "oracle", "distil": "distil-oracle", "fetch": "fetch-oracle"},
    ],
    "variants": [{"name": "old-topics", "demand": {"new_fraction": 0}}],
}


@pytest.fixture
def city(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def run(city: Path, **more: Any) -> list[dict[str, Any]]:
    folder = city.parent
    return run_city(city, results=folder / "results", runs=folder / "runs", **more)


def test_a_city_is_simulated_once(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(city)
    folder = city.parent / "results" / "tiny"
    assert len(first) == 2 * 2 * 5
    assert read_rows(folder / "runs.jsonl") == first
    hours = read_rows(folder / "hours.jsonl")
    assert {row["seed"] for row in hours} == {0}
    assert len(hours) == 5 * 6
    assert {row["strategy"] for row in read_rows(folder / "topics.jsonl")} >= {"always"}
    assert read_json(folder / "city.json")["table"]["command"] == "dekag bench deliveries"
    assert "| break-even |" in (folder / "summary.md").read_text()
    for name in ("hours", "latency", "topics"):
        assert (folder / f"{name}.svg").read_text().startswith("<?xml")

    def fail(*_: Any) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(command, "simulate", fail)
    assert run(city) == first


def test_a_changed_strategy_alone_is_simulated(city: Path) -> None:
    run(city)
    kept = set((city.parent / "runs" / "runs").iterdir())
    changed = json.loads(json.dumps(SMALL))
    changed["strategies"][3]["distil"] = {"name": "distil-break-even", "factor": 2}
    city.write_text(yaml.safe_dump(changed))
    run(city)
    assert len(set((city.parent / "runs" / "runs").iterdir()) - kept) == 2 * 2


def test_a_variant_changes_one_thing(city: Path) -> None:
    rows = run(city)
    own = [row for row in rows if row["variant"] == "old-topics"]
    assert {row["distilled"] for row in own} == {0}
    assert all(row["file_bytes"] == 0 for row in own if row["strategy"] != "files")
    shown = tables.variants_table(rows)
    assert [line.split(" | ")[0] for line in shown[2:]] == ["| the city itself", "| old-topics"]
    assert "100.0" in shown[3]  # edges that know everything need no backhaul
    first, *names = names_of(rows)
    assert shown[0].endswith(f"| consistency, {' / '.join(names)} | of {first} |")
    assert shown[3].split(" | ")[-1] == f"{mean_consistency(own, first):.2f} |"


def test_savings_are_paired_by_seed(city: Path) -> None:
    rows = [row for row in run(city) if not row["variant"]]
    gigabytes = tables.VALUES["backhaul_gb"][1]
    by = {(row["seed"], row["strategy"]): gigabytes(row) for row in rows}
    for seed in (0, 1):
        saved = tables.saved_percent(rows, seed, "never", gigabytes)
        assert saved == pytest.approx(100 * (1 - by[seed, "never"] / by[seed, "files"]))
    header, _, *lines = tables.savings_table(rows)
    assert header.endswith("| consistency | of files |")
    for name, line in zip(names_of(rows)[1:], lines, strict=True):
        shown = [float(cell.split()[0]) for cell in line.strip("| ").split(" | ")[-2:]]
        assert shown == pytest.approx([mean_consistency(rows, each) for each in (name, "files")], abs=1e-4)


def mean_consistency(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row["consistency"] for row in rows if row["strategy"] == name]))


@pytest.fixture
def broken() -> Iterator[None]:
    class Broken(DemandPolicy):
        name = "distil-broken"

        def requested(self, *_: Any) -> bool:
            raise ZeroDivisionError("a bug")

    plugins.register(Broken)
    yield
    del policies.POLICIES["distil-broken"], plugins._plugged_in["policy"]["distil-broken"]


@pytest.mark.usefixtures("broken")
def test_a_broken_policy_does_not_sink_the_rest(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = {**SMALL, "variants": [], "seeds": [0]}
    changed["strategies"] = [*SMALL["strategies"][:2], {"name": "bad", "distil": "distil-broken"}]
    city.write_text(yaml.safe_dump(changed))
    with pytest.raises(DekagError, match="1 of 3 runs failed"):
        run(city)
    assert "bad: ZeroDivisionError: a bug" in capsys.readouterr().out
    assert len(read_rows(city.parent / "results" / "tiny" / "runs.jsonl")) == 2


def test_the_command_names_what_is_wrong(city: Path) -> None:
    city.write_text(yaml.safe_dump({**SMALL, "radio": {"cells": -1}}))
    failed = CliRunner().invoke(app, ["simulate", str(city)])
    assert failed.exit_code == 2
    assert failed.output.startswith("radio.cells must be")
    missing = CliRunner().invoke(app, ["simulate", "atlantis"])
    assert missing.exit_code == 2
    assert "no shipped city" in missing.output


def test_the_page_is_filled_from_rows(city: Path) -> None:
    """Every table and value of the page can be made from the results of a city with these strategies."""
    changed = {**SMALL, "name": report.FOLDER}
    city.write_text(yaml.safe_dump(changed))
    run(city)
    results = city.parent / "results"
    values = report.values(results)
    assert values["seeds"] == "2"
    assert values["saved_never"].endswith(" %")
    for name in ("summary", "savings", "quality", "latency", "updates", "energy", "money"):
        assert len(report.REPORT.tables[name](results)) > 2
    drawn = report.REPORT.draw(results)
    assert {"results-city-hours.svg", "results-city-latency.svg", "results-city-topics.svg"} <= set(drawn)


def test_every_field_is_documented() -> None:
    lines = report.fields_table(Path())
    text = "\n".join(lines)
    for field in ("`days`", "`demand.zipf`", "`radio.scenario`", "`prices.kwh`", "`strategies[].share`"):
        assert field in text
    assert all(line.rstrip(" |").count("|") >= 3 for line in lines[2:])
    assert "`distil-oracle`" in "\n".join(report.policies_table(Path()))


def test_processes_of_ray_simulate_the_same(city: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone = run(city)
    shared = run_city(
        city, results=tmp_path / "ray" / "results", runs=tmp_path / "ray" / "runs", ray="local", workers=2
    )
    assert shared == alone
    folders = (city.parent / "results" / "tiny", tmp_path / "ray" / "results" / "tiny")
    hours, topics = (
        [(folder / f"{name}.jsonl").read_text() for folder in folders] for name in ("hours", "topics")
    )
    assert hours[0] == hours[1]
    assert topics[0] == topics[1]


@pytest.fixture
def compared() -> list[dict[str, Any]]:
    """Four requests: the simulation has 1 % more bytes, and 10 % more latency in the middle."""
    common = {"path": "latent", "compute_s": 0.2}
    rows = []
    for kind, scale, size in (("services", 1.0, 100.0), ("simulation", 1.1, 101.0)):
        for latency_s in (0.1, 0.5, 0.5, 9.0):
            latency_s *= scale if latency_s == 0.5 else 1
            rows.append({"kind": kind, "latency_s": latency_s, "backhaul_bytes": size, **common})
    return [{"kind": "calibration"}, *rows]


def test_gaps_compare_sums_and_medians(compared: list[dict[str, Any]]) -> None:
    found = tables.agreement(compared)
    assert found[tables.BYTES] == (400, 404)
    assert tables.gap_percent(*found[tables.BYTES]) == pytest.approx(1)
    assert tables.gap_percent(*found[tables.LATENCY]) == pytest.approx(10)
    lines = tables.agreement_table(compared)
    assert any(line.startswith("| answered by: latent | 4 | 4 | +0.0") for line in lines)
    assert not any("lost file" in line for line in lines)
