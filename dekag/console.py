"""Consoles that show names, prompts and messages as they are."""

from __future__ import annotations

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
