"""Runs the notebooks of the documentation and saves them with their outputs: python scripts/notebooks.py"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
CELL_TIMEOUT_S = 180


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook after running all its cells in the root of the repository; raises if a cell fails."""
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}  # without the times of the execution
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
            for output in cell.outputs:  # one picture is enough
                output.get("data", {}).pop("image/jpeg", None)
                output.get("metadata", {}).clear()
    return notebook


def main() -> None:
    """Runs every notebook."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(run(nbformat.read(path, as_version=4)), path)
        sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
