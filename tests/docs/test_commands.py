"""Commands in README and docs/ exist, with the options that they are shown with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from services.cli.main import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]*\bdekag [^`]*)`")
SHOWN = re.compile(r"(?:^|\s|bin/)dekag (?P<words>.*)")


def commands() -> Iterator[tuple[str, str]]:
    """Page and words after `dekag` of each command in a block for a shell, or in the text."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if page.name == "cli.md":  # written from the commands themselves
            continue
        text = page.read_text()
        lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        lines += [found.replace("\n", " ") for found in INLINE.findall(ANY_BLOCK.sub("", text))]
        for line in lines:
            if (found := SHOWN.search(line)) is not None and not line.strip().startswith("helm "):
                yield page.relative_to(ROOT).as_posix(), found["words"]


def unknown(words: list[str]) -> str | None:
    """The first word that is no command or no option where it stands; None if there is none."""
    command, options = PROGRAM, options_of(PROGRAM)
    for number, word in enumerate(words):
        if word in ("|", "&&", ";", ">", "2>&1", "&"):
            return None
        if word.startswith("--"):
            if word.partition("=")[0] not in {*options, "--help"}:
                return word
        elif hasattr(command, "commands") and not (number and words[number - 1].startswith("--")):
            if word.isupper():  # stands for any command
                return None
            if word not in command.commands:
                return word
            command = command.commands[word]
            options |= options_of(command)
    return None


def options_of(command: Any) -> set[str]:
    """The options of a command or of a group."""
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


PROGRAM: Any = typer.main.get_command(app)


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}))
def test_commands_of_a_page_exist_with_their_options(page: str) -> None:
    wrong = []
    for found, text in commands():
        if found == page:
            try:
                words = shlex.split(text, comments=True)
            except ValueError:  # a piece of a longer line
                continue
            if (word := unknown(words)) is not None:
                wrong.append((word, text))
    assert not wrong
