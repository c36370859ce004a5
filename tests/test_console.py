"""Consoles show a text as it is, and commands have no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dekag.console import plain_console

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text", ["holiday [final].jpg", "a[/b].png", "http://[fe80::1]:8080", "a :car: by night"]
)
def test_a_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    plain_console().print(text)
    plain_console(stderr=True).print(text, style="red")
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


def test_every_command_shows_names_and_prompts_on_such_a_console() -> None:
    sources = [
        path
        for folder in ("dekag", "services/cli", "services/launcher")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    made = [path for path in sources if re.search(r"\bConsole\(", path.read_text())]
    assert made == [ROOT / "dekag" / "console.py"]
