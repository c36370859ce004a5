"""`dekag image`: one picture from a running gateway, as a file, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex
import typer
from rich.console import Console

from dekag.client import Client, UnreachableError
from dekag.errors import DekagError
from dekag.files import check_folder
from dekag.words import folded
from services.cli.report import exit_status, report_table

_NAME_CHARS = 48


def run_image(
    request: Mapping[str, Any],
    *,
    url: str,
    output: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> int:
    """Asks a gateway for one image, writes it, and prints its link report.

    Args:
        request: body of the request; names the prompt and the seed.
        url: of the gateway.
        output: the PNG; a name from prompt and seed in the current folder if there is none.
        force: an existing file may be overwritten.
        as_json: the link report as JSON is all that goes to the standard output.

    Returns:
        The exit status: 2 for what another request mends, 1 if there is no picture for another reason.
    """
    out, err = Console(), Console(stderr=True)
    path = output or Path(default_name(request["prompt"], request["seed"]))
    check_folder(path.parent)  # now, and not when it has been drawn
    if path.exists() and not force:
        return _fail(err, f"{path} exists already; --force overwrites it, --output names another one", 2)
    try:
        with err.status(f"asking {url}"), Client(url) as client:
            image = client.image(**request)
    except UnreachableError as error:
        return _fail(err, f"{error}: start it with `dekag up`", 1)
    except DekagError as error:
        return _fail(err, str(error), exit_status(error))
    report = image.report
    if as_json:
        typer.echo(report.model_dump_json())  # rich would colour it
    else:
        out.print(report_table({report.delivery: image}))
        for side, read in report.prompt_read.items():
            if read.tokens > read.tokens_at_once:
                said = (
                    f"The {side} read the prompt's {read.tokens} tokens in windows of {read.tokens_at_once}"
                )
                out.print(
                    f"{said}; --on-long-prompt refuse would refuse it.", highlight=False, soft_wrap=True
                )
    if (png := image.png) is None:
        return _fail(err, "The delivery did not decode: there is no picture", 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if force else "xb") as file:
            file.write(png)
    except OSError as error:
        return _fail(err, f"{path} cannot be written: {error.strerror}", 1)
    if as_json:
        return 0
    out.print(f"Seed {report.seed}: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def default_name(prompt: str, seed: int) -> str:
    """Name of the file for that prompt and seed: ``a-red-boat-7.png``."""
    words = regex.sub(r"[^\p{L}\p{M}\p{N}]+", "-", folded(prompt))[:_NAME_CHARS].strip("-")
    return f"{words or 'image'}-{seed}.png"


def _fail(console: Console, text: str, status: int) -> int:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return status
