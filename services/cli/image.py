"""`dekag image`: requests one image, saves it and prints its link report."""

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
    """Requests one image from a gateway, writes it to a file and prints its link report.

    Args:
        request: body of the request, with prompt and seed.
        url: URL of the gateway.
        output: the PNG file; by default a name from prompt and seed in the current folder.
        force: overwrite an existing file.
        as_json: print only the link report, as JSON, to standard output.

    Returns:
        The exit status: 2 if a different request would succeed, 1 if there is no image for another reason.
    """
    out, err = Console(), Console(stderr=True)
    path = output or Path(default_name(request["prompt"], request["seed"]))
    check_folder(path.parent)  # before the image is generated
    if path.exists() and not force:
        return _fail(err, f"{path} exists already; --force overwrites it, --output sets another path", 2)
    try:
        with err.status(f"requesting an image from {url}"), Client(url) as client:
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
                note = (
                    f"The {side} read the prompt of {read.tokens} tokens in windows of {read.tokens_at_once}"
                )
                out.print(
                    f"{note}; --on-long-prompt refuse rejects such prompts.", highlight=False, soft_wrap=True
                )
    if (png := image.png) is None:
        return _fail(err, "The delivery did not decode: there is no image", 1)
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
    """File name for a prompt and a seed: ``a-red-car-7.png``."""
    words = regex.sub(r"[^\p{L}\p{M}\p{N}]+", "-", folded(prompt))[:_NAME_CHARS].strip("-")
    return f"{words or 'image'}-{seed}.png"


def _fail(console: Console, text: str, status: int) -> int:
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return status
