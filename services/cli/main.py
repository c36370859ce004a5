"""The `dekag` command, put together of what the modules beside this one define."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from dekag import plugins
from dekag.errors import DekagError
from services.cli import evaluate, ops, run
from services.cli.extras import Commands
from services.cli.train import train

app = typer.Typer(
    name="dekag",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.add_typer(train, name="train")
app.add_typer(evaluate.experiment, name="experiment")
app.add_typer(evaluate.bench, name="bench")
app.add_typer(evaluate.results, name="results")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dekag {version('dekag')}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            help="One's own class: package.module:Name or path/to/file.py:Name. See docs/plugins.md."
        ),
    ] = None,
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Generative semantic communication with distillation-enabled knowledge alignment."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):  # names of files may be no text: then they are shown escaped
            out.reconfigure(errors="backslashreplace")
    if any(name.upper().startswith("DEKAG_") for name in os.environ):
        from services.common.environment import unknown_variables

        with contextlib.suppress(ModuleNotFoundError):  # a client alone does not know the services' settings
            for told in unknown_variables():
                typer.secho(f"Warning: {told}", fg="yellow", err=True)
    if plugin:  # in the environment, so that the services and workers that are started load it, too
        named = [*plugins.split(os.environ.get(plugins.ENVIRONMENT, "")), *plugin]
        os.environ[plugins.ENVIRONMENT] = plugins.join(named)
    if context.invoked_subcommand == "doctor":  # says itself what is wrong with them
        return
    try:
        plugins.load_from_environment()
    except DekagError as error:
        raise typer.BadParameter(str(error), param_hint=f"--plugin or {plugins.ENVIRONMENT}") from None


# in the order of the help
for _command in (run.up, run.demo, run.image, ops.doctor, run.distill, ops.publish, ops.key, ops.credentials):
    app.command()(_command)
app.command()(ops.world)
app.command()(evaluate.sweep)
