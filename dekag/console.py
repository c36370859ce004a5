"""Consoles that show names, prompts and messages as they are; and where the library logs."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that takes no part of a text for markup or an emoji, and colours no numbers.

    Names of files and prompts may contain anything: ``holiday [final].jpg``, ``a :car: by night``. A text for
    `Console.status`, which has its own idea of markup, must be a `rich.text.Text`.

    Args:
        stderr: print to standard error instead of standard output.

    Example:
        >>> from dekag.console import plain_console
        >>> plain_console().print("holiday [final].jpg")
        holiday [final].jpg
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def library_log() -> Any:
    """The structlog logger of the library: as the program configured it, otherwise to standard error.

    structlog's own default is standard output, which belongs to results: other programs read them there.
    """
    import structlog  # which a client alone lacks

    if structlog.is_configured():
        return structlog.get_logger()
    return structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
