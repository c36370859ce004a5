"""deploy/compose.gpu.yml fits the compose file that it is added to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def _services(path: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())["services"]
    return services


def test_generators_reserve_a_gpu_and_no_limit_falls() -> None:
    base, gpu = _services("docker-compose.yml"), _services("deploy/compose.gpu.yml")
    assert set(gpu) == {"cloud", "edge", "distiller", "user"}
    for name, service in gpu.items():
        (before, least), (variable, limit) = (
            each["mem_limit"].strip("${}").split(":-") for each in (base[name], service)
        )
        assert variable == before == f"DEKAG_{name.upper()}_MEMORY"
        assert int(limit.removesuffix("g")) > int(least.removesuffix("g"))
        if name == "user":
            assert service["environment"]["DEKAG_DEVICE"] == "cpu"
            continue
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert service["environment"]["DEKAG_DEVICE"] == "${DEKAG_DEVICE:-cuda}"
    # the user loads the edge's pipeline for `link.restoration`
    assert gpu["user"]["mem_limit"].split(":-")[1] == gpu["edge"]["mem_limit"].split(":-")[1]
