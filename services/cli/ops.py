"""Commands of operators: `dekag doctor`, `publish`, `key`, `credentials`; and `world`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dekag.errors import InvalidInputError
from services.cli.options import DEFAULT_URL, Url


def doctor(
    profile: Annotated[
        str | None,
        typer.Option(
            help="Models to check: a profile under models/, or a folder with a profile.json. Default: "
            "DEKAG_PROFILE, else stickers."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the results, as JSON.")] = False,
) -> None:
    """Report missing prerequisites and how to fix them; exits with 1 if a required one is missing."""
    from services.cli.doctor import run_doctor

    if profile is not None:
        os.environ["DEKAG_PROFILE"] = profile
    raise typer.Exit(run_doctor(as_json=as_json))


def publish(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folder from `dekag train cala`, `dekag train knowledge` or a distillation."),
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Publish adapters or knowledge updates to a running system, which uses them from the next request on."""
    from services.cli.publish import run_publish

    raise typer.Exit(run_publish(folders, url=url))


def key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner, for logs.")],
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            help="Limit of requests per minute. Default: DEKAG_KEY_REQUESTS_PER_MINUTE of the gateway."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(help="Limit of simultaneous requests. Default: DEKAG_KEY_CONCURRENCY of the gateway."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the key may do besides reading: draw, teach, publish or admin; can be repeated. "
            "Default: all of these but admin."
        ),
    ] = None,
) -> None:
    """Create an API key; shows it once and prints the line with its hash: dekag key NAME >> api-keys."""
    from services.gateway.api_keys import new_key

    try:
        made, line = new_key(
            name, requests_per_minute=requests_per_minute, concurrency=concurrency, scopes=scope or ()
        )
    except InvalidInputError as error:
        hint = "NAME" if error.field == "name" else f"--{error.field.replace('_', '-')}"
        raise typer.BadParameter(str(error), param_hint=hint) from None
    typer.echo(f"The key, shown only once:\n{made}\nThe line for DEKAG_API_KEYS_FILE:", err=True)
    typer.echo(line)


def credentials(
    folder: Annotated[Path, typer.Argument(help="Folder for the credentials; valid ones in it are kept.")],
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name or IP address of the gateway, as clients use it; can be repeated.",
            envvar="DEKAG_HOSTNAMES",
        ),
    ] = None,
    days: Annotated[int, typer.Option(help="Validity of new certificates, days.", min=31, max=3650)] = 365,
    new_signing_key: Annotated[
        bool, typer.Option("--new-signing-key", help="Replace the key that signs knowledge updates.")
    ] = False,
) -> None:
    """Create certificates for mutual TLS and Redis users, one folder per service: docs/security.md."""
    from services.launcher.credentials import make_credentials

    try:
        made = make_credentials(folder, names=name or (), days=days, new_signing=new_signing_key)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    typer.echo(
        f"{folder}: "
        + (f"created certificates for {', '.join(made)}" if made else "all certificates are valid")
    )
