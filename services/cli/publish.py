"""`dekag publish`: uploads knowledge to a running system, where it becomes current at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from dekag.client import Client, Knowledge, UnreachableError
from dekag.errors import DekagError
from services.cli.report import exit_status


def run_publish(folders: Sequence[Path], *, url: str) -> int:
    """Publishes each folder, in order, and says what is current where.

    Args:
        folders: with topics' updates or a codec's adapters.
        url: of the gateway.

    Returns:
        The exit status: 2 for what another request mends, 1 if the system does not run or cannot take it.
    """
    with Client(url) as client:
        for folder in folders:
            try:
                made = client.publish(folder)
            except UnreachableError as error:
                typer.echo(
                    f"{error}: start it with `dekag up`, or name its --url. Nothing was published", err=True
                )
                return 1
            except DekagError as error:
                typer.echo(f"{folder}: {error}", err=True)
                return exit_status(error)
            what = f"of {made.topic}" if isinstance(made, Knowledge) else "of the codec's adapters"
            typer.echo(f"version {made.version} {what} is current at {client.url}: {made.content_hash}")
    return 0
