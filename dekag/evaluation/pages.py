"""Pages that people write and committed results fill: Markdown with marked values and tables, and plots.

A page in docs/ marks what data fills. A value stands between ``<!-- =name -->`` and ``<!-- / -->``, with the
number of decimals behind a colon if it is not the usual one (``<!-- =tka_gain_db:1 -->``); its name is a key
of headline.json, or one that the page's report defines. A table stands between ``<!-- name -->`` and
``<!-- /name -->``, each on a line of its own. Plots are written into the folder plots/ beside the page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dekag.documents import parse_json, read_json
from dekag.evaluation import plots
from dekag.evaluation.registry import (
    FIGURES,
    MISSING,
    RESULTS,
    current_commit,
    figure_cells,
    read_figures,
    target_text,
    value_text,
    verdict,
)
from dekag.files import read_text
from dekag.stickers.sheet import save_sheet

BOOK_COMMAND = "dekag results book"
"""What fills all pages."""

DOCS = Path("docs")
PLOTS = "plots"
Lines = list[str]
Row = dict[str, Any]

_VALUE = re.compile(r"(<!-- =(\w+)(?::(\d))? -->)(.*?)(<!-- / -->)", re.DOTALL)


class NotMeasuredError(FileNotFoundError):
    """What a page shows was not measured yet; the message is the command that measures it."""


@dataclass(frozen=True)
class Report:
    """What data fills of one page.

    Attributes:
        page: its file name.
        command: what measures what it shows, for what is missing.
        tables: by name, each made from the folder of results; a FileNotFoundError says that it is missing.
        values: the same for values that are not in headline.json.
        plots: the same for figures of pyplot.
        partial: whether some values may be missing while others are there.
    """

    page: str
    command: str
    tables: Mapping[str, Callable[[Path], Lines]] = field(default_factory=dict)
    values: Callable[[Path], Mapping[str, str]] = lambda _: {}
    plots: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)
    partial: bool = False

    def render(self, text: str, results: Path = RESULTS) -> str:
        """The page's text, filled from a folder of results.

        Raises:
            ValueError: the page lacks a table of this report, has it twice, or names a value that is unknown.
        """
        try:
            own = self.values(results)
        except FileNotFoundError:
            own = {}
        figures = read_figures(results)

        def value(found: re.Match[str]) -> str:
            start, name, decimals, _, end = found.groups()
            if name in own:
                shown = own[name]
            elif name in figures:
                figure = figures[name]
                shown = value_text(
                    figure["value"], figure["unit"], None if decimals is None else int(decimals)
                )
            elif name in FIGURES or self.partial or not own:
                shown = MISSING
            else:
                raise ValueError(f"{self.page} names the value {name}, which nothing fills")
            return f"{start}{shown}{end}"

        text = _VALUE.sub(value, text)
        for name, make in self.tables.items():
            try:
                lines = make(results)
            except FileNotFoundError as error:
                command = error if isinstance(error, NotMeasuredError) else self.command
                lines = [f"`{command}`: {MISSING}."]
            text = fill(text, name, lines, self.page)
        return text

    def write(self, docs: Path = DOCS, results: Path = RESULTS, into: Path | None = None) -> Path | None:
        """Fill the page and draw its plots.

        Args:
            docs: where pages are; a page that is not there is left out.
            results: the folder of results.
            into: where the filled page and plots/ go; `docs` if left out.

        Returns:
            The page that was written, if any.
        """
        page = docs / self.page
        if not page.exists():
            return None
        target = into or docs
        target.mkdir(parents=True, exist_ok=True)
        (target / self.page).write_text(self.render(page.read_text(), results))
        for name, svg in self.draw(results).items():
            (target / PLOTS).mkdir(exist_ok=True)
            (target / PLOTS / name).write_text(svg)
        return target / self.page

    def draw(self, results: Path = RESULTS) -> dict[str, str]:
        """SVG of every plot whose data is there, by file name."""
        drawn = {}
        for name, make in self.plots.items():
            try:
                figure = make(results)
            except FileNotFoundError:
                continue
            drawn[f"{Path(self.page).stem}-{name}.svg"] = plots.as_svg(figure)
        return drawn


def fill(text: str, name: str, lines: Sequence[str], page: str = "the page") -> str:
    """`text` with `lines` between the comments ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: the text has no such part, or several.
    """
    part = re.escape(name)
    filled, count = re.subn(
        rf"(<!-- {part}\b[^>]*-->\n).*?(<!-- /{part} -->)",
        lambda ends: ends[1] + "\n".join(["", *lines, "", ""]) + ends[2],
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"{page} has {count} parts {name}, not one")
    return filled


def fill_page(page: Path, name: str, lines: Sequence[str]) -> None:
    """The same for a file."""
    page.write_text(fill(page.read_text(), name, lines, str(page)))


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0,)) -> Lines:
    """A Markdown table; the columns `words` are set left, all others, numbers, right."""
    rule = "|" + "".join("---|" if i in words else "---:|" for i in range(len(header)))
    return [row(header), rule, *map(row, rows)]


def figures_table(keys: Sequence[str]) -> Callable[[Path], Lines]:
    """Makes the table of these figures by name, with their targets."""

    def make(results: Path) -> Lines:
        figures = read_figures(results)
        if not any(FIGURES[key].target is not None for key in keys):
            rows = [[FIGURES[key].name, *figure_cells(key, figures)] for key in keys]
            return table(["figure", "measured", "95 % interval", "n"], rows)
        rows = [
            [
                FIGURES[key].name,
                target_text(FIGURES[key]),
                *figure_cells(key, figures),
                "" if FIGURES[key].target is None else verdict(FIGURES[key], figures).split(";")[0],
            ]
            for key in keys
        ]
        return table(["figure", "target", "measured", "95 % interval", "n", ""], rows, words=(0, 1, 5))

    return make


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON Lines.

    Raises:
        FileNotFoundError: nothing was measured.
        FileError: it cannot be read.
        DocumentError: a line is no JSON.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    return [parse_json(line, str(path)) for line in read_text(path).splitlines()]


def read_measured(path: Path) -> Any:
    """What a JSON file of results holds; errors as those of `read_rows`."""
    if not path.exists():
        raise FileNotFoundError(path)
    return read_json(path)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON Lines, a row each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


def save_images(images: list[list[Any]], folder: Path, name: str, command: str) -> None:
    """Save rows of equally large images (h, w, 3) uint8 as one PNG, and say in images.json what made it.

    Images cannot be made anew from other results, so what made them is kept beside them.
    """
    save_sheet(images, folder / name)
    note_image(folder, name, command)


def note_image(folder: Path, name: str, command: str) -> None:
    """Say in images.json what made an image that cannot be made anew from other results."""
    path = folder / "images.json"
    made = read_json(path) if path.exists() else {}
    made[name] = {
        "command": command,
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
