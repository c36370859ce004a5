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


def install_table(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Duration and size of `make demo` in a fresh clone, without and with CUDA; the slowest Python counts."""
    lines = []
    for build, cuda in (("without CUDA", False), ("with CUDA", True)):
        if found := [each for each in rows if each["what"] == "demo" and bool(each["cuda"]) is cuda]:
            slowest = max(found, key=lambda each: each["seconds"])
            lines.append(
                [
                    build,
                    ", ".join(sorted((each["python"] for each in found), key=_numbers)),
                    f"{max(each['mib'] for each in found) / 1024:.1f}",
                    str(max(each["packages"] for each in found)),
                    f"{slowest['seconds'] / 60:.1f}",
                    f"{slowest['cpu_seconds'] / 60:.1f}",
                    f"{slowest['load_average']:g}",
                ]
            )
    heads = ["PyTorch", "Python", "GiB", "packages", "minutes", "CPU minutes", "load average"]
    return table(heads, lines, words=(0, 1))


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _install(results: Path) -> Lines:
    path = results / "load" / "install.json"
    return install_table(read_json(path)["rows"]) if path.exists() else []


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
