"""Commands for who keeps a system: `dekag doctor`, `publish`, `key`, `credentials`; and `world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dekag.errors import InvalidInputError
from services.cli.run import DEFAULT_URL, Url


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found as JSON, nothing else.")
    ] = False,
) -> None:
    """Say what is missing on this machine and the command that mends it; exits with 1 if it is needed."""
    from services.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json=as_json))


def publish(
    folders: Annotated[
        list[Path],
        typer.Argument(help="What `dekag train cala` or `dekag train knowledge` wrote."),
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Make a codec's adapters or topics' updates current in a running system, which uses them at once."""
    from services.cli.publish import run_publish

    raise typer.Exit(run_publish(folders, url=url))


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; stands in logs.")],
    requests_per_minute: Annotated[
        int | None, typer.Option(help="What it may do; if left out, what the gateway's settings say.", min=1)
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at a time, likewise.", min=1)] = None,
) -> None:
    """Make an API key: shows it once, and prints the line with its hash: dekag key NAME >> api-keys."""
    from services.gateway.api_keys import new_key

    try:
        made, line = new_key(name, requests_per_minute=requests_per_minute, concurrency=concurrency)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    typer.echo(f"The key, which is shown only now:\n{made}\nThe line for DEKAG_API_KEYS_FILE:", err=True)
    typer.echo(line)


def credentials(
    folder: Annotated[Path, typer.Argument(help="Made if missing; what it holds stays while it is valid.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or IP address by which clients know the gateway; more than once for several.",
            envvar="DEKAG_HOSTNAMES",
        ),
    ] = None,
    days: Annotated[int, typer.Option(help="That new certificates are valid.", min=31, max=3650)] = 365,
) -> None:
    """Make certificates for mutual TLS and users of Redis, a folder for each service: docs/security.md."""
    from services.launcher.credentials import make_credentials

    try:
        made = make_credentials(folder, names=name or (), days=days)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    typer.echo(f"{folder}: " + (f"new certificates of {', '.join(made)}" if made else "all valid"))


def world(
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("world.png"),
    seed: Annotated[int, typer.Option(help="Draws what is not a style or a subject.", min=0)] = 0,
) -> None:
    """Draw a contact sheet of the embedded world: every style against every subject."""
    from dekag.world.sheet import world_sheet

    world_sheet(output, seed)
    typer.echo(f"wrote {output}")
