"""`dekag profile check` and `dekag profile fetch`: what a profile needs, what is missing, how to get it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.extras import Group

if TYPE_CHECKING:
    from dekag.generation.machine import Machine
    from dekag.inventory import Part
    from dekag.profile import Profile

profile = Group(help="Check a profile, or download the models that it names.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A profile under models/, or a folder with a profile.json.")]
_MIB = 2**20


@profile.command()
def check(name: Name = "stickers") -> None:
    """Show what a profile consists of, its memory and what is missing; exits with 1 if it cannot run."""
    import torch
    from rich.table import Table

    from dekag.console import plain_console
    from dekag.errors import InvalidInputError
    from dekag.generation.machine import Machine, read
    from dekag.generation.placement import CPU, describe, devices, memory_of
    from dekag.inventory import parts, problems
    from dekag.profile import load_profile, profile_folder
    from services.cli.doctor import free_memory_gib

    loaded, machine = load_profile(name), read(Machine)
    found = parts(loaded, machine)
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
    place, refused = CPU, list[str]()
    try:
        place = machine.placement().device
        device = place.type
    except InvalidInputError as error:  # what it needs is said all the same
        device, refused = machine.device.partition(":")[0], [str(error)]
    if all(part.folder for part in found):
        for line in _memory(loaded, found, machine, device):
            typer.echo(line)
        if place.type == "cuda":
            known = memory_of(place)
            typer.echo(_free_on(f"{place} ({describe(place)})", known))
            for line in [] if known is None else _too_large(found, machine, str(place), known[0]):
                typer.secho(line, fg="yellow", err=True)
    free = free_memory_gib()
    here = ", ".join(f"{each} ({describe(torch.device(each))})" for each in devices()[1:])
    memory = "unknown" if free is None else f"{free:.1f} GiB"
    typer.echo(f"This machine: free memory {memory}; {here or 'no GPU'}.")
    if told := problems(loaded, found, machine) + refused:
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


def _memory(models: Profile, found: list[Part], machine: Machine, device: str) -> Iterator[str]:
    """The memory of the weights, as the settings of the machine say, in lines."""
    from dekag.inventory import processes, processes_on_device, text_encoder_bytes

    def listed(sizes: Mapping[str, int]) -> str:
        return ", ".join(f"{who} {size / _MIB:,.0f} MiB" for who, size in sizes.items())

    held, restoring = processes(models, found), processes(models, found, restoring=True)
    yield (
        f"\nWeights in each process: {listed(held)}. After a request with link.restoration: user "
        f"{restoring['user'] / _MIB:,.0f} MiB. Images in progress, activations and PyTorch come on top."
    )
    if not machine.keep_text_encoder:
        dropped = {"cloud": held["cloud"] - text_encoder_bytes(found)}
        yield (
            "DEKAG_KEEP_TEXT_ENCODER=false: once it has read its prompts, the cloud drops its text encoder: "
            f"{listed(dropped)}."
        )
    if device in ("cuda", "mps"):
        there = processes_on_device(found, machine)
        later = processes_on_device(found, machine, restoring=True)["user"] / _MIB
        yield f"Of these on {device}, at most: {listed(there)}; with link.restoration, user {later:,.0f} MiB."
    if machine.vae_dtype:
        yield f"DEKAG_VAE_DTYPE={machine.vae_dtype}: the number format of both autoencoders on this machine."


def _free_on(name: str, known: tuple[int, int] | None) -> str:
    """What is free of a graphics card, in a line."""
    if known is None:
        return f"Free on {name}: unknown."
    free, total = (size / _MIB for size in known)
    return f"Free on {name}: {free:,.0f} of {total:,.0f} MiB."


def _too_large(found: list[Part], machine: Machine, device: str, free: int) -> Iterator[str]:
    """Warnings of each service whose weights exceed what is free on its device, or of all together.

    Services that run already have their part of what is not free.
    """
    from dekag.inventory import processes_on_device

    there = processes_on_device(found, machine)
    restoring = processes_on_device(found, machine, restoring=True)["user"]
    large = {who: size for who, size in there.items() if size > free}
    if restoring > free and "user" not in large:
        large["user, with link.restoration"] = restoring
    less = "" if machine.offload else "; DEKAG_OFFLOAD=true or DEKAG_TEXT_DEVICE=cpu takes less"
    if machine.text_device == "cpu":
        less = ""
    for who, size in large.items():
        yield (
            f"{who}: {size / _MIB:,.0f} MiB of weights do not fit into the {free / _MIB:,.0f} MiB that are "
            f"free on {device}{less}"
        )
    if not large and (every := sum(there.values())) > free:
        yield (
            f"cloud, edge, user and distiller: together {every / _MIB:,.0f} MiB of weights do not fit into "
            f"the {free / _MIB:,.0f} MiB that are free on {device}, as `dekag up` runs them{less}"
        )


def _short(source: str, folder: Path) -> str:
    """A path below the profile's folder as profile.json has it."""
    return source.removeprefix(f"{folder.resolve()}/")
