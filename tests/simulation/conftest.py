"""A small table of deliveries with round numbers, and a city that uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dekag.simulation.city import City
from dekag.simulation.deliveries import DeliveryTable

SNRS_DB = (-5.0, 5.0, 15.0, 25.0)
PARTS = (768, 96)


def rows() -> list[dict[str, Any]]:
    """Rows as `dekag bench deliveries` writes them.

    PSNR is 10 dB + SNR / 2, 5 dB more at the higher rate; consistency falls by 0.01 for each dB below 25.
    """
    found: list[dict[str, Any]] = [
        {"kind": "distillation", "topic": "neon", "seconds": 100.0},
        {"kind": "update", "topic": "neon", "bytes": 40_000},
        {"kind": "update", "topic": "ufo", "bytes": 60_000},
    ]
    for topic, taught in (("known", True), ("neon", True), ("neon", False)):
        for snr_db in SNRS_DB:
            for parts in PARTS:
                found.append(  # noqa: PERF401
                    {
                        "kind": "delivery", "topic": topic, "taught": taught, "delivery": "semantic",
                        "prompt": 0, "snr_db": snr_db, "cbr_parts": parts, "decoded": True,
                        "psnr_db": 10 + snr_db / 2 + 5 * (parts == 96),
                        "channel_uses": 3 * 256 * 256 // parts, "file_bytes": None, "backhaul_bytes": 0,
                        "consistency": {True: 0.8, False: 0.2}[taught] + 0.1 * (topic == "known")
                        + (snr_db - 25) / 100,
                    }
                )  # fmt: skip
    for prompt, size in enumerate((4_000, 6_000)):
        for snr_db in SNRS_DB:
            found.append(  # noqa: PERF401
                {
                    "kind": "delivery", "topic": "known", "taught": False, "delivery": "conventional",
                    "prompt": prompt, "snr_db": snr_db, "cbr_parts": None,
                    "decoded": snr_db > 0 or prompt == 0,
                    "psnr_db": 35.0, "channel_uses": 20_000 / (1 + max(snr_db, 0)), "file_bytes": size,
                    "backhaul_bytes": size + 100,
                    "consistency": 0.95,
                }
            )  # fmt: skip
    durations = {"user.decode": 1.0, "user.render": 3.0, "user.png": 1.0}
    for phase, edge, cloud, user in (
        ("latent", 2.1, 0.0, 0.5), ("taught latent", 4.1, 0.0, 0.5), ("cached latent", 0.1, 0.0, 0.5),
        ("file", 0.05, 10.0, 0.2), ("cached file", 0.05, 1.0, 0.2),
    ):  # fmt: skip
        found.append(
            {
                "kind": "cpu", "phase": phase, "requests": 10, "edge": edge, "cloud": cloud, "user": user,
                "durations_s": durations,
            }
        )  # fmt: skip
    return found


@pytest.fixture(scope="session")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "bench-deliveries.json"
    path.write_text(json.dumps({"command": "dekag bench deliveries", "rows": rows()}))
    return path


@pytest.fixture(scope="session")
def table(table_file: Path) -> DeliveryTable:
    return DeliveryTable.load(table_file)


@pytest.fixture(scope="session")
def make_city(table_file: Path) -> Callable[..., City]:
    """A city of four cells and two edges for an hour; arguments replace its sections."""

    def make(**sections: Any) -> City:
        small = {
            "name": "test",
            "days": 0.25,
            "seeds": [0],
            "demand": {"users": 50, "requests": 1_500, "new_topics": 6, "known_topics": 6},
            "radio": {"cells": 4},
            "edges": {"count": 2},
            "table": table_file,
        }
        return City.model_validate({**small, **sections})

    return make
