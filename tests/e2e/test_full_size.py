"""Models of the real architectures and sizes, with random weights, through the whole chain on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.bench.full_size import run_full_size_bench

MOST_GIB = 16.0


@pytest.mark.slow
def test_real_architectures_deliver_and_distil_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = run_full_size_bench(models=tmp_path / "models", results=tmp_path / "results")
    tasks = {row["task"]: row for row in rows if "task" in row}
    assert set(tasks) == {"start", "semantic", "conventional", "distillation"}
    for delivery in ("semantic", "conventional"):
        assert (tasks[delivery]["width"], tasks[delivery]["height"]) == (512, 512)
    assert tasks["semantic"]["channel_uses"] == 3 * 512 * 512 // 96
    peaks = {row["process"]: row["peak_gib"] for row in rows if "process" in row}
    assert {"cloud", "edge", "user", "distiller"} <= set(peaks)
    assert all(0 < peak < MOST_GIB for peak in peaks.values()), peaks
    assert (tmp_path / "results/real-models/bench-full-size.json").exists()
