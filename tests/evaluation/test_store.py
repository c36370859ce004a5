"""Results are found by what they depend on; the recipes of keys stay, or what is on disk would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dekag.evaluation.store import ResultStore, content_key
from dekag.evaluation.studies import digital
from dekag.evaluation.studies.makd import MakdStudy
from dekag.evaluation.sweeps.grid import Sweep
from dekag.link.image_coding import QUALITIES, SCALES


def test_a_result_is_measured_once_and_an_interrupted_one_leaves_nothing(tmp_path: Path) -> None:
    store, calls = ResultStore(tmp_path), []

    def measure() -> dict[str, int]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"a": 1}

    with pytest.raises(KeyboardInterrupt):
        store.json("cells", "k", measure)
    assert not list(tmp_path.rglob("*.*"))
    assert [store.json("cells", "k", measure) for _ in range(2)] == [{"a": 1}] * 2
    assert len(calls) == 2
    assert [path.name for path in tmp_path.rglob("*.*")] == ["k.json"]
    first = store.array("blocks", "k", lambda: np.array([1.0, np.nan]))
    assert np.array_equal(store.array("blocks", "k", lambda: np.zeros(9)), first, equal_nan=True)
    assert json.loads((tmp_path / "cells/k.json").read_text()) == {"a": 1}


def test_another_part_is_another_key() -> None:
    assert content_key(1, "a") != content_key("a", 1) != content_key(1, "a", data=b"x")
    assert content_key({"b": 1, "a": 2}, sort_keys=True) == content_key({"a": 2, "b": 1}, sort_keys=True)


def generator(name: str, steps: int) -> Any:
    return SimpleNamespace(model_hash=name, steps=steps, guidance_scale=3.0, departures=())


def test_keys_are_those_of_results_that_have_been_measured(tmp_path: Path) -> None:
    # another key measures everything again: it changes with a VERSION alone
    store = ResultStore(tmp_path)
    roles = {"cloud": generator("cloud", 10), "edge": generator("edge", 8)}

    def bank_of(roles: dict[str, Any]) -> Any:
        return SimpleNamespace(facts=roles.__getitem__, metrics_hash="judges", own_topics={})

    bank = bank_of(roles)
    makd = MakdStudy(bank, 16, 3, store)
    assert makd.key("ends", "neon") == "bfd244e126f70885a3b43e21"

    keys = set()
    for role in ("cloud", "edge"):
        coarse = SimpleNamespace(**vars(roles[role]) | {"departures": ("denoiser bfloat16",)})
        keys.add(MakdStudy(bank_of(roles | {role: coarse}), 16, 3, store).key("ends", "neon"))
    assert len(keys | {makd.key("ends", "neon")}) == 3

    grid = {"name": "a", "deliveries": ["deka-g"], "topics": ["neon"], "cbr": ["1/96"]}
    links = [{"fading": "rayleigh", "tau_rms_s": 1e-6}]
    (cell,) = Sweep.model_validate({**grid, "links": links}).points()
    assert cell.key("identity") == "81def5542146c2796fe8f371"

    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    known = (digital.VERSION, QUALITIES, SCALES, image.shape)
    assert content_key(*known, data=image.tobytes()) == "3560376faefd7d94a143acdf"
