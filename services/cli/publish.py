"""`dekag publish`: uploads knowledge to a running system and makes it current."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from dekag.client import Client, Knowledge, UnreachableError
from dekag.errors import DekagError
from services.cli.extras import as_typed, exit_status


def run_publish(folders: Sequence[Path], *, url: str) -> int:
    """Publishes each folder, in order, and prints the current version.

    Args:
        folders: each with a knowledge update or with adapters.
        url: URL of the gateway.

    Returns:
        The exit status: 2 if a different request would succeed, 1 if the system is not running or fails.
    """
    with Client(url) as client:
        for folder in folders:
            try:
                published = client.publish(folder)
            except UnreachableError as error:
                typer.echo(
                    f"{error}: start it with `dekag up`, or set --url. Nothing was published", err=True
                )
                return 1
            except DekagError as error:
                typer.echo(f"{folder}: {as_typed(error)}", err=True)
                return exit_status(error)
            what = f"of {published.topic}" if isinstance(published, Knowledge) else "of the codec's adapters"
            typer.echo(
                f"version {published.version} {what} is current at {client.url}: {published.content_hash}"
            )
    return 0
