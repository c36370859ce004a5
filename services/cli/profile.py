"""`dekag profile check` and `dekag profile fetch`: what a profile needs, what is missing, how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

profile = typer.Typer(help="Check a profile, or download the models that it names.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A profile under models/, or a folder with a profile.json.")]
_MIB = 2**20


@profile.command()
def check(name: Name = "stickers") -> None:
    """Show what a profile consists of, its memory and what is missing; exits with 1 if it cannot run."""
    import torch
    from rich.table import Table

    from dekag.console import plain_console
    from dekag.generation.placement import describe, devices
    from dekag.inventory import parts, problems, processes
    from dekag.profile import load_profile, profile_folder
    from services.cli.doctor import free_memory_gib

    loaded = load_profile(name)
    found = parts(loaded)
    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for column in ("parameters, M", "disk, MiB", "memory, MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("format")
    table.add_column("from", overflow="fold")
    for part in found:
        sizes = (part.bytes_on_disk / _MIB, part.bytes_in_memory / _MIB)
        numbers = [f"{part.parameters / 1e6:,.2f}", *(f"{size:,.1f}" for size in sizes)]
        kind = ("float32" if part.bytes_each == 4 else "bfloat16") if part.folder else ""
        table.add_row(
            part.name,
            *(numbers if part.folder else ("missing", "", "")),
            kind,
            _short(part.source, profile_folder(name)),
        )
    typer.echo(f"profile {name}: images of {loaded.size}x{loaded.size} pixels\n")
    plain_console().print(table)
    if all(part.folder for part in found):
        held = ", ".join(f"{who} {size / _MIB:,.0f} MiB" for who, size in processes(loaded, found).items())
        restoring = processes(loaded, found, restoring=True)["user"] / _MIB
        typer.echo(
            f"\nWeights in each process: {held}. After a request with link.restoration: user "
            f"{restoring:,.0f} MiB. Images in progress, activations and PyTorch come on top."
        )
    free = free_memory_gib()
    here = ", ".join(f"{each} ({describe(torch.device(each))})" for each in devices()[1:])
    memory = "unknown" if free is None else f"{free:.1f} GiB"
    typer.echo(f"This machine: free memory {memory}; {here or 'no GPU'}.")
    if told := problems(loaded, found):
        for line in told:
            typer.secho(line, fg="red", err=True)
        missing = {part.role for part in found if part.folder is None}
        if missing - {"codec", "adapters"}:
            typer.echo(f"`dekag profile fetch {name}` downloads what is on a hub.", err=True)
        if missing & {"codec", "adapters"}:
            typer.echo("docs/real-models.md says how to train codec and adapters.", err=True)
        raise typer.Exit(1)
    typer.echo("The profile is complete, and its parts fit together.")


@profile.command()
def fetch(name: Name) -> None:
    """Download the models of a profile into the hub's local cache; needs a network. Services stay offline."""
    from dekag.errors import NotFoundError
    from dekag.fetch import fetch as fetched
    from dekag.profile import load_profile

    loaded, count = load_profile(name), 0
    try:
        for what in fetched(loaded):
            count += 1
            typer.echo(f"{what} ...")
    except NotFoundError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{count} downloaded." if count else "The profile names nothing on a hub that is missing.")


def _short(source: str, folder: Path) -> str:
    """A path below the profile's folder as profile.json has it."""
    return source.removeprefix(f"{folder.resolve()}/")
