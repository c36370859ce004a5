"""docs/claims.md and the README's table: what was promised beside what was measured, from headline.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dekag.documents import read_json
from dekag.evaluation.pages import BOOK_COMMAND, Lines, Report, table
from dekag.evaluation.registry import (
    FIGURES,
    Figures,
    count_verdicts,
    figure_cells,
    read_figures,
    target_text,
    verdict,
    with_unit,
)

TARGETS = [figure for figure in FIGURES.values() if figure.target is not None]


def values(results: Path) -> Mapping[str, str]:
    """How many targets were met."""
    met, missed, unknown = count_verdicts(read_figures(results))
    return {
        "targets": str(len(TARGETS)),
        "targets_met": str(met),
        "targets_missed": str(missed),
        "targets_unknown": str(unknown),
    }


def paper_table(figures: Figures) -> Lines:
    """The paper's claims beside our figures."""
    lines = []
    for figure in FIGURES.values():
        if figure.claimed:
            theirs = "no figure" if figure.paper is None else f"+{with_unit(figure.paper, figure.unit)}"
            lines.append([figure.name, theirs, *figure_cells(figure.key, figures)])
    return table(["claim", "paper", "here", "95 % interval", "n"], lines)


def targets_table(figures: Figures) -> Lines:
    """Our targets beside our figures."""
    lines = [
        [figure.name, target_text(figure), *figure_cells(figure.key, figures), verdict(figure, figures)]
        for figure in TARGETS
    ]
    return table(["", "target", "measured", "95 % interval", "n", "verdict"], lines, words=(0, 5))


def others_table(figures: Figures) -> Lines:
    """Figures without a target."""
    shown = {figure.key for figure in TARGETS} | {key for key, each in FIGURES.items() if each.claimed}
    keys = [key for key in FIGURES if key not in shown] + sorted(figures.keys() - FIGURES.keys())
    lines = [
        [FIGURES[key].name if key in FIGURES else f"`{key}`", *figure_cells(key, figures)]
        for key in keys
        if key in figures
    ]
    return table(["", "measured", "95 % interval", "n"], lines)


def origins_table(figures: Figures) -> Lines:
    """What measured each figure, and where it stands."""
    order = [*(key for key in FIGURES if key in figures), *sorted(figures.keys() - FIGURES.keys())]
    lines = []
    for key in order:
        figure = figures[key]
        name = FIGURES[key].name if key in FIGURES else ""
        lines.append([name, f"`{key}`", f"`{figure['command']}`", figure["commit"], figure["date"]])
    return table(["", "key", "command", "commit", "date"], lines, words=(0, 1, 2, 3, 4))


def summary_table(figures: Figures) -> Lines:
    """The main figures, beside what was promised of them."""
    lines = []
    for figure in FIGURES.values():
        if figure.summary:
            paper = "" if figure.paper is None else f"; paper: {with_unit(figure.paper, figure.unit)}"
            judged = "" if figure.target is None else verdict(figure, figures).split(";")[0]
            lines.append(
                [figure.name, target_text(figure) + paper, *figure_cells(figure.key, figures), judged]
            )
    return table(["", "target", "measured", "95 % interval", "n", ""], lines, words=(0, 1, 5))


def install_lines(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """How long `make demo` takes from nothing and how much it installs, without CUDA and with it."""
    lines = []
    for what, cuda in (("without", False), ("with", True)):
        if found := [each for each in rows if each["what"] == "demo" and bool(each["cuda"]) is cuda]:
            slowest = max(found, key=lambda each: each["seconds"])
            size, packages = max(each["mib"] for each in found), max(each["packages"] for each in found)
            pythons = ", ".join(sorted((each["python"] for each in found), key=_numbers))
            lines.append(
                f"- {what} CUDA (Python {pythons}): {size / 1024:.1f} GiB in {packages} packages; "
                f"{slowest['seconds'] / 60:.1f} minutes at a load of {slowest['load_average']:g}, "
                f"{slowest['cpu_seconds'] / 60:.1f} of them the processors' work"
            )
    return [
        "From nothing to the first images, `make demo` in a fresh clone with an empty cache of pip, on two",
        "cores that others used as well; the slowest Python counts:",
        "",
        *lines,
    ]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _install(results: Path) -> Lines:
    path = results / "load" / "install.json"
    return install_lines(read_json(path)["rows"]) if path.exists() else []


def _of(make: Callable[[Figures], Lines]) -> Callable[[Path], Lines]:
    return lambda results: make(read_figures(results))


CLAIMS = Report(
    page="claims.md",
    command=BOOK_COMMAND,
    values=values,
    tables={
        "paper": _of(paper_table),
        "targets": _of(targets_table),
        "others": _of(others_table),
        "origins": _of(origins_table),
    },
)
README = Report(
    page="README.md",
    command=BOOK_COMMAND,
    values=values,
    tables={"results": _of(summary_table), "install": _install},
)
