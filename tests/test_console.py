"""Consoles show a text as it is, and commands have no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dekag.console import library_log, plain_console

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "text", ["holiday [final].jpg", "a[/b].png", "http://[fe80::1]:8080", "a :car: by night"]
)
def test_a_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    plain_console().print(text)
    plain_console(stderr=True).print(text, style="red")
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")


def test_the_library_logs_to_standard_error_unless_a_program_says_otherwise() -> None:
    chooses = "from dekag.generation.placement import place; place('auto'); print('{}')"
    done = subprocess.run(
        [sys.executable, "-c", chooses], cwd=ROOT, capture_output=True, text=True, check=True, timeout=90
    )
    assert done.stdout == "{}\n"
    assert "device chosen" in done.stderr
    with capture_logs() as logs:
        library_log().info("as configured")
    assert [each["event"] for each in logs] == ["as configured"]
    sources = [path.read_text() for path in (ROOT / "dekag").rglob("*.py") if path.name != "console.py"]
    assert not [text for text in sources if "structlog" in text], (
        "all of the library logs as the console says"
    )


def test_every_command_shows_names_and_prompts_on_such_a_console() -> None:
    sources = [
        path
        for folder in ("dekag", "services/cli", "services/launcher")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    made = [path for path in sources if re.search(r"\bConsole\(", path.read_text())]
    assert made == [ROOT / "dekag" / "console.py"]
