"""`dekag image`: requests one image, or one that was made before; saves it and prints its link report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import regex
import typer
from rich.console import Console
from rich.text import Text

from dekag.api import image_file
from dekag.client import Client, Image, UnreachableError
from dekag.console import plain_console
from dekag.errors import DekagError, InvalidInputError, MismatchError
from dekag.files import check_folder
from dekag.words import folded
from services.cli.extras import as_typed, exit_status
from services.cli.options import DEFAULT_TIMEOUT_S
from services.cli.report import report_table

_NAME_CHARS = 48


def run_image(
    request: Mapping[str, Any],
    *,
    url: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    output: Path | None = None,
    force: bool = False,
    as_json: bool = False,
    accept: Callable[[Image], None] = lambda _: None,
) -> int:
    """Requests one image from a gateway, writes it to a file and prints its link report.

    Args:
        request: body of the request, with prompt and seed.
        url: URL of the gateway.
        timeout_s: time limit of its response, s.
        output: the file, whose suffix sets the format; by default a name from prompt and seed in the current
            folder.
        force: overwrite an existing file.
        as_json: print only the link report, as JSON, to standard output.
        accept: raises a DekagError for an image that is not to be saved.

    Returns:
        The exit status: 2 if a different request would succeed, 1 if there is no image for another reason.
    """
    out, err = plain_console(), plain_console(stderr=True)
    if output is not None:
        request = {**request, "output_format": _format_for(output, request.get("output_format"))}
    path = output or Path(default_name(request["prompt"], request["seed"], request.get("output_format")))
    check_folder(path.parent)  # before the image is generated
    if path.exists() and not force:
        return _fail(err, f"{path} exists already; --force overwrites it, --output sets another path", 2)
    try:
        with err.status(Text(f"requesting an image from {url}")), Client(url, timeout_s=timeout_s) as client:
            image = client.image(**request)
            accept(image)
    except UnreachableError as error:
        return _fail(err, f"{error}: start it with `dekag up`", 1)
    except DekagError as error:
        return _fail(err, str(as_typed(error)), exit_status(error))
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
                out.print(f"{note}; --on-long-prompt refuse rejects such prompts.", soft_wrap=True)
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
    out.print(f"Seed {report.seed}: {path}", soft_wrap=True)
    return 0


def run_again(
    made: Path,
    *,
    url: str,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    measure: bool | None = None,
    output: Path | None = None,
    force: bool = False,
    as_json: bool = False,
) -> int:
    """Makes an image again, as `run_image`, from what its file says of it.

    Args:
        made: file of the image.
        measure: whether to measure it against the sent image; None: the server's default.
        output: by default, the name of the file with "-again", in the current folder; the format is that of
            the image in the file, and a suffix of another one is refused.
        url, timeout_s, force, as_json: as in `run_image`.

    Returns:
        The exit status: 2 as well if the models or the pixels differ; nothing is saved then.
    """
    origin = image_file.read_provenance(made)
    before = image_file.pixels(made.read_bytes(), made)
    if output is None:
        file_format = origin.request.get("output_format", "png")
        suffix = (
            made.suffix if image_file.FORMATS.get(made.suffix.lower()) == file_format else f".{file_format}"
        )
        output = Path(f"{made.stem}-again{suffix}")

    def accept(image: Image) -> None:
        origin.check(image.report)
        if image.png is None:
            return
        now = image_file.pixels(image.png, "the new image")
        if before.shape != now.shape or (different := int((before != now).any(-1).sum())):
            how = f"{different} of its pixels differ" if before.shape == now.shape else "its size differs"
            raise MismatchError(
                f"the models are the same, but the image is not that of {made}: {how}. The file may have "
                "been edited, or made on another kind of processor"
            )

    request = origin.request | ({} if measure is None else {"measure": measure})
    return run_image(
        request, url=url, timeout_s=timeout_s, output=output, force=force, as_json=as_json, accept=accept
    )


def _format_for(output: Path, made: str | None) -> str:
    """The format that a file's suffix sets, or that of an image that is made again; "png" without either.

    Raises:
        InvalidInputError: the suffix is that of a format that the file would not have.
    """
    suffix = output.suffix.lower()
    file_format = image_file.FORMATS.get(suffix)
    if file_format is None and suffix not in PIL.Image.registered_extensions():
        return made or "png"
    if file_format is None or made not in (None, file_format):
        formats = [made] if made else ["png", "jpeg", "webp"]
        suffixes = [each for each, kind in image_file.FORMATS.items() if kind in formats]
        reason = f": the image is made again as a {made.upper()}" if made else ""
        raise InvalidInputError("--output", f"a file ending in {' or '.join(suffixes)}{reason}", output)
    return file_format


def default_name(prompt: str, seed: int, file_format: str | None = None) -> str:
    """File name for a prompt and a seed: ``a-red-car-7.png``."""
    words = regex.sub(r"[^\p{L}\p{M}\p{N}]+", "-", folded(prompt))[:_NAME_CHARS].strip("-")
    return f"{words or 'image'}-{seed}.{file_format or 'png'}"


def _fail(console: Console, text: str, status: int) -> int:
    console.print(text, style="red", soft_wrap=True)
    return status
