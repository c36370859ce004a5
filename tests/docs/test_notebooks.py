"""The notebooks of the documentation run, and were saved with outputs like those of a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from scripts.notebooks import NOTEBOOKS, run

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def kinds(notebook: nbformat.NotebookNode) -> list[list[tuple[str, ...]]]:
    """What each cell outputs, without values that may differ between processors."""
    return [
        [(output.output_type, *sorted(output.get("data", {}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_three() -> None:
    assert [path.stem for path in PATHS] == ["reproduce-a-curve", "send-a-picture", "your-own-channel"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    saved = nbformat.read(path, as_version=4)
    assert any(kinds(saved)), "run python scripts/notebooks.py, which saves outputs"
    fresh = run(nbformat.from_dict(saved))
    assert kinds(fresh) == kinds(saved)
