"""One minute with the web page: what viewers who have never seen it say that it does.

results/page/ holds what they were shown, the questions and the meaning of the marks (protocol.txt), and their
answers with the marks that somebody else gave (answers.csv).
"""

from __future__ import annotations

import csv
from pathlib import Path

from dekag.errors import FileError
from dekag.evaluation.pages import Row
from dekag.evaluation.registry import record
from dekag.evaluation.statistics import proportion_ci95

FOLDER, COMMAND = "page", "dekag experiment first-minute"
ANSWERS = "answers.csv"
SHOWN = ("desktop", "phone", "live")
MARKS = ("right", "partly", "wrong")
QUESTIONS = {
    "does": ("what_it_does", "mark_does"),
    "alignment": ("what_alignment_changes", "mark_alignment"),
}
"""Of each question: the columns of its answers and of their marks."""


def read_answers(folder: Path) -> list[Row]:
    """The lines of answers.csv.

    Raises:
        FileError: there are none, an answer is missing, or a mark is unknown.
    """
    path = folder / ANSWERS
    if not path.exists():
        raise FileError(path, "is missing: see protocol.txt beside it")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise FileError(path, "has no answers yet: show the page to somebody, as protocol.txt says")
    for number, row in enumerate(rows, 2):
        if row.get("shown") not in SHOWN:
            raise FileError(path, f"line {number}: shown must be one of {', '.join(SHOWN)}")
        for answer, mark in QUESTIONS.values():
            if not (row.get(answer) or "").strip():
                raise FileError(path, f"line {number}: {answer} is empty")
            if row.get(mark) not in MARKS:
                raise FileError(path, f"line {number}: {mark} must be one of {', '.join(MARKS)}")
    return rows


def run_first_minute(*, results: Path) -> list[str]:
    """Count the marks and write the headline figures: how many say rightly what it does, and what changes.

    Returns:
        What came out, a line for each question.

    Raises:
        FileError: as in `read_answers`.
    """
    rows = read_answers(results / FOLDER)
    lines = []
    for question, (answer, mark) in QUESTIONS.items():
        counts = {each: sum(row[mark] == each for row in rows) for each in MARKS}
        interval = proportion_ci95(counts["right"], len(rows))
        record(
            f"page_understood_{question}_percent",
            100 * counts["right"] / len(rows),
            "%",
            command=COMMAND,
            count=len(rows),
            ci95=[100 * end for end in interval],
            results=results,
        )
        said = ", ".join(f"{number} {each}" for each, number in counts.items())
        lines.append(f"{answer}: {said} of {len(rows)}")
    return lines
