"""One minute with the web page: answers are counted as they were marked, and incomplete ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dekag.errors import FileError
from dekag.evaluation.registry import read_figures
from dekag.evaluation.studies.first_minute import ANSWERS, FOLDER, run_first_minute

HEAD = "viewer,shown,what_it_does,what_alignment_changes,mark_does,mark_alignment"
COMMITTED = Path(__file__).parents[2] / "results" / FOLDER


def answers(results: Path, *lines: str) -> Path:
    folder = results / FOLDER
    folder.mkdir(parents=True)
    (folder / ANSWERS).write_text("\n".join([HEAD, *lines]) + "\n")
    return results


def test_marks_are_counted(tmp_path: Path) -> None:
    results = answers(tmp_path, "1,desktop,sends,draws,right,right", '2,phone,"a, b",clearer,right,partly')
    assert run_first_minute(results=results) == [
        "what_it_does: 2 right, 0 partly, 0 wrong of 2",
        "what_alignment_changes: 1 right, 1 partly, 0 wrong of 2",
    ]
    figures = read_figures(results)
    assert figures["page_understood_does_percent"]["value"] == 100
    assert figures["page_understood_alignment_percent"]["value"] == 50
    assert figures["page_understood_alignment_percent"]["n"] == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,tablet,sends,draws,right,right", "line 2: shown must be one of desktop, phone, live"),
        ("1,phone, ,draws,right,right", "line 2: what_it_does is empty"),
        ("1,phone,sends,draws,right,good", "line 2: mark_alignment must be one of right, partly, wrong"),
        ("1,phone,sends", "line 2: mark_does must be one of right"),
    ],
)
def test_incomplete_answers_are_named(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(FileError, match=problem):
        run_first_minute(results=answers(tmp_path, line))


def test_no_answers_are_no_result(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no answers yet"):
        run_first_minute(results=answers(tmp_path))
    assert read_figures(tmp_path) == {}


def test_the_committed_folder_has_these_columns() -> None:
    assert (COMMITTED / ANSWERS).read_text().splitlines()[0] == HEAD
    for shown in ("desktop.png", "phone.png"):
        assert (COMMITTED / shown).read_bytes().startswith(b"\x89PNG")
