"""The requests behind the table of deliveries: an image is new once, and no cell of the grid is missing."""

from __future__ import annotations

import os
import time

from services.bench.deliveries import CBRS, PHASES, SNRS_DB, _cpu_s, _requests


def test_every_cell_is_requested_once_for_each_prompt() -> None:
    phases = _requests(2, ["neon"])
    assert tuple(phases) == PHASES
    latents = [about for phase in PHASES[:3] for about, _ in phases[phase]]
    cells = [(snr_db, cbr.denominator) for snr_db in SNRS_DB for cbr in CBRS]
    for topic, taught, prompts in (("known", True, [0, 1]), ("neon", True, [2]), ("neon", False, [2])):
        own = [about for about in latents if (about["topic"], about["taught"]) == (topic, taught)]
        asked = [(about["prompt"], about["snr_db"], about["cbr_parts"]) for about in own]
        assert sorted(asked) == sorted((prompt, *cell) for prompt in prompts for cell in cells)
    files = [about for phase in PHASES[3:] for about, _ in phases[phase]]
    assert sorted((about["prompt"], about["snr_db"]) for about in files) == sorted(
        (prompt, snr_db) for prompt in range(3) for snr_db in SNRS_DB
    )


def test_an_image_is_new_in_its_first_phase_alone() -> None:
    phases = _requests(2, ["neon"])
    for firsts, cached in ((PHASES[:2], "cached latent"), (("file",), "cached file")):
        new = [call for first in firsts for _, call in phases[first]]
        images = [(call["prompt"], call["seed"], call.get("knowledge")) for call in new]
        assert len(set(images)) == len(images)
        again = {(call["prompt"], call["seed"], call.get("knowledge")) for _, call in phases[cached]}
        assert again <= set(images)
    drawn = {phase: [(about["topic"], about["taught"]) for about, _ in phases[phase]] for phase in PHASES[:2]}
    assert drawn["latent"] == [("known", True), ("known", True), ("neon", False)]
    assert drawn["taught latent"] == [("neon", True)]


def test_cpu_time_is_that_of_the_process() -> None:
    before, used = _cpu_s(os.getpid()), time.process_time()
    while time.process_time() - used < 0.05:
        pass
    assert _cpu_s(os.getpid()) - before > 0.02
