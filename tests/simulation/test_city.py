"""The city's file: clear errors, shipped cities, and the table of deliveries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dekag.errors import InvalidInputError
from dekag.simulation.city import CITIES, City, read_city
from dekag.simulation.deliveries import DeliveryTable


def write(folder: Path, content: Any) -> Path:
    path = folder / "city.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", sorted(CITIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_cities_are_valid(path: Path) -> None:
    assert read_city(path) == read_city(Path(path.stem))


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ({}, "name", "required"),
        ({"name": "My City"}, "name", "match"),
        ({"name": "a", "day": 1}, "day", "not permitted"),
        ({"name": "a", "days": 0}, "days", "greater than 0"),
        ({"name": "a", "radio": {"cells": 0}}, "radio.cells", "greater than or equal to 1"),
        ({"name": "a", "radio": {"scenario": "rma"}}, "radio.scenario", "'uma' or 'umi'"),
        ({"name": "a", "demand": {"hours": [1]}}, "demand.hours", "at least 24"),
        ({"name": "a", "demand": {"hours": [0] * 24}}, "", "demand.hours"),
        ({"name": "a", "edges": {"count": 9}, "radio": {"cells": 4}}, "", "at most radio.cells, 4"),
        ({"name": "a", "seeds": [1, 1]}, "seeds", "once"),
        ({"name": "a", "demand": {"new_topics": 0}}, "", "new_fraction"),
    ],
)
def test_an_invalid_field_is_named(tmp_path: Path, content: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_city(write(tmp_path, content))
    assert words in str(error.value)
    assert str(error.value).startswith(field)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("distil-sometimes", "distil-break-even"),
        ("fetch-push", "distil-never"),
        ({"name": "distil-threshold", "images": 3}, "requests, hours"),
        ({"name": "distil-threshold", "requests": 0}, "at least 1"),
        ({"name": "distil-threshold", "requests": "many"}, "a finite number"),
        ({"name": "distil-never", "factor": 1}, "no parameters"),
    ],
)
def test_an_invalid_policy_is_named_with_what_is_allowed(tmp_path: Path, choice: Any, words: str) -> None:
    content = {"name": "a", "strategies": [{"name": "mine", "distil": choice}]}
    with pytest.raises(InvalidInputError, match=r"distil: ") as error:
        read_city(write(tmp_path, content))
    assert words in str(error.value)


def test_the_table_is_interpolated(table: DeliveryTable) -> None:
    """The rows have a PSNR of 10 dB + SNR / 2, and 5 dB more at the higher rate."""
    snr_db = np.array([-20.0, 0.0, 10.0, 40.0])
    low, spread = table.semantic_psnr_db(snr_db, np.zeros(4, np.intp))
    assert low == pytest.approx([7.5, 10, 15, 22.5])
    high, _ = table.semantic_psnr_db(snr_db, np.ones(4, np.intp))
    assert high == pytest.approx(low + 5)
    assert spread == pytest.approx(np.zeros(4))
    assert table.channel_uses.tolist() == [256, 2048]
    assert table.file_success(np.array([-5.0, 0.0, 5.0])) == pytest.approx([0.5, 0.75, 1.0])
    assert (table.update_bytes.tolist(), table.request_bytes) == ([40_000, 60_000], 100)
    for kind, best in {"known": 0.9, "taught": 0.8, "untaught": 0.2}.items():
        here = table.semantic_consistency(kind, snr_db, np.ones(4, np.intp))
        assert here == pytest.approx([best - 0.3, best - 0.25, best - 0.15, best])
    assert table.file_consistency == pytest.approx(0.95)
    assert table.seconds["edge.generate"] == pytest.approx(0.2)
    assert table.seconds["edge.generate_taught"] == pytest.approx(0.4)
    assert table.seconds["cloud.generate"] == pytest.approx(1.0)
    assert table.seconds["user.latent"] == pytest.approx(0.04)


def test_the_shipped_table_is_complete() -> None:
    table = DeliveryTable.load()
    assert table.source["command"] == "dekag bench deliveries"
    assert (np.diff(table.psnr_db, axis=0) > 0).mean() > 0.8  # PSNR rises with the SNR
    assert (np.diff(table.file_channel_uses) <= 0).all()
    for kind in ("known", "taught"):
        assert (table.consistency[kind] > table.consistency["untaught"]).mean() > 0.8
    assert all(seconds > 0 for seconds in table.seconds.values())


def test_another_file_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": [{"kind": "delivery"}]}))
    with pytest.raises(InvalidInputError, match="dekag bench deliveries"):
        City(name="a", table=path).deliveries()
