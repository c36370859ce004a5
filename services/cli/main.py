"""The `dekag` command, assembled from the modules of this package."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import version
from typing import Annotated

import typer

from dekag import plugins
from dekag.errors import DekagError
from services.cli import evaluate, ops, run
from services.cli.compare import compare
from services.cli.extras import Commands, Group
from services.cli.options import KNOWLEDGE, OPERATION, RESEARCH, SYSTEM
from services.cli.profile import profile
from services.cli.train import train

app = Group(
    name="dekag",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dekag {version('dekag')}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            help="Plug-in to load: path/to/file.py:Name or package.module:Name; can be repeated. "
            "See docs/plugins.md."
        ),
    ] = None,
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Simulate generative semantic communication with distillation-enabled knowledge alignment."""
    if any(name.upper().startswith("DEKAG_") for name in os.environ):
        from services.common.environment import unknown_variables

        with contextlib.suppress(ModuleNotFoundError):  # a client alone lacks the services' settings
            for warning in unknown_variables():
                typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    if plugin:  # in the environment, so that child processes load it too
        names = [*plugins.split(os.environ.get(plugins.ENVIRONMENT, "")), *plugin]
        os.environ[plugins.ENVIRONMENT] = plugins.join(names)
    if context.invoked_subcommand == "doctor":  # reports broken plug-ins itself
        return
    try:
        plugins.load_from_environment()
    except DekagError as error:
        raise typer.BadParameter(str(error), param_hint=f"--plugin or {plugins.ENVIRONMENT}") from None
    for name, reason in plugins.broken().items():
        typer.secho(f"Warning: plug-in {name} is not loaded: {reason}", fg="yellow", err=True)


# in the order of the help
for _section, _commands in {
    SYSTEM: (run.up, run.demo, run.image, run.link),
    KNOWLEDGE: (run.distill, ops.publish),
    OPERATION: (ops.doctor, ops.key, ops.credentials),
    RESEARCH: (evaluate.sweep, evaluate.simulate, compare),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_section)(_command)
app.add_typer(profile, name="profile", rich_help_panel=OPERATION)
for _name, _group in {
    "train": train,
    "experiment": evaluate.experiment,
    "bench": evaluate.bench,
    "results": evaluate.results,
}.items():
    app.add_typer(_group, name=_name, rich_help_panel=RESEARCH)
